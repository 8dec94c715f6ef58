"""The documentation builds as a site without a dead link, and every command that it shows exists as shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fleetbox_cli.grammar import GRAMMAR
from tests.consoles import DOCUMENTS, ROOT, Command, commands, files

if TYPE_CHECKING:
    from fleetbox_cli.grammar import Verb

TUTORIAL = ROOT / "docs/tutorial/postgresql.md"


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/tutorial/postgresql.html").is_file()
    assert not re.search(
        r"(src|href)=\"https?://(?!www\.w3\.org)[^\"]*\.(js|css|woff2?)", (tmp_path / "site/index.html").read_text()
    )


def fleetbox_commands(line: str) -> list[list[str]]:
    """The words of each `fleetbox` in a shell line, from the verb on."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            parts.append([])
        else:
            parts[-1].append(word)
    parts = [part[1:] if part[:1] == ["sudo"] else part for part in parts]
    return [part[1:] for part in parts if part[:1] == ["fleetbox"]]


def wrong(words: list[str]) -> str:
    """What the command line would refuse of these words; empty when it would not."""
    verb, path = GRAMMAR, ["fleetbox"]
    rest = list(words)
    while verb["verbs"] and rest:
        name = rest.pop(0)
        if name in GRAMMAR["options"]:
            continue
        if name not in verb["verbs"]:
            return f"{' '.join(path)} has no {name!r}"
        verb, path = verb["verbs"][name], [*path, name]
    for word in _own(rest, verb):
        option = word.partition("=")[0]
        if option.startswith("-") and option not in ("-", "--") and option not in verb["options"] | GRAMMAR["options"]:
            return f"{' '.join(path)} has no option {option}"
    return ""


def _own(words: list[str], verb: Verb) -> list[str]:
    """The words that are not the guest's or the host's own command."""
    return words[:1] if any(argument.startswith("COMMAND") for argument in verb["arguments"]) else words


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_are_as_the_command_line_takes_them(document: Path) -> None:
    lines = [command.line for command in commands(document)]
    refused = {line: said for line in lines for words in fleetbox_commands(line) if (said := wrong(words))}
    assert not refused


def test_what_is_wrong_would_be_found() -> None:
    assert fleetbox_commands("tar c . | fleetbox ssh node-1 tar x && sudo fleetbox prune --dry-run") == [
        ["ssh", "node-1", "tar", "x"],
        ["prune", "--dry-run"],
    ]
    assert wrong(["up", "x", "--members", "3"]) == ""
    assert "no option --number" in wrong(["up", "x", "--number", "3"])
    assert "has no 'upp'" in wrong(["upp"])
    assert "has no 'put'" in wrong(["image", "put"])
    assert wrong(["exec", "x", "ls", "--color"]) == ""


def test_the_tutorial_has_commands_and_files() -> None:
    assert len(commands(TUTORIAL)) > 20
    assert set(files(TUTORIAL)) == {"primary.sh", "standby.sh", "test_failover.py"}
    shown = Command("x", ("built … (pg)", "42"))
    assert shown.missing("built 4219 (pg)\n42\n") == []
    assert shown.missing("built 4219 (db)\n") == ["built … (pg)", "42"]
