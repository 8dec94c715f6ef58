"""The examples that talk to a guest, on real machines."""

from __future__ import annotations

import pytest

from tests.examples import GUEST, examples, run
from tests.vm.conftest import Lab

pytestmark = pytest.mark.slow


def test_examples_with_guests(lab: Lab) -> None:
    tests = [test for test in examples() if any(example.options.get(GUEST) for example in test.examples)]
    assert len(tests) > 5
    said = {test.name: run(test, guests=True) for test in tests}
    assert not {name: text for name, text in said.items() if text}
