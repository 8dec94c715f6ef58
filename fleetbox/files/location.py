"""What a source or destination of a copy means: `node-1:/path`, a path here, or `-`."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_REMOTE = re.compile(r"(?P<ref>[a-z0-9][a-z0-9-]*(?:/[a-z0-9][a-z0-9-]*)?):(?P<path>.*)", re.DOTALL)

STREAM = "-"


class Location(NamedTuple):
    """A path on the member that `ref` names, or here (`ref` empty). `-` here is standard input or output."""

    ref: str
    path: str

    @property
    def is_stream(self) -> bool:
        return not self.ref and self.path == STREAM

    def __str__(self) -> str:
        return f"{self.ref}:{self.path}" if self.ref else self.path


def parse(text: str) -> Location:
    """The location that `text` names. `node-1:` is the home folder there; `./a:b` is a file here."""
    match = _REMOTE.fullmatch(text)
    if match is None:
        return Location("", text)
    path = match["path"]
    if path == "~" or path.startswith("~/"):
        path = path[2:]
    return Location(match["ref"], path or ".")


def here(path: str | os.PathLike[str]) -> Location:
    """A file or folder here, whatever its name looks like."""
    text = os.fspath(path)
    return Location("", f"./{text}" if text == STREAM else text)
