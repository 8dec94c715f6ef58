"""Errors cross the control socket unchanged and have the documented exit codes."""

from __future__ import annotations

import json
import re

import pytest

from fleetbox import errors
from fleetbox.errors import FleetboxError, PartialError, from_wire

KINDS = sorted((c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, FleetboxError)), key=str)
PLAIN = [kind for kind in KINDS if kind is not PartialError]


@pytest.mark.parametrize("kind", PLAIN)
def test_error_survives_the_wire(kind: type[FleetboxError]) -> None:
    error = kind("what", why="why", hint="do this", details=["one", "two"])
    copy = from_wire(json.loads(json.dumps(error.to_wire())))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == "what: why"


def test_partial_error_survives_with_each_failure() -> None:
    inner = PartialError("inner", {"x": errors.DiskError("full")})
    error = PartialError("some failed", {"b": errors.NotFoundError("no b", hint="look"), "a": inner}, hint="see each")
    copy = from_wire(json.loads(json.dumps(error.to_wire())))
    assert isinstance(copy, PartialError)
    assert list(copy.failures) == ["b", "a"]
    assert type(copy.failures["b"]) is errors.NotFoundError
    assert copy.failures["b"].hint == "look"
    assert isinstance(copy.failures["a"], PartialError)
    assert type(copy.failures["a"].failures["x"]) is errors.DiskError


def test_codes_are_unique_and_unknown_ones_still_make_an_error() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)
    assert type(from_wire({"code": "of-the-future", "message": "m"})) is FleetboxError
    assert from_wire({}).message == "unknown error"


def test_exit_codes_are_those_of_the_documented_tree() -> None:
    tree = dict(re.findall(r"(?:─ |^    )(\w+) +(\d+)", errors.__doc__ or "", re.MULTILINE))
    assert {kind.__name__: kind.exit_code for kind in KINDS} == {name: int(code) for name, code in tree.items()}
    assert set(errors.__all__) == {*tree, "from_wire"}


def test_text_is_what_and_why() -> None:
    assert str(FleetboxError("what")) == "what"
    assert str(FleetboxError("what", why="why", hint="not shown")) == "what: why"
