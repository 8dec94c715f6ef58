"""Wait strategies on fake machines: real processes that end, real sockets and files; commands run here by a double."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fleetbox
from fleetbox import wait
from fleetbox.errors import MachineError, PartialError, TimedOut, UsageError
from fleetbox.timeouts import timeout_scale
from fleetbox.wait import Strategy
from fleetbox.watch import Cancelled, Watch
from tests.cli.conftest import ssh_double  # noqa: F401
from tests.fakeguests import handle, remember
from tests.home import clean_home

SOON_S = 0.4


@pytest.fixture(scope="module")
def cluster() -> Iterator[fleetbox.Cluster]:
    with clean_home(), pytest.MonkeyPatch.context() as environment:
        environment.setenv("FLEETBOX_BACKEND", "fake")
        with fleetbox.up("web", members=2, cold=True) as cluster:
            yield cluster


@pytest.fixture
def member(cluster: fleetbox.Cluster) -> fleetbox.Member:
    """A member that runs, whatever the test before did to it."""
    cluster.start()
    return cluster.members[0]


@pytest.fixture
def program(member: fleetbox.Member, ssh_double: Path) -> Callable[[str, str], Path]:  # noqa: F811
    """Put a shell script on the PATH of members' commands."""

    def write(name: str, script: str) -> Path:
        path = ssh_double / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def later() -> Iterator[Callable[..., None]]:
    """Do something a moment later, in another thread."""
    timers: list[threading.Timer] = []

    def do(what: Callable[..., object], *words: object) -> None:
        timers.append(threading.Timer(0.3, what, words))
        timers[-1].start()

    yield do
    for timer in timers:
        timer.join()


def seen(member: fleetbox.Member, strategy: Strategy) -> str:
    """What a strategy that never holds says that it saw first."""
    with Watch(member, 600.0, str(strategy)) as watch, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(strategy.wait_on, watch)
        while not watch.seen and not waiting.done():
            time.sleep(0.01)
        watch.cancel()
        with pytest.raises(Cancelled):
            waiting.result()
        return watch.seen


def test_a_line_that_is_there_already_counts(member: fleetbox.Member) -> None:
    member.wait_for(wait.log("has booted"))


def test_a_line_that_comes_later(member: fleetbox.Member, later: Callable[..., None]) -> None:
    later(remember, member, "database system is ready")
    member.wait_for(wait.log(r"system is \w+$"))


def test_time_out_says_what_was_seen_last(member: fleetbox.Member) -> None:
    remember(member, "almost there")
    member.wait_for(wait.log("almost there"))
    with pytest.raises(TimedOut) as raised:
        member.wait_for(wait.log("never"), timeout_s=SOON_S)
    assert "web/node-1: waited" in raised.value.message
    assert "a line like /never/ in the serial log" in raised.value.message
    assert raised.value.why == "seen last: almost there"
    assert "almost there" in raised.value.details


def test_the_end_of_the_machine_ends_the_wait(member: fleetbox.Member, later: Callable[..., None]) -> None:
    later(os.kill, handle(member).process.pid, signal.SIGKILL)
    with pytest.raises(MachineError, match="ended while it was waited for") as raised:
        member.wait_for(wait.log("never"), timeout_s=600)
    assert not isinstance(raised.value, TimedOut)


def test_last_words_count(member: fleetbox.Member, later: Callable[..., None]) -> None:
    later(remember, member, "panic")
    member.wait_for(wait.log("Kernel panic"), timeout_s=600)


def test_a_member_that_does_not_run_is_not_waited_for(member: fleetbox.Member) -> None:
    member.stop()
    with pytest.raises(MachineError, match="is not running"):
        member.wait_for(wait.log("login:"), timeout_s=600)


def test_command_is_repeated_until_it_succeeds(
    member: fleetbox.Member, program: Callable[[str, str], Path], tmp_path: Path
) -> None:
    program("ready", f"echo x >>{tmp_path}/asked; [ $(wc -l <{tmp_path}/asked) -ge 3 ]")
    member.wait_for(wait.command("ready"))
    assert (tmp_path / "asked").read_text().count("x") == 3


def test_command_that_never_succeeds(member: fleetbox.Member, program: Callable[[str, str], Path]) -> None:
    program("ready", "echo starting up >&2; exit 3")
    assert seen(member, wait.command("ready")) == "exit code 3: starting up"


