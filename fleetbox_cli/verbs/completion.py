"""`fleetbox completion`: the shells' scripts, shown or put where the shell looks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from fleetbox.errors import FleetboxError, UsageError
from fleetbox_cli.render import Output
from fleetbox_cli.settings import Settings
from fleetbox_cli.shells import SCRIPTS
from fleetbox_cli.verb import Entry, LazyGroup, verb

Shell = Annotated[
    Literal["bash", "zsh", "fish"] | None,
    typer.Argument(metavar="[bash|zsh|fish]", show_default=False, help="The shell. [default: by $SHELL]"),
]
_BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")


def _shell(given: str | None) -> str:
    shell = given or Path(os.environ.get("SHELL", "")).name
    if shell not in SCRIPTS:
        raise UsageError(
            "it is not known which shell is meant",
            why=f"$SHELL is {shell or 'not set'}",
            hint="name it: bash, zsh or fish",
        )
    return shell


@verb("""
    source <(fleetbox completion show bash)    # for this session
    fleetbox completion show fish | source
""")
def show(settings: Settings, shell: Shell = None) -> Output:
    """Print a shell's completion script."""
    name = _shell(shell)
    return Output("completion", {"shell": name, "script": SCRIPTS[name]}, [SCRIPTS[name].rstrip("\n")])


@verb("""
    fleetbox completion install
    fleetbox completion install zsh
""")
def install(settings: Settings, shell: Shell = None) -> Output:
    """Put a shell's completion script where it looks for this user's, for all sessions to come.

    Where the shell has to be told of that place, the line for its configuration is printed; no file of the user's is
    changed.
    """
    name = _shell(shell)
    path, line = _place(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SCRIPTS[name], encoding="utf-8")
    except OSError as e:
        raise FleetboxError(f"{path} cannot be written", why=e.strerror or str(e)) from e
    text = [f"completion for {name} is in {path}"]
    text += [f"add this to {line[0]}:", f"  {line[1]}"] if line else ["new sessions have it"]
    data = {"shell": name, "path": str(path), "file": line[0] if line else "", "line": line[1] if line else ""}
    return Output("completion", data, text)


def _place(shell: str) -> tuple[Path, tuple[str, str] | None]:
    """Where the script goes; and where the shell does not look there, a configuration file and the line for it."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return config / "fish/completions/fleetbox.fish", None
    if shell == "zsh":
        folder = data / "zsh/site-functions"
        return folder / "_fleetbox", ("~/.zshrc", f"fpath=({folder} $fpath); autoload -Uz compinit; compinit")
    base = Path(os.environ.get("BASH_COMPLETION_USER_DIR") or data / "bash-completion")
    path = base / "completions/fleetbox"
    return path, None if _BASH_COMPLETION.exists() else ("~/.bashrc", f"source {path}")


_SELF = "fleetbox_cli.verbs.completion:"

completion = LazyGroup(
    "completion",
    "Complete commands, clusters, members, images, snapshots and templates in bash, zsh and fish.",
    {
        "install": Entry(_SELF + "install", "Put a shell's script where it looks."),
        "show": Entry(_SELF + "show", "Print a shell's script."),
    },
)
