"""The entry point. `version`, plain `ssh` and completion answer without Typer, which takes longer than they do."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as `typing` has it: a keypress that asks for completion waits for every import here
if TYPE_CHECKING:
    from typing import NoReturn

    from fleetbox_cli.settings import Settings


def main() -> NoReturn:
    """Run the command line of this process and exit with its code; SIGTERM counts as Ctrl-C."""
    if sys.argv[1:2] == ["__complete"]:
        _complete(sys.argv[2:])
    import signal

    from fleetbox_cli.settings import Settings

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    match sys.argv[1:]:
        case ["version" | "--version"]:
            _version(Settings())
        case ["version", "--json"] | ["--json", "version"]:
            _version(Settings(json=True))
        case ["ssh", "--cluster", cluster, ref, *command] if not ref.startswith("-"):
            _ssh(ref, command, Settings(cluster=cluster))
        case ["ssh", ref, *command] if not ref.startswith("-"):
            _ssh(ref, command, Settings())
    from fleetbox_cli.app import app

    app.main(prog_name="fleetbox")


def _complete(words: list[str]) -> NoReturn:
    from fleetbox_cli.completion import complete

    sys.stdout.write("".join(f"{line}\n" for line in complete(words)))
    sys.stdout.flush()
    import os

    os._exit(0)  # nothing is open that matters; an orderly end of the interpreter takes milliseconds


def _version(settings: Settings) -> NoReturn:
    from fleetbox_cli.render import render
    from fleetbox_cli.report import guarded
    from fleetbox_cli.version import version

    sys.exit(guarded(lambda: render(version(), settings), settings))


def _ssh(ref: str, command: list[str], settings: Settings) -> NoReturn:
    from fleetbox_cli.login import login
    from fleetbox_cli.report import guarded

    code = guarded(lambda: login(ref, command, settings), settings)
    import os

    # Nothing is buffered or open that matters, and `ssh` would have replaced the process anyway.
    os._exit(code)


if __name__ == "__main__":
    main()
