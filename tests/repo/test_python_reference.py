"""Everything that the command line can do, Python can do: a table says how, and it is complete and right."""

from __future__ import annotations

import operator
import re
from pathlib import Path

import fleetbox
from fleetbox_cli.app import ENTRIES

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "python.md").read_text()
TABLE = TEXT.partition("## The command line, in Python")[2]
ROWS = dict(re.findall(r"^\| `([a-z-]+)` \| (`[^|]+`) \|$", TABLE, re.MULTILINE))


def test_every_verb_has_its_row() -> None:
    assert set(ROWS) >= set(ENTRIES) - {"completion"}, "completion is the shell's alone"
    assert set(ROWS) <= set(ENTRIES)


def test_every_name_is_there() -> None:
    names = re.findall(r"`([^`]+)`", " ".join(ROWS.values()))
    assert len(names) > 40
    for name in names:
        operator.attrgetter(name)(fleetbox)
