"""How errors end a command: what, why and what to do on standard error, and the exit code.

No Typer here: the fast paths of `__main__` end the same way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from fleetbox.errors import FleetboxError, OperationInterrupted, PartialError
from fleetbox_cli.render import printable, write_json
from fleetbox_cli.settings import Settings, wants_color

if TYPE_CHECKING:
    from types import TracebackType


def guarded(run: Callable[[], int], settings: Settings) -> int:
    """Run a command and return its exit code; whatever goes wrong is reported in the one form.

    A broken pipe is silent: the reader (`head`, a pager) has seen enough.
    """
    try:
        code = run()
        sys.stdout.flush()
        return code
    except FleetboxError as e:
        return _ended(e, settings)
    except KeyboardInterrupt as e:
        return _ended(OperationInterrupted("interrupted").with_traceback(e.__traceback__), settings)
    except BrokenPipeError:
        _mute_stdout()
        return 1
    except Exception as e:  # noqa: BLE001, RUF100 - the last boundary: users see no tracebacks
        if settings.debug:
            sys.excepthook(type(e), e, e.__traceback__)
        bug = FleetboxError(
            f"internal error: {type(e).__name__}: {e}",
            why="this is a bug in fleetbox",
            hint="run it again with --debug for the traceback, and report it",
        )
        return _ended(bug, settings, traceback=False)


def _ended(error: FleetboxError, settings: Settings, *, traceback: bool = True) -> int:
    try:
        if settings.debug and traceback:
            _show_traceback(error, error.__traceback__)
        show_error(error, settings)
        sys.stdout.flush()
    except BrokenPipeError:
        _mute_stdout()
    return error.exit_code


def _show_traceback(error: BaseException, traceback: TracebackType | None) -> None:
    sys.excepthook(type(error), error, traceback)


def _mute_stdout() -> None:
    # Python flushes once more at exit and would complain; the stream goes nowhere from here on.
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_error(error: FleetboxError, settings: Settings) -> None:
    """Write the error: as an envelope on standard output with `--json`, else as lines on standard error."""
    if settings.json:
        write_json("error", "error", error.to_wire())
        return
    sys.stderr.write("".join(f"{line}\n" for line in error_lines(error, color=wants_color(sys.stderr))))
    sys.stderr.flush()


def error_lines(error: FleetboxError, *, color: bool = False) -> list[str]:
    """The lines for a person: `error: what`, why, `hint: …`, then the failures of several targets and further details.

    Text in an error can come from a guest, so control characters are taken out.
    """
    red, yellow, plain = ("\x1b[1;31m", "\x1b[33m", "\x1b[0m") if color else ("", "", "")
    lines = [f"{red}error:{plain} {_one_line(error.message)}"]
    if error.why:
        lines.append(f"  {_one_line(error.why)}")
    if isinstance(error, PartialError):
        for name, failure in error.failures.items():
            lines.append(f"  {_one_line(name)}: {_one_line(str(failure))}")
            lines += [f"    hint: {_one_line(failure.hint)}"] if failure.hint else []
            lines += [f"      {printable(line)}" for line in failure.details]
    if error.hint:
        lines.append(f"{yellow}hint:{plain} {_one_line(error.hint)}")
    lines += [f"    {printable(line)}" for line in error.details]
    return lines


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
