"""The commands that documents show, and the files that they ask their reader to write.

In blocks marked `console` a line that begins with `$ ` is a command, and the lines under it are what it prints. A block
that carries a title is a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^ *```$", re.M | re.S
)


@dataclass(frozen=True)
class Command:
    """One command, and the lines that it is said to print; `…` in one stands for anything."""

    line: str
    output: tuple[str, ...] = ()

    def missing(self, said: str) -> list[str]:
        """The lines of `output` that are not in what was said."""
        heard = [line.strip() for line in said.splitlines()]
        patterns = {line: re.compile(".*".join(map(re.escape, line.strip().split("…")))) for line in self.output}
        return [line for line, pattern in patterns.items() if not any(pattern.fullmatch(h) for h in heard)]


def commands(document: Path) -> list[Command]:
    """Every command of the document, in order."""
    found: list[Command] = []
    for block in _BLOCK.finditer(document.read_text()):
        if block["kind"] != "console":
            continue
        for line in block["text"].splitlines():
            text = line.removeprefix(block["indent"])
            if text.startswith("$ "):
                found.append(Command(text[2:]))
            elif text.strip() and found:
                found[-1] = Command(found[-1].line, (*found[-1].output, text))
    return found


def files(document: Path) -> dict[str, str]:
    """The files that the document asks its reader to write, by name."""
    return {b["title"]: b["text"] for b in _BLOCK.finditer(document.read_text()) if b["title"]}
