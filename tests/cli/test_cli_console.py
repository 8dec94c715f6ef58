"""`fleetbox console` on a terminal and on pipes, and `Member.console`: a real holder, fake machines."""

from __future__ import annotations

import re
import signal
import subprocess
import termios
from collections.abc import Callable

import pexpect
import psutil
import pytest

import fleetbox as api
from fleetbox.errors import ConflictError, MachineError
from tests.cli.conftest import COMMAND, REPOSITORY, Fleetbox

pytestmark = pytest.mark.netns

Terminal = Callable[..., "pexpect.spawn[str]"]


@pytest.fixture
def terminal(timeout_scale: float) -> Terminal:
    def start(*words: str) -> pexpect.spawn[str]:
        return pexpect.spawn(
            COMMAND[0], [*COMMAND[1:], *words], cwd=str(REPOSITORY), timeout=30 * timeout_scale, encoding="utf-8"
        )

    return start


@pytest.fixture
def member(fleetbox: Fleetbox) -> api.Member:
    assert fleetbox("up", "demo", "--cold").exit_code == 0
    return api.Cluster("demo").member("node-1")


def _flags(child: pexpect.spawn[str]) -> int:
    flags = termios.tcgetattr(child.child_fd)[3]
    assert isinstance(flags, int)
    return flags & (termios.ICANON | termios.ECHO | termios.ISIG)


def _ends(child: pexpect.spawn[str]) -> int | None:
    child.expect(pexpect.EOF)
    child.close()
    code: int | None = child.exitstatus
    return code


def test_keys_go_to_the_guest_and_escapes_to_us(member: api.Member, terminal: Terminal) -> None:
    child = terminal("console", "demo")
    before = _flags(child)
    child.expect(r"~\. leaves, ~\? helps")
    child.send("hello\r")
    child.expect("hello\r\n.*hello\r\n")  # the echo, and what the guest says
    assert _flags(child) == 0
    child.send("~?")
    child.expect(r"~\^Z  - suspend")
    child.send("~.")
    child.expect("left the console of demo/node-1")
    assert _ends(child) == 0
    assert before != 0
    assert "hello\n" in member.serial_log.read_text()


def test_the_machine_ends_under_its_user(member: api.Member, terminal: Terminal) -> None:
    child = terminal("console", "-e", "^]", "demo")
    child.expect(r"\^\]\. leaves")
    child.send("~.poweroff\r")  # no escape here
    child.expect("~.poweroff")
    child.send("poweroff\r")
    child.expect("Power down")
    child.expect("demo/node-1 has ended")
    assert _ends(child) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_when_it_is_ended(
    member: api.Member, timeout_scale: float, number: signal.Signals
) -> None:
    shell = pexpect.spawn("/bin/sh", encoding="utf-8", timeout=60 * timeout_scale)
    shell.sendline("PS1=; stty -a | head -3; echo rea''dy")
    shell.expect("ready")
    words = " ".join([*COMMAND, "console", "demo"])
    shell.sendline(f"cd {REPOSITORY}; {words}; echo; echo en''ded; stty -a; echo do''ne")
    shell.expect("leaves")
    [child] = psutil.Process(shell.pid).children()
    shell.send("x\r")
    shell.expect("x\r\nx")
    child.send_signal(number)
    shell.expect("ended")
    shell.expect("done")
    shown = str(shell.before)
    assert re.search(r"[^-]icanon", shown)
    assert re.search(r"[^-]echo ", shown)
    shell.close(force=True)


def test_one_user_at_a_time(member: api.Member, fleetbox: Fleetbox, timeout_scale: float) -> None:
    with member.console() as console:
        console.write(b"first\r")
        assert b"first" in console.read_until(b"first\r\nfirst\r\n", 30 * timeout_scale)
        with pytest.raises(ConflictError):
            member.console()
        refused = fleetbox("console", "demo")
        assert refused.exit_code == 1
        assert "is in use" in refused.stderr
        with pytest.raises(MachineError, match="did not print 'never'"):
            console.read_until(b"never", 0.2)
    with member.console() as console:
        console.write(b"panic\r")
        with pytest.raises(MachineError, match="it has ended"):
            console.read_until(b"never", 30 * timeout_scale)


def test_pipes_and_what_cannot_be(member: api.Member, fleetbox: Fleetbox) -> None:
    typed = subprocess.run(
        [*COMMAND, "console", "demo"],
        cwd=REPOSITORY,
        input=b"~.\rtold\r",
        capture_output=True,
        check=False,
    )
    assert typed.returncode == 0, typed.stderr
    with member.console() as console:  # what was typed is answered in order
        console.write(b"last\r")
        console.read_until(b"last\r\nlast\r\n", 60)
    assert "~.\ntold\nlast\n" in member.serial_log.read_text()
    assert fleetbox("console", "demo", "--json").exit_code == 2
    assert fleetbox("console", "demo", "-e", "ab").exit_code == 2
    assert fleetbox("stop", "demo").exit_code == 0
    assert "is not running" in fleetbox("console", "demo").stderr