def test_command_that_hangs_is_ended(
    member: fleetbox.Member, program: Callable[[str, str], Path], tmp_path: Path, later: Callable[..., None]
) -> None:
    program("hang", f"echo $$ >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 1000")

    def end_machine() -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        os.kill(handle(member).process.pid, signal.SIGKILL)

    later(end_machine)
    with pytest.raises(MachineError, match="ended while it was waited for"):
        member.wait_for(wait.command("exec hang"), timeout_s=600)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_unit(member: fleetbox.Member, program: Callable[[str, str], Path], tmp_path: Path) -> None:
    active = tmp_path / "active"
    state = f"[ -e {active} ] && echo ActiveState=active || echo ActiveState=activating"
    program(
        "systemctl", f'echo "$@" >{tmp_path}/asked; echo LoadState=loaded; {state}; echo SubState=start; touch {active}'
    )
    member.wait_for(wait.unit("nginx"))
    assert (tmp_path / "asked").read_text().endswith("-- nginx.service\n")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            "LoadState=loaded ActiveState=failed SubState=failed Result=exit-code",
            "db.service is failed (failed), its last result was exit-code",
        ),
        ("LoadState=not-found ActiveState=inactive SubState=dead", "db.service is not there"),
        ("nonsense", "exit code 0: nonsense"),
    ],
)
def test_unit_that_does_not_come_up(
    member: fleetbox.Member, program: Callable[[str, str], Path], answer: str, said: str
) -> None:
    program("systemctl", f"printf '%s\\n' {answer}")
    assert seen(member, wait.unit("db")) == said


def test_journal_of_a_unit(member: fleetbox.Member, program: Callable[[str, str], Path], tmp_path: Path) -> None:
    program("sudo", f'echo "$@" >{tmp_path}/asked; echo starting; echo ready to accept connections; exec sleep 1000')
    member.wait_for(wait.log("ready to accept", unit="postgresql"))
    assert "--unit postgresql" in (tmp_path / "asked").read_text()
    assert seen(member, wait.log("never", unit="postgresql")) in ("starting", "ready to accept connections")


def test_cloud_init(member: fleetbox.Member, program: Callable[[str, str], Path]) -> None:
    program("cloud-init", "echo; echo status: done")
    member.wait_for(wait.cloud_init())
    program("cloud-init", "echo status: error; echo detail: no datasource; exit 1")
    with pytest.raises(MachineError, match="in vain: exit code 1: detail: no datasource") as raised:
        member.wait_for(wait.cloud_init(), timeout_s=600)
    assert not isinstance(raised.value, TimedOut)


def test_cloud_init_of_a_guest_that_is_not_yet_reached(
    member: fleetbox.Member, program: Callable[[str, str], Path], tmp_path: Path
) -> None:
    program("cloud-init", f"[ -e {tmp_path}/up ] && exit 0; touch {tmp_path}/up; exit 255")
    member.wait_for(wait.cloud_init())


