"""The command line as one page of the documentation (`docs/reference/cli.md`), from the same source as `--help`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from fleetbox_cli.verb import COMMON, COMMON_PREFIX, LazyGroup

_HEAD = """\
# Command line

Generated from the commands themselves; `fleetbox COMMAND --help` and the man pages say the same.
[Exit codes](exit-codes.md), [environment](environment.md), [what `--json` prints](json.md).

Every command takes these:
"""


def page(commands: Iterable[tuple[list[str], Any, Any]]) -> str:
    """The page of these commands: each with its path and a context of it, groups before what is in them."""
    lines = [_HEAD]
    for path, command, context in commands:
        parameters = command.get_params(context)
        if len(path) == 1:
            lines += [*_table([p for p in parameters if _is_common(p)]), ""]
        else:
            lines += _verb(path, command, parameters)
    return "\n".join(lines).rstrip() + "\n"


def _verb(path: list[str], command: Any, parameters: list[Any]) -> Iterator[str]:
    yield f"{'#' * len(path)} {' '.join(path)}"
    yield ""
    if isinstance(command, LazyGroup):
        yield f"{command.help}\n"
        return
    arguments = [p.metavar for p in parameters if p.param_type_name == "argument"]
    yield "\n".join(["```text", " ".join([*path, "[OPTIONS]", *arguments]), "```", ""])
    yield inspect.cleandoc(command.help or "") + "\n"
    own = [p for p in parameters if not _is_common(p)]
    yield from _table(own)
    yield ""
    _, _, examples = (command.epilog or "").partition("Examples:\n")
    yield "\n".join(["```sh", inspect.cleandoc(examples), "```", ""])


def _is_common(parameter: Any) -> bool:
    return parameter.name in {"help", *(COMMON_PREFIX + name for name in COMMON)}


def _table(parameters: list[Any]) -> Iterator[str]:
    if not parameters:
        return
    yield "| | |"
    yield "|---|---|"
    for p in parameters:
        if p.param_type_name == "argument":
            name = f"`{p.metavar}`"
        else:
            value = "" if p.is_flag or p.count else f" {p.metavar or ''}"
            name = ", ".join(f"`{option}{value}`" for option in p.opts)
        yield f"| {_cell(name)} | {_cell(p.help or '')} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
