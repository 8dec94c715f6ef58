"""`fleetbox ssh` with ssh's own options, and `ssh-config`: what OpenSSH is told, and what it makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fleetbox import paths
from tests.cli.conftest import COMMAND, REPOSITORY, Run, write_cluster


@pytest.fixture
def told(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `ssh` on PATH that prints its arguments, a line each."""
    program = tmp_path / "ssh"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint('\\n'.join(sys.argv[1:]))\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    write_cluster("demo", "node-1", "node-2")
    return program


def _ssh(*words: str) -> list[str]:
    done = subprocess.run([*COMMAND, "ssh", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_options_before_the_ref_are_sshs(told: Path) -> None:
    words = _ssh("-L", "8080:localhost:80", "-L", "81:x:81", "-R", "9:localhost:9", "-D", "1080", "-N", "node-1")
    assert words[:10] == ["-L", "8080:localhost:80", "-L", "81:x:81", "-R", "9:localhost:9", "-D", "1080", "-N", "-F"]
    assert words[-2:] == ["--", "192.168.7.2"]
    assert not [word for word in words if word.startswith("Control")]  # it must not stay with a shared connection
    assert _ssh("-A", "node-1")[0] == "-A"
    words = _ssh("-tt", "node-2", "top", "-t")
    assert words[:2] == ["-t", "-t"]
    assert words[-3:] == ["192.168.7.3", "top", "-t"]
    assert "ControlMaster=auto" in words
    assert _ssh("node-1", "ls", "-A")[-2:] == ["ls", "-A"]


def test_json_takes_no_options_of_ssh(told: Path, run: Run) -> None:
    assert run("ssh", "--json", "-A", "node-1", "true").exit_code == 2


def _effective(config: Path, host: str) -> dict[str, str]:
    """What OpenSSH itself makes of a configuration (ssh -G)."""
    done = subprocess.run(["/usr/bin/ssh", "-F", config, "-G", host], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


@pytest.mark.skipif(not Path("/usr/bin/ssh").exists(), reason="no OpenSSH here")
def test_the_configuration_is_strict_and_can_be_included(home: Path, tmp_path: Path, run: Run) -> None:
    write_cluster("demo", "node-1", "db")
    write_cluster("other", "node-1", running=False)
    done = run("ssh-config")
    included = tmp_path / "fleetbox"
    included.write_text(done.stdout)
    config = tmp_path / "config"
    config.write_text(f"Include {included}\nHost *\n    User somebody\n    Port 2222\n")
    for name in ("db", "db.demo", "db.demo.fleetbox"):
        found = _effective(config, name)
        assert (found["hostname"], found["user"]) == ("192.168.7.3", "fleet")
        assert found["stricthostkeychecking"] == "true"
        assert found["userknownhostsfile"] == str(paths.known_hosts("demo"))
        assert found["hostkeyalias"] == "db.demo.fleetbox"
        assert found["identityfile"] == str(paths.keys_dir() / "id_ed25519")
        assert found["identitiesonly"] == "yes"
        assert found["controlmaster"] == "auto"
        assert found["controlpath"].endswith(".ssh")
    assert _effective(config, "node-1.other")["hostname"] == "192.168.7.2"
    assert _effective(config, "node-1")["user"] == "somebody"  # two have that name
    assert _effective(config, "elsewhere")["user"] == "somebody"


def test_the_configuration_of_one_cluster(home: Path, run: Run) -> None:
    write_cluster("demo", "node-1")
    write_cluster("other", "node-1")
    one = run("ssh-config", "demo", "--json").envelope["data"]
    assert one["hosts"] == {"demo/node-1": ["node-1.demo.fleetbox", "node-1.demo", "node-1"]}
    assert one["config"] == run("ssh-config", "--cluster", "demo").stdout
    assert run("ssh-config", "nothing").exit_code == 3
