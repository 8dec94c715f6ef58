"""Running programs: their output, their errors, their end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import process, programs
from fleetbox.backends.host.process import ProgramFailed
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import HostError
from fleetbox.identity import identify, is_alive

LIMIT_S = 30 * timeout_scale()
DEAF = "trap '' TERM; echo ready; while :; do read -r _ </dev/null || sleep 0.05; done"

Run = Callable[..., bytes]


@pytest.fixture
def host() -> Iterator[HostThread]:
    thread = HostThread()
    yield thread
    thread.close()


@pytest.fixture(params=["run", "run_blocking"])
def run(request: pytest.FixtureRequest) -> Run:
    """Both ways to run a short program, behind one signature."""
    if request.param == "run_blocking":
        return process.run_blocking
    return lambda *args, **kwargs: asyncio.run(process.run(*args, **kwargs))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


# --- short programs ---------------------------------------------------------------------------------------------------


def test_output_is_returned_and_input_given(run: Run) -> None:
    assert run(["echo", "hello"]) == b"hello\n"
    assert run(["cat"], stdin=b"in") == b"in"
    assert run(["cat"]) == b""


def test_messages_are_plain_and_administrators_programs_are_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert run(["sh", "-c", 'echo "$LC_ALL $PATH"']).split()[0] == b"C.UTF-8"
    assert b"/usr/sbin" in run(["sh", "-c", 'echo "$PATH"'])


def test_failure_carries_code_and_last_words(run: Run) -> None:
    with pytest.raises(ProgramFailed) as error:
        run(["sh", "-c", "echo first >&2; echo last >&2; exit 3"])
    assert error.value.returncode == 3
    assert error.value.stderr == "first\nlast\n"
    assert (error.value.message, error.value.why) == ("sh failed", "last")
    assert error.value.details == ("first", "last")
    with pytest.raises(ProgramFailed, match="exit code 4"):
        run(["sh", "-c", "exit 4"])


def test_missing_program_names_its_package(run: Run) -> None:
    with pytest.raises(HostError, match="no-such-program is not installed"):
        run(["/nowhere/no-such-program"])
    assert "nftables" in programs.missing("nft").hint


def test_program_that_cannot_be_run_is_a_host_error(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    with pytest.raises(HostError, match="cannot be run"):
        run([str(broken)])
    broken.chmod(0o755)
    with pytest.raises(HostError, match="cannot be run"):
        run([str(broken)])


def test_program_that_takes_too_long_is_ended(run: Run, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with pytest.raises(HostError, match="did not end"):
        run(["sh", "-c", f"echo $$ >{pidfile}.new; mv {pidfile}.new {pidfile}; exec sleep 600"], timeout_s=1.0)
    assert identify(int(pidfile.read_text())) is None


def test_cancelled_run_ends_its_program(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"

    async def scenario() -> None:
        script = f"echo $$ >{pidfile}.new; mv {pidfile}.new {pidfile}; exec sleep 600"
        running = asyncio.create_task(process.run(["sh", "-c", script]))
        await until(pidfile.exists)
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()
        assert identify(int(pidfile.read_text())) is None

    asyncio.run(scenario())


# --- lasting programs -------------------------------------------------------------------------------------------------


def lasting(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await scenario()

    asyncio.run(limited())


def test_spawned_program_has_a_session_a_log_and_an_end(host: HostThread, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")

    async def scenario() -> None:
        child = await process.spawn(
            host, ["sh", "-c", "echo out; echo err >&2; echo $X; exit 7"], log_file=log, extra_env={"X": "extra"}
        )
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
        assert await child.wait() == 7
        assert await child.wait() == 7
        child.signal(signal.SIGTERM)
        assert await child.kill() == 7
        child.close()
        child.close()
        child.signal(signal.SIGTERM)
        assert log.read_text() == "before\nout\nerr\nextra\n"

    lasting(scenario)


def test_descriptors_are_inherited_only_when_passed(host: HostThread, tmp_path: Path) -> None:
    async def scenario() -> None:
        reader, writer = os.pipe()
        try:
            child = await process.spawn(
                host, ["sh", "-c", f"echo passed >/dev/fd/{writer}"], log_file=tmp_path / "log", pass_fds=[writer]
            )
            assert await child.wait() == 0
            assert os.read(reader, 100) == b"passed\n"
            child.close()
            child = await process.spawn(host, ["sh", "-c", "ls /proc/self/fd"], log_file=tmp_path / "fds")
            assert await child.wait() == 0
            assert set((tmp_path / "fds").read_text().split()) <= {"0", "1", "2", "3"}
            child.close()
        finally:
            os.close(reader)
            os.close(writer)

    lasting(scenario)


def test_spawning_what_is_not_there_is_a_host_error(host: HostThread, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="not installed"):
        asyncio.run(process.spawn(host, ["no-such-program"], log_file=tmp_path / "log"))
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    with pytest.raises(HostError, match="cannot be run"):
        asyncio.run(process.spawn(host, [str(broken)], log_file=tmp_path / "log"))


def test_terminate_ends_by_sigterm_or_else_by_sigkill(host: HostThread, tmp_path: Path) -> None:
    async def scenario() -> None:
        gentle = await process.spawn(host, ["sleep", "600"], log_file=tmp_path / "log")
        assert await gentle.terminate(LIMIT_S) == -signal.SIGTERM
        deaf = await process.spawn(host, ["sh", "-c", DEAF], log_file=tmp_path / "deaf")
        await until(lambda: (tmp_path / "deaf").read_text() == "ready\n")
        assert await deaf.terminate(0.2) == -signal.SIGKILL
        gentle.close()
        deaf.close()

    lasting(scenario)


def test_several_waiters_and_a_cancelled_one(host: HostThread, tmp_path: Path) -> None:
    async def scenario() -> None:
        child = await process.spawn(host, ["sleep", "600"], log_file=tmp_path / "log")
        waiting = [asyncio.create_task(child.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait({waiting[0]})
        assert waiting[0].cancelled()
        child.signal(signal.SIGKILL)
        assert await asyncio.gather(*waiting[1:]) == [-9, -9]
        child.close()

    lasting(scenario)


def test_cancelled_spawn_leaves_no_process(host: HostThread, tmp_path: Path) -> None:
    argv = ["sleep", f"600.{os.getpid()}"]

    def running() -> list[Path]:
        return [p for p in Path("/proc").glob("[0-9]*/cmdline") if read(p) == "\0".join([*argv, ""]).encode()]

    async def scenario() -> None:
        for turns in range(4):
            spawning = asyncio.create_task(process.spawn(host, argv, log_file=tmp_path / "log"))
            for _ in range(turns):
                await asyncio.sleep(0)
            spawning.cancel()
            await asyncio.wait({spawning})
            if not spawning.cancelled():  # it was quicker than we
                assert turns > 1
                await spawning.result().kill()
                spawning.result().close()
            await host.run(int)
            assert running() == []

    lasting(scenario)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_adopted_process_is_watched_and_ended_without_being_its_parent(host: HostThread, tmp_path: Path) -> None:
    async def scenario() -> None:
        # The shell ends at once, so the sleeper is not our child but an orphan.
        shell = await process.spawn(
            host, ["sh", "-c", f"sleep 600 & echo $! >{tmp_path}/pid"], log_file=tmp_path / "log"
        )
        assert await shell.wait() == 0
        shell.close()
        pid = int((tmp_path / "pid").read_text())
        await until(lambda: getattr(identify(pid), "program", "") == "sleep")
        identity = identify(pid)
        assert identity is not None
        adopted = process.adopt(identity)
        assert adopted is not None
        waiting = asyncio.create_task(adopted.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await adopted.terminate(LIMIT_S) is None
        assert await waiting is None
        adopted.close()
        assert not is_alive(identity)
        assert process.adopt(identity) is None

    lasting(scenario)


def test_closing_forgets_a_process_that_runs_on(host: HostThread, tmp_path: Path) -> None:
    async def scenario() -> None:
        child = await process.spawn(host, ["sleep", "600"], log_file=tmp_path / "log")
        identity = child.identity
        await until(lambda: getattr(identify(child.pid), "program", "") == "sleep")
        child.close()
        child.signal(signal.SIGKILL)
        assert is_alive(identity)
        again = process.adopt(identity)
        assert again is not None
        await again.kill()
        again.close()

    lasting(scenario)


# --- logs -------------------------------------------------------------------------------------------------------------


def test_tail_is_the_last_lines_without_control_characters(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert process.tail(log) == []
    log.write_bytes(b"one\r\n\x1b[31mtwo\x1b[0m\r\n\r\n\xfftab\there\r\n")
    assert process.tail(log) == ["one", "[31mtwo[0m", "\N{REPLACEMENT CHARACTER}tab\there"]
    assert process.tail(log, 1) == ["\N{REPLACEMENT CHARACTER}tab\there"]
    log.write_bytes(b"x" * 100_000 + b"\nlast\n")
    assert process.tail(log)[-1] == "last"
    assert sum(map(len, process.tail(log))) <= 16384


def test_programs_are_found_outside_of_the_users_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.find("no-such-program") is None
    with pytest.raises(HostError):
        programs.require("no-such-program")
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert programs.require("tool") == tool
    assert programs.search_path().split(":") == [str(tmp_path), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    assert programs.find(sys.executable) == Path(sys.executable)
