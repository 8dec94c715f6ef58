"""What a user sees on a real terminal (tmux): progress, Ctrl-C, console, status --watch, completion in three shells.

The second tier: it waits for screens, not for programs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, Fleetbox

pytestmark = [
    pytest.mark.slow,
    pytest.mark.netns,
    pytest.mark.skipif(not shutil.which("tmux"), reason="no tmux here"),
]


class Screen:
    """A terminal of 120 by 30 with a shell; `tmux` on a socket of its own."""

    def __init__(self, folder: Path, limit_s: float) -> None:
        self._socket = folder / "tmux"
        self._limit_s = limit_s

    def _tmux(self, *words: str) -> str:
        command = ["tmux", "-S", str(self._socket), "-f", "/dev/null", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def start(self, *shell: str) -> None:
        self._tmux("new-session", "-d", "-x", "120", "-y", "30", *shell)

    def type(self, *keys: str) -> None:
        """Keys by tmux's names (`Enter`, `Tab`, `C-c`), anything else as it is."""
        for key in keys:
            named = key in ("Enter", "Tab") or key.startswith("C-")
            self._tmux("send-keys", *([] if named else ["-l"]), key)

    def text(self) -> str:
        """All that is and was on it."""
        return self._tmux("capture-pane", "-p", "-S", "-")

    def await_(self, pattern: str) -> str:
        """The screen once it matches."""
        deadline = time.monotonic() + self._limit_s
        while not re.search(pattern, text := self.text(), re.MULTILINE):
            assert time.monotonic() < deadline, f"no {pattern!r} on:\n{text}"
            time.sleep(0.1)
        return text

    def end(self) -> None:
        subprocess.run(["tmux", "-S", str(self._socket), "kill-server"], capture_output=True, check=False)


@pytest.fixture
def screen(tmp_path: Path, timeout_scale: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    """A screen in whose shells `fleetbox` is this one."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "fleetbox"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m fleetbox_cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TMUX", raising=False)
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    made = Screen(tmp_path, 60 * timeout_scale)
    yield made
    made.end()


@pytest.fixture
def shell(screen: Screen) -> Screen:
    screen.start("sh")
    screen.type("PS1='ready> '; clear", "Enter")
    screen.await_(r"^ready> ?$")
    return screen


def test_up_shows_its_progress_and_then_its_result(fleetbox: Fleetbox, shell: Screen, faults: Path) -> None:
    faults.write_text("boot=slow:2")
    shell.type("fleetbox up demo --members 2 --cold", "Enter")
    shell.await_(r"node-1 .*(boot|address) \d+s[^\n]*\n.*node-2 .*(boot|address) \d+s")  # a row each, going on
    text = shell.await_(r"^demo is up: 2 members on fake")
    assert re.search(r"^node-1 +running +192\.168\.", text, re.MULTILINE)
    assert "boot ✓" not in text  # the display has made room for the result


def test_ctrl_c_undoes_and_says_so(fleetbox: Fleetbox, shell: Screen, faults: Path) -> None:
    faults.write_text("boot=hang")
    shell.type("fleetbox up demo --cold; echo code $?", "Enter")
    shell.await_(r"node-1 .*(boot|address) \d+s")
    shell.type("C-c")
    text = shell.await_(r"^code 130$")
    assert "undoing" in text
    assert "Traceback" not in text
    shell.type("fleetbox ls; stty -a | grep -cE '(^| )isig'", "Enter")
    shell.await_(r"no clusters;[^$]*\n1$")


def test_the_console_and_back(fleetbox: Fleetbox, shell: Screen) -> None:
    assert fleetbox("up", "demo", "--cold").exit_code == 0
    shell.type("fleetbox console demo", "Enter")
    shell.await_(r"~\. leaves")
    shell.type("hello guest", "Enter")
    shell.await_(r"^hello guest\nhello guest$")
    shell.type("~?")
    shell.await_(r"~\^Z  - suspend fleetbox")
    shell.type("~.")
    shell.await_(r"left the console of demo/node-1\n+ready> ?$")
    shell.type("echo still a terminal", "Enter")
    shell.await_(r"^still a terminal$")


def test_status_is_watched_live(fleetbox: Fleetbox, shell: Screen) -> None:
    assert fleetbox("up", "demo", "--members", "2", "--cold").exit_code == 0
    shell.type("fleetbox status demo --watch --interval 0.5", "Enter")
    shell.await_(r"^node-1 +running .* \d+% +\S+ ")
    assert fleetbox("stop", "demo/node-2").exit_code == 0
    text = shell.await_(r"^node-2 +stopped")
    assert len(re.findall(r"^node-1 ", text, re.MULTILINE)) == 1  # drawn in place
    shell.type("C-c")
    shell.await_(r"^ready> ?$")


def _bash(screen: Screen) -> None:
    subprocess.run(["fleetbox", "completion", "install", "bash"], check=True, capture_output=True)
    screen.start("bash", "--norc")
    screen.type("PS1='ready> '; source ~/.local/share/bash-completion/completions/fleetbox; clear", "Enter")


def _zsh(screen: Screen) -> None:
    subprocess.run(["fleetbox", "completion", "install", "zsh"], check=True, capture_output=True)
    screen.start("zsh", "-f")
    screen.type("PS1='ready> '; fpath=(~/.local/share/zsh/site-functions $fpath)", "Enter")
    screen.type("autoload -Uz compinit; compinit -u; clear", "Enter")


def _fish(screen: Screen) -> None:
    subprocess.run(["fleetbox", "completion", "install", "fish"], check=True, capture_output=True)
    screen.start("fish")
    screen.type("function fish_prompt; echo -n 'ready> '; end; clear", "Enter")


@pytest.mark.parametrize("start", [_bash, _zsh, _fish], ids=["bash", "zsh", "fish"])
def test_completion(
    fleetbox: Fleetbox, screen: Screen, start: Callable[[Screen], None], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    if not shutil.which(name):
        pytest.skip(f"no {name} here")
    assert fleetbox("up", "demo", "--name", "web-server", "--name", "database", "--cold").exit_code == 0
    start(screen)
    screen.await_(r"^ready> ?$")
    screen.type("fleetbox ssh web", "Tab")
    screen.await_(r"^ready> fleetbox ssh web-server")
    screen.type("C-u", "fleetbox cp x demo/dat", "Tab")
    screen.await_(r"^ready> fleetbox cp x demo/database:")
    screen.type("C-u", "fleetbox snapshot exp", "Tab")
    screen.await_(r"^ready> fleetbox snapshot export")
    screen.type("C-u", "fleetbox up --boot firm", "Tab")
    screen.await_(r"^ready> fleetbox up --boot firmware")
    screen.type("C-u", "fleetbox stop d", "Tab", "Tab")  # several: a list
    screen.await_(r"demo/web-server")
