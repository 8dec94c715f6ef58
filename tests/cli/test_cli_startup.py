"""What a verb may import, and the fast paths: a slow start is felt at every call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleetbox import __version__
from tests.cli.conftest import REPOSITORY, write_cluster

HEAVY = {"rich", "requests", "psutil", "asyncio", "pydantic", "fabric", "paramiko", "pyroute2", "starlette", "uvicorn"}


def _imported(*words: str) -> set[str]:
    """The top-level packages and our own modules that a command line has imported when it ends."""
    program = (
        "import atexit, os, sys\n"
        "atexit.register(lambda: sys.stderr.write('\\n' + ' '.join(sys.modules)))\n"
        "os._exit = sys.exit\n"
        "from fleetbox_cli.__main__ import main\n"
        f"sys.argv = ['fleetbox', *{list(words)!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    modules = done.stderr.splitlines()[-1].split()
    assert "fleetbox_cli.__main__" in modules, done.stderr
    return {m if m.startswith("fleetbox") else m.partition(".")[0] for m in modules}


@pytest.mark.parametrize(
    "words",
    [
        ["version"],
        ["version", "--json"],
        ["ssh", "nobody"],
        ["ssh", "--cluster", "x", "y", "z"],
        ["__complete", "ssh", ""],
    ],
)
def test_fast_paths_load_no_typer(home: Path, words: list[str]) -> None:
    loaded = _imported(*words)
    assert not loaded & (HEAVY | {"typer", "click"})


@pytest.mark.parametrize("words", [["ssh", ""], ["up", "--image", ""], ["restore", "x", ""], ["cp", ""], [""]])
def test_completion_loads_next_to_nothing(home: Path, words: list[str]) -> None:
    write_cluster("demo", "node-1")
    loaded = _imported("__complete", *words)
    ours = {m for m in loaded if m.startswith("fleetbox")}
    assert ours == {
        *("fleetbox", "fleetbox._version", "fleetbox.roots"),
        *("fleetbox_cli", "fleetbox_cli.__main__", "fleetbox_cli.completion", "fleetbox_cli.grammar"),
    }
    assert "msgspec" not in loaded


@pytest.mark.parametrize("words", [["ls"], ["ls", "--json"], ["inspect", "demo"], ["logs", "node-1", "--tail", "5"]])
def test_looking_loads_nothing_heavy(home: Path, words: list[str]) -> None:
    write_cluster("demo", "node-1")
    loaded = _imported(*words)
    assert not loaded & (HEAVY if "--tail" not in words else HEAVY - {"pydantic", "asyncio"})
    verbs = {m for m in loaded if m.startswith("fleetbox_cli.verbs.")}
    assert verbs == {f"fleetbox_cli.verbs.{words[0]}"}


def test_text_options_load_no_pydantic(home: Path) -> None:
    assert not _imported("up", "No_Such_Name", "--memory", "1G", "--fixture", "/:/srv", "--backend", "fake") & HEAVY


def test_help_loads_no_verb(home: Path) -> None:
    loaded = _imported("--help")
    assert not loaded & HEAVY
    assert not any(m.startswith("fleetbox_cli.verbs.") for m in loaded)


def test_help_names_every_verb(home: Path) -> None:
    from fleetbox_cli.app import ENTRIES

    shown = subprocess.run(
        [sys.executable, "-m", "fleetbox_cli"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in shown.splitlines() if line.startswith("  ")} >= set(ENTRIES)


def test_version() -> None:
    command = [sys.executable, "-m", "fleetbox_cli", "version"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == f"fleetbox {__version__}\n"
    done = subprocess.run([*command, "--json"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    envelope = json.loads(done.stdout)
    assert envelope["kind"] == "version"
    assert envelope["data"]["version"] == __version__


def test_ssh_becomes_openssh(home: Path, ssh_double: Path) -> None:
    write_cluster("demo", "node-1", "node-2")
    command = [sys.executable, "-m", "fleetbox_cli"]
    for words in (["ssh", "node-2", "--"], ["ssh", "demo/node-2"], ["ssh", "--debug", "demo/node-2"]):
        done = subprocess.run(
            [*command, *words, "echo", "$MEMBER_IP", "--json;", "exit 7"],
            cwd=REPOSITORY,
            env=os.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (7, "192.168.7.3 --json\n", "")


def test_ssh_to_a_stopped_member_says_how_to_start_it(home: Path, ssh_double: Path) -> None:
    write_cluster("demo", "node-1", running=False)
    command = [sys.executable, "-m", "fleetbox_cli", "ssh", "demo", "true"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "hint: `fleetbox start demo/node-1` starts it" in done.stderr


def test_ssh_without_openssh(home: Path, tmp_path: Path) -> None:
    write_cluster("demo", "node-1")
    done = subprocess.run(
        [sys.executable, "-m", "fleetbox_cli", "ssh", "demo"],
        cwd=REPOSITORY,
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 6
    assert done.stderr.startswith("error: there is no ssh on this host\n")