def test_condition_and_a_strategy_of_ones_own(member: fleetbox.Member, later: Callable[..., None]) -> None:
    class Stopped(Strategy):
        def __str__(self) -> str:
            return "two looks"

        def wait_on(self, watch: Watch) -> None:
            for looked, _ in enumerate(watch.pauses()):
                watch.seen = f"look {looked}"
                if looked == 2:
                    return

    member.wait_for(Stopped())
    later(remember, member, "hello")
    member.wait_for(wait.condition(lambda m: "hello" in m.serial_log.read_text(), "a greeting"))
    with pytest.raises(TimedOut, match=r"waited .* for a wonder: seen last: None"):
        member.wait_for(wait.condition(lambda m: None, "a wonder"), timeout_s=SOON_S)
    with pytest.raises(ZeroDivisionError):
        member.wait_for(wait.condition(lambda m: 1 // 0, "nonsense"))


def test_all_of_are_waited_for_in_order_and_named(member: fleetbox.Member) -> None:
    asked: list[str] = []

    def ask(name: str, answer: bool) -> Strategy:
        return wait.condition(lambda m: asked.append(name) or answer, name)

    member.wait_for(ask("a", True) & ask("b", True), ask("c", True))
    assert asked == ["a", "b", "c"]
    with pytest.raises(TimedOut, match="for second: seen last"):
        member.wait_for(ask("first", True), ask("second", False), ask("third", True), timeout_s=SOON_S)
    assert "third" not in asked


def test_a_part_has_a_limit_of_its_own(member: fleetbox.Member) -> None:
    waited = re.escape(f"waited {SOON_S * timeout_scale():g} s for a line like /never/")
    with pytest.raises(TimedOut, match=waited):
        member.wait_for(wait.log("never").within(SOON_S), timeout_s=600)


def test_any_of_ends_with_the_first_and_ends_the_others(
    member: fleetbox.Member, program: Callable[[str, str], Path], tmp_path: Path
) -> None:
    program("hang", f"echo $$ >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 1000")
    hanging = wait.condition(lambda m: (tmp_path / "pid").exists(), "the other to hang")
    member.wait_for(wait.command("exec hang") | hanging, timeout_s=600)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_any_of_that_all_fail(member: fleetbox.Member) -> None:
    no = wait.condition(lambda m: "", "one")
    with pytest.raises(TimedOut, match="for one or two: seen last: ''; 0"):
        member.wait_for(no | wait.condition(lambda m: 0, "two"), timeout_s=SOON_S)
    with pytest.raises(ZeroDivisionError):
        member.wait_for(no | wait.condition(lambda m: 1 // 0, "nonsense"), timeout_s=600)


def test_limits_are_scaled(member: fleetbox.Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_TIMEOUT_SCALE", "0.01")
    with pytest.raises(TimedOut, match=r"waited 0\.3 s"):
        member.wait_for(wait.log("never"), timeout_s=30)
    with pytest.raises(TimedOut, match=r"waited 0\.2 s"):
        member.wait_for(wait.log("never").within(20), timeout_s=600)


def test_nonsense_is_refused(member: fleetbox.Member) -> None:
    for wrong in (lambda: wait.port(0), lambda: wait.port(65536), wait.all_of, wait.any_of, member.wait_for):
        with pytest.raises(UsageError):
            wrong()
    with pytest.raises(UsageError):
        member.wait_for(wait.port(22), timeout_s=-1)


@pytest.mark.netns
def test_port(member: fleetbox.Member, own_network: None, later: Callable[..., None]) -> None:
    subprocess.run(["ip", "address", "add", f"{member.ip}/32", "dev", "lo"], check=True)
    with pytest.raises(TimedOut, match=f"connecting to {member.ip} port 5432: Connection refused"):
        member.wait_for(wait.port(5432), timeout_s=SOON_S)
    with socket.socket() as server:
        server.bind((member.ip, 5432))
        later(server.listen)
        member.wait_for(wait.port(5432), timeout_s=600)
        with member.connect(5432) as connection:
            assert connection.getpeername() == (member.ip, 5432)


def test_every_member_of_a_cluster_is_waited_for(
    cluster: fleetbox.Cluster, member: fleetbox.Member, later: Callable[..., None]
) -> None:
    for one in cluster.members:
        later(remember, one, f"hello from {one.name}")
    cluster.wait_for(wait.log("hello from"))
    with pytest.raises(TimedOut, match="web/node-1"):
        cluster.wait_for(wait.log("hello from node-2"), timeout_s=SOON_S)
    with pytest.raises(PartialError) as raised:
        cluster.wait_for(wait.log("never"), timeout_s=SOON_S)
    assert set(raised.value.failures) == {"web/node-1", "web/node-2"}


def test_an_error_shows_where_it_was_waited_and_no_frame_within(member: fleetbox.Member) -> None:
    with pytest.raises(TimedOut) as raised:
        member.wait_for(wait.log("never"), timeout_s=SOON_S)
    assert [entry.name for entry in raised.traceback.filter(raised)] == [
        "test_an_error_shows_where_it_was_waited_and_no_frame_within"
    ]


def test_a_command_that_closes_its_output_and_stays_is_ended_by_the_limit(
    member: fleetbox.Member, program: Callable[[str, str], Path], tmp_path: Path
) -> None:
    program("stay", f"echo $$ >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec >&- 2>&-; exec sleep 1000")
    with pytest.raises(TimedOut):
        member.wait_for(wait.command("exec stay"), timeout_s=5)
    for pid in tmp_path.glob("pid"):  # a busy host may not have come so far
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
