"""The simulators' check of requests against the published API descriptions is at work, and finds what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulators import description


@pytest.fixture
def described() -> description.Description:
    if description.find("cloud-hypervisor.yaml") is None:
        pytest.skip("there is no shared/specs beside this checkout")
    found = description.load("cloud-hypervisor.yaml")
    assert found is not None, "the API description is there but cannot be read: is PyYAML missing?"
    return found


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("PUT", "/vm.pause", None, ""),
        ("GET", "/vm.info", None, ""),
        ("PUT", "/vm.restore", {"source_url": "file:///a", "memory_restore_mode": "OnDemand"}, ""),
        ("PUT", "/vm.add-disk", {"path": "/a", "readonly": True, "image_type": "Raw"}, ""),
        ("PUT", "/vm.add-disk", {"path": None}, ""),
        ("GET", "/vm.pause", None, "the API has no GET /vm.pause"),
        ("PUT", "/vm.halt", None, "the API has no PUT /vm.halt"),
        ("PUT", "/vm.pause", {}, "takes no body"),
        ("PUT", "/vm.restore", None, "needs a body"),
        ("PUT", "/vm.restore", {}, "missing field `source_url`"),
        ("PUT", "/vm.restore", {"source_url": "file:///a", "memory_restore_mode": "ondemand"}, "is none of"),
        ("PUT", "/vm.add-disk", {"file": "/a"}, "unknown field `file`"),
        ("PUT", "/vm.add-disk", {"path": 1}, "is no string"),
        ("PUT", "/vm.add-disk", {"readonly": 1}, "is no boolean"),
        ("PUT", "/vm.create", {"payload": {}, "cpus": {"boot_vcpus": 0, "max_vcpus": 1}}, "less than 1"),
        ("PUT", "/vm.create", {"payload": {}, "cpus": {"boot_vcpus": True, "max_vcpus": 1}}, "is no integer"),
        ("PUT", "/vm.create", {"payload": {}, "disks": [{}, {"paht": "/a"}]}, "disks[1]: unknown field `paht`"),
    ],
)
def test_requests_are_checked(
    described: description.Description, method: str, path: str, body: Any, words: str
) -> None:
    problem = described.objection(method, path, body)
    assert (words in problem) if words else not problem
