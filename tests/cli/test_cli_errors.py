"""The one form of all errors, the exit codes, and interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleetbox import errors, paths
from fleetbox_cli.report import error_lines
from fleetbox_cli.settings import Settings
from tests.cli.conftest import REPOSITORY, Run, write_cluster

ALL = [
    errors.UsageError,
    errors.NotFoundError,
    errors.AmbiguousError,
    errors.HolderError,
    errors.ProtocolError,
    errors.HostError,
    errors.MachineError,
    errors.OperationInterrupted,
]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("as_json", [False, True])
def test_every_error_has_its_form_and_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, kind: type[errors.FleetboxError], as_json: bool
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise kind("it broke", why="a wire came off", hint="solder it", details=["line one", "line two"])

    monkeypatch.setattr("fleetbox.up", fail, raising=False)
    done = run("up", "demo", *(["--json"] if as_json else []))
    assert done.exit_code == kind.exit_code
    if as_json:
        assert done.envelope == {
            "fleetbox": 1,
            "kind": "error",
            "error": {
                "code": kind.code,
                "message": "it broke",
                "why": "a wire came off",
                "hint": "solder it",
                "details": ["line one", "line two"],
            },
        }
        assert done.stderr == ""
    else:
        assert done.stderr == ("error: it broke\n  a wire came off\nhint: solder it\n    line one\n    line two\n")
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["lss"], "there is no command 'lss'"),
        (["image", "pul", "x"], "there is no command 'pul'"),
        (["up"], "missing argument 'CLUSTER'"),
        (["up", "demo", "--bogus"], "no such option: --bogus"),
        (["up", "demo", "--cpus", "many"], "invalid value for '--cpus'"),
        (["up", "demo", "--boot", "magic"], "invalid value for '--boot'"),
        (["up", "demo", "--memory", "3X"], "'3X' is not a memory size"),
        (["up", "demo", "--disk", "-1G"], "'-1G' is not a disk size"),
        (["up", "demo", "--members", "0"], "a cluster cannot have 0 members"),
        (["up", "demo", "--members", "-3"], "a cluster cannot have -3 members"),
        (["up", "demo", "--name", "a", "--name", "a"], "a member name is given twice"),
        (["up", "De_mo"], "'De_mo' is not a valid cluster name"),
        (["up", "demo", "--cpus", "0"], "a member cannot have 0 cpus"),
        (["up", "demo", "--fixture", "/nowhere/at/all:/srv"], "there is no folder /nowhere/at/all"),
        (["up", "demo", "--fixture", "/tmp"], "'/tmp' is not a fixture"),
        (["up", "demo", "--kernel", "/nowhere"], "there is no kernel file /nowhere"),
        (["ls", "extra"], "got unexpected extra argument"),
        (["exec", "demo"], "missing argument 'COMMAND...'"),
        (["inspect", "a/b/c"], "'a/b' is not a valid cluster name"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_command_lines_end_with_2(run: Run, words: list[str], what: str, as_json: bool) -> None:
    done = run(*(["--json"] if as_json else []), *words)
    assert done.exit_code == 2
    if as_json:
        error = done.envelope["error"]
        assert error["code"] == "usage"
        assert error["message"].startswith(what)
        assert done.stderr == ""
    else:
        first, *rest = done.stderr.splitlines()
        assert first.startswith(f"error: {what}")
        assert any(line.startswith("hint: ") for line in rest) or "twice" in what
        assert "Traceback" not in done.stderr


def test_unknown_verb_suggests_the_near_one(run: Run) -> None:
    assert "hint: did you mean `fleetbox destroy`?" in run("destory", "x").stderr


def test_not_found_and_ambiguous(run: Run) -> None:
    assert run("ssh", "nobody").exit_code == 3
    write_cluster("one", "node-1")
    write_cluster("two", "node-1")
    done = run("inspect", "node-1")
    assert done.exit_code == 4
    assert "one/node-1, two/node-1" in done.stderr
    assert run("inspect", "--cluster", "two", "node-1").exit_code == 0
    assert run("--cluster", "two", "inspect", "node-1").exit_code == 0


def test_cluster_scope_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cluster("one", "node-1")
    write_cluster("two", "node-1")
    monkeypatch.setenv("FLEETBOX_CLUSTER", "one")
    assert json.loads(run("inspect", "node-1").stdout)["id"].endswith("00000001")
    assert run("inspect", "node-1").exit_code == 0


def test_a_bug_shows_no_traceback_without_debug(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("by a bug")

    monkeypatch.setattr("fleetbox.up", fail, raising=False)
    done = run("up", "demo")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: internal error: ZeroDivisionError: by a bug\n")
    assert "Traceback" not in done.stderr
    assert "Traceback" in run("up", "demo", "--debug").stderr


def test_ctrl_c_outside_an_operation(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fleetbox.up", interrupt, raising=False)
    done = run("up", "demo")
    assert (done.exit_code, done.stderr) == (130, "error: interrupted\n")
    assert run("up", "demo", "--json").envelope["error"]["code"] == "interrupted"


def test_what_guests_print_reaches_no_terminal(home: Path) -> None:
    error = errors.MachineError(
        "it\x1b[2J broke\nbadly", details=["\x1b]0;title\x07boot\x1b[31m red\x1b[0m\r", "a\tb\x9b1m"]
    )
    assert error_lines(error) == ["error: it broke badly", "    boot red", "    a\tb1m"]


def test_failures_of_several_targets_are_each_named(run: Run) -> None:
    write_cluster("one", "node-1", running=False)
    paths.cluster_record("one").rename(paths.cluster_record("one").with_suffix(".aside"))
    done = run("stop", "ghost", "phantom")
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "error: could not stop ghost, phantom"
    assert any(line.startswith("  ghost: there is no cluster or member 'ghost'") for line in lines)
    assert any(line.startswith("  phantom: ") for line in lines)
    error = run("stop", "ghost", "phantom", "--json").envelope["error"]
    assert error["code"] == "partial"
    assert {name: e["code"] for name, e in error["failures"].items()} == {"ghost": "not-found", "phantom": "not-found"}


def test_json_in_the_guests_command_is_not_ours(run: Run) -> None:
    done = run("exec", "nobody", "tool", "--json", "--quiet")
    assert done.exit_code == 3
    assert done.stderr.startswith("error: there is no cluster or member 'nobody'")


def _process(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fleetbox_cli", *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_broken_pipe_is_silent(home: Path) -> None:
    write_cluster("demo", *(f"node-{i}" for i in range(1, 200)))
    log = paths.serial_log("demo", "node-1")
    log.parent.mkdir(parents=True)
    log.write_bytes(b"x" * 99 + b"\n" + b"y" * (1 << 20))
    for words in (["logs", "demo/node-1"], ["inspect", "demo"], ["ls", "--json"]):
        process = _process(*words)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_following_command_with_130(home: Path, number: signal.Signals) -> None:
    write_cluster("demo", "node-1")  # lives as long as this test's own process
    log = paths.serial_log("demo", "node-1")
    log.parent.mkdir(parents=True)
    log.write_text("booting\n")
    process = _process("logs", "-f", "demo/node-1")
    assert process.stdout is not None
    assert process.stdout.readline() == b"booting\n"
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"error: interrupted\n")


def test_settings_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEETBOX_CLUSTER", raising=False)
    assert Settings().scope is None
    monkeypatch.setenv("FLEETBOX_CLUSTER", "env")
    assert Settings().scope == "env"
    assert Settings(cluster="flag").scope == "flag"
