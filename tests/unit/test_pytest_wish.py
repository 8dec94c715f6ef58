"""What the pytest plugin passes on to `fleetbox.up`."""

from __future__ import annotations

import inspect
from dataclasses import fields

import fleetbox
from fleetbox.pytest_plugin.wish import UpWords, Wish


def test_a_fleet_passes_on_all_that_up_takes() -> None:
    own = {"name", "bound", "on_event"}
    assert set(UpWords.__annotations__) == set(inspect.signature(fleetbox.up).parameters) - own


def test_a_wish_is_up_s_words_and_what_is_the_plugin_s() -> None:
    own = {field.name for field in fields(Wish)} - set(UpWords.__annotations__)
    assert own == {"scope", "reset", "real"}
    words = Wish(members=3, memory_bytes=1 << 30, scope="module", reset=True).up_words()
    assert words["members"] == 3
    assert words["memory_bytes"] == 1 << 30
    assert not own & words.keys()
