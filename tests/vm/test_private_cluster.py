"""Clusters of an ordinary user, on private networks: made, used, forked, taken over after a crash, and gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fleetbox.backends.base import timeout_scale
from tests import ordinary
from tests.home import clean_home, processes_of
from tests.netns import INTERNET_ADDRESS, TestNet
from tests.process.network.host_state import host_state

ROOT = Path(__file__).parents[2]
LIMIT_S = 900.0
TALK = "exec 3<>/dev/tcp/{host}/{port}; {say}"


@dataclass(frozen=True)
class User:
    """An ordinary user with a home of its own, on a host that has an internet."""

    home: Path
    net: TestNet

    def argv(self, *words: str) -> list[str]:
        return ordinary.argv(sys.executable, "-m", "fleetbox_cli", *words)

    def environment(self) -> dict[str, str]:
        return os.environ | {"FLEETBOX_HOME": str(self.home), "PYTHONPATH": str(ROOT)}

    def run(self, *words: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*words),
            input=stdin,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=LIMIT_S * timeout_scale(),
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json").stdout.splitlines()[-1])["data"]

    def ssh(self, ref: str, command: str) -> str:
        return self.run("ssh", ref, command).stdout.strip()

    def python(self, code: str) -> str:
        """Run code that uses the library."""
        argv = ordinary.argv(sys.executable, "-c", code)
        done = subprocess.run(argv, env=self.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def visible() -> dict[str, Any]:
    return {key: value for key, value in host_state().items() if key not in ("journals", "shared", "resolvers")}


@pytest.fixture(scope="module")
def user(image_cache: Path) -> Iterator[User]:
    with TestNet() as net:
        net.enter()
        with clean_home() as home:
            copied = ["cp", "-a", "--sparse=always", "--reflink=auto", str(image_cache / "data"), str(home / "data")]
            subprocess.run(copied, check=True)
            (home / "data/images/.lock").unlink(missing_ok=True)
            subprocess.run(["chown", "-R", f"{ordinary.UID}:{ordinary.UID}", str(home)], check=True)
            made = User(home, net)
            yield made
            for cluster in made.json("ls")["clusters"]:
                made.run("destroy", "--yes", cluster["name"])


@pytest.fixture(scope="module")
def before(user: User) -> dict[str, Any]:
    """What the host showed before there was a cluster."""
    return visible()


@pytest.fixture(scope="module")
def cluster(user: User, before: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = user.json("up", "mine", "--members", "2", "--memory", "512M")
    return made


def test_a_cluster_without_root_shows_nothing_on_the_host(
    user: User, cluster: dict[str, Any], before: dict[str, Any]
) -> None:
    assert cluster["network"] == "private"
    assert [member["state"] for member in cluster["members"]] == ["running", "running"]
    assert visible() == before
    machines = {pid: argv for pid, argv in processes_of(user.home).items() if "qemu-system" in argv.split(" ")[0]}
    assert len(machines) == 2
    for pid in machines:
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert {status[key] for key in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
        assert status["Uid"].split() == [str(ordinary.UID)] * 4


def test_members_have_names_and_a_way_out(user: User, cluster: dict[str, Any]) -> None:
    user.net.internet.serve_http("hello from far away")
    page = TALK.format(host=INTERNET_ADDRESS, port=80, say=r"printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3")
    assert "hello from far away" in user.ssh("mine/node-1", f"bash -c {json.dumps(page)}")
    user.ssh("mine/node-1", "ping -c 1 -W 10 node-2")
    assert user.run("exec", "mine", "hostname").stdout.count("node-") >= 2


def test_files_ports_and_programs_get_in(user: User, cluster: dict[str, Any], tmp_path: Path) -> None:
    user.run("cp", "-", "mine/node-2:/tmp/greeting", stdin="hello\n")
    assert user.ssh("mine/node-2", "cat /tmp/greeting") == "hello"
    code = "import socket; s = socket.create_connection(('node-2', 22), 20); print(s.recv(8).decode())"
    assert user.run("enter", "mine", "--", sys.executable, "-c", code).stdout.startswith("SSH-2.0-")
    assert user.run("enter", "mine", "--", "id", "-u").stdout.strip() == str(ordinary.UID)
    said = user.python(
        "import fleetbox, socket\n"
        "member = fleetbox.Cluster('mine').member('node-1')\n"
        "print(member.ssh('hostname', check=True).stdout.strip())\n"
        "with member.forward(22) as forward, socket.create_connection(('127.0.0.1', forward.port), 30) as connection:\n"
        "    print(connection.recv(8).decode())\n"
        "with member.connect(22) as connection: print(connection.recv(8).decode())\n"
    )
    assert said.split() == ["node-1", "SSH-2.0-", "SSH-2.0-"]


def test_plain_ssh_gets_in_by_the_configuration(user: User, cluster: dict[str, Any]) -> None:
    config = user.home / "ssh_config"
    config.write_text(user.run("ssh-config", "mine").stdout)
    argv = ordinary.argv("ssh", "-F", str(config), "node-2.mine", "hostname")
    done = subprocess.run(argv, env=user.environment(), capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "node-2", done.stderr


def test_a_fork_has_the_same_addresses_and_open_connections(
    user: User, cluster: dict[str, Any], before: dict[str, Any]
) -> None:
    # A connection between the members that says a number a second, and goes on in both clusters.
    listen = (
        "import socket; s = socket.create_server(('', 7000)); c, _ = s.accept(); "
        "f = open('/tmp/heard', 'wb', 0)\nwhile d := c.recv(99): f.write(d)"
    )
    talk = (
        "import socket, time\ns = socket.create_connection(('node-2', 7000))\n"
        "n = 0\nwhile True:\n n += 1; s.sendall(b'%d\\n' % n); time.sleep(1)"
    )
    for member, code, name in (("node-2", listen, "listen"), ("node-1", talk, "talk")):
        user.run("cp", "-", f"mine/{member}:/tmp/{name}.py", stdin=code)
        user.ssh(
            f"mine/{member}", f"setsid python3 /tmp/{name}.py >/dev/null 2>&1 </dev/null & sleep 1; pgrep -f {name}.py"
        )
    user.ssh("mine/node-2", "until [ -s /tmp/heard ]; do sleep 0.2; done; echo original >/tmp/which")
    user.run("snapshot", "save", "mine", "--name", "talking")
    forked = user.json("clone", "talking", "other", "--network", "private")
    original = user.json("status", "mine")
    assert [m["ip"] for m in forked["members"]] == [m["ip"] for m in original["members"]]
    assert {m["id"] for m in forked["members"]}.isdisjoint(m["id"] for m in original["members"])
    assert visible() == before
    user.ssh("other/node-2", "echo fork >/tmp/which")
    for name, which in (("mine", "original"), ("other", "fork")):
        grown = "n=$(wc -l </tmp/heard); until [ $(wc -l </tmp/heard) -gt $n ]; do sleep 0.2; done; cat /tmp/which"
        assert user.ssh(f"{name}/node-2", grown) == which
    ids = [user.ssh(f"{name}/node-1", "head -c 16 /dev/urandom | od -An -tx1") for name in ("mine", "other")]
    assert ids[0] != ids[1]
    user.run("destroy", "--yes", "other")
    user.run("snapshot", "rm", "talking")


def test_machines_outlive_their_holder_and_the_next_one_joins_them(user: User, cluster: dict[str, Any]) -> None:
    holder = user.json("status", "mine")["holder_pid"]
    os.kill(holder, signal.SIGKILL)
    wait_for_end(holder)
    assert [member["state"] for member in user.json("status", "mine")["members"]] == ["running", "running"]
    assert user.ssh("mine/node-2", "hostname; cat /tmp/which").split() == ["node-2", "original"]
    user.ssh("mine/node-1", "ping -c 1 -W 10 node-2")
    page = TALK.format(host=INTERNET_ADDRESS, port=80, say=r"printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3")
    assert "hello from far away" in user.ssh("mine/node-1", f"bash -c {json.dumps(page)}")
    assert user.json("status", "mine")["holder_pid"] not in (0, holder)


def wait_for_end(pid: int) -> None:
    limit = time.monotonic() + 30 * timeout_scale()
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_others_get_in_nowhere(user: User, cluster: dict[str, Any]) -> None:
    address = cluster["members"][0]["ip"]
    with pytest.raises(OSError, match=r"unreachable|timed out|refused"):
        socket.create_connection((address, 22), 2)  # the host's own network, and so its other users'
    code = (
        "import socket, sys\n"
        "for path in sys.argv[1:]:\n"
        "    try: socket.socket(socket.AF_UNIX).connect(path); print('in')\n"
        "    except PermissionError: print('out')\n"
    )
    sockets = [str(path) for path in user.home.glob("run/*/*.sock")]
    assert len(sockets) >= 2
    argv = ordinary.argv(sys.executable, "-c", code, *sockets, uid=ordinary.UID + 1)
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"out"}
    pid = next(iter(processes_of(user.home)))
    joined = subprocess.run(
        ordinary.argv("nsenter", "-t", str(pid), "-U", "-n", "true", uid=ordinary.UID + 1),
        capture_output=True,
        check=False,
    )
    assert joined.returncode != 0


def test_at_the_end_nothing_is_left_but_files(user: User, cluster: dict[str, Any], before: dict[str, Any]) -> None:
    user.run("destroy", "--yes", "mine")
    assert visible() == before
    assert user.json("ls")["clusters"] == []
    assert not list(user.home.glob("run/*/*.sock"))
    assert not list(user.home.glob("state/networks/fb*"))
