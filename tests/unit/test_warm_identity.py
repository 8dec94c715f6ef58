"""What a clone is told, and what its program makes of a guest: run by a real perl in a folder instead of `/`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import subprocess
import uuid
from pathlib import Path

import pytest

from fleetbox.backends.base import Lease
from fleetbox.errors import FleetboxError
from fleetbox.holder.guest.hostkeys import HostKey
from fleetbox.holder.warm.identity import NewIdentity, machine_id, told
from fleetbox.holder.warm.program import PROGRAM

OLD = Lease("template", "192.168.7.250", "02:aa:bb:cc:dd:01", 24, "192.168.7.1", ("192.168.7.1",))
NEW = Lease("node-1", "10.64.9.3", "0a:11:22:33:44:55", 20, "10.64.0.1", ("10.64.0.1", "10.64.0.2"))
KEY = HostKey("-----BEGIN OPENSSH PRIVATE KEY-----\nbmV3\n-----END OPENSSH PRIVATE KEY-----\n", "ssh-ed25519 NEW")
IDENTITY = NewIdentity("node-1", "demo", "pool", OLD, NEW, machine_id("m1"), "i-m1", KEY)
NONCE = "0123456789abcdef" * 2
WAS_ID = "755c5b6691c04541a9333d157be04ec9"

NETWORKD = """\
[Match]
MACAddress=02:AA:BB:CC:DD:01
Name=eth0

[Network]
Address=192.168.7.250/24
DNS=192.168.7.1
Domains=pool
Gateway=192.168.7.1
"""
NETPLAN = """\
network:
  ethernets:
    eth0:
      addresses: [192.168.7.250/24, 192.168.7.25/24]
      match: {macaddress: '02:aa:bb:cc:dd:01'}
      nameservers:
        search: [pool, swimming-pool, pool.example.org]
      routes:
      - {to: default, via: 192.168.7.1}
"""


def guest(root: Path) -> None:
    """The files of a template's guest."""
    files = {
        "etc/hostname": "warm-template\n",
        "etc/hosts": "127.0.0.1 localhost\n127.0.1.1\twarm-template.pool\twarm-template\n10.0.0.9 my-own\n",
        "etc/machine-id": f"{WAS_ID}\n",
        "etc/ssh/ssh_host_ed25519_key": "old private\n",
        "etc/ssh/ssh_host_rsa_key": "old rsa\n",
        "etc/ssh/ssh_host_rsa_key.pub": "old rsa\n",
        "etc/ssh/sshd_config": "UsePAM yes\n",
        "etc/systemd/network/10-cloud-init-eth0.network": NETWORKD,
        "etc/systemd/network/10-eth0.network.d/own.conf": "[Network]\nAddress=192.168.7.250/24\n",
        "etc/netplan/50-cloud-init.yaml": NETPLAN,
        "etc/resolv.conf": "search pool\nnameserver 192.168.7.1\n",
        "proc/sys/kernel/hostname": "",
        "run/machine-id": f"{WAS_ID}\n",
        "run/systemd/netif/links/2": "DNS=192.168.7.1\nDOMAINS=pool\nDHCP6_CLIENT_DUID=x\n",
        "run/udev/data/n2": "E:ID_NET_NAME_MAC=enx02aabbccdd01\nE:ID_NET_NAME=eth0\n",
        "run/cloud-init/.instance-id": "i-template\n",
        "run/cloud-init/instance-data-sensitive.json": "old private\n",
        "run/cloud-init/instance-data.json": json.dumps({"instance-id": "i-template", "host": "warm-template"}),
        "var/lib/cloud/data/instance-id": "i-template\n",
        "var/lib/cloud/data/previous-instance-id": "NO_PREVIOUS_INSTANCE_ID\n",
        "var/lib/cloud/data/previous-hostname": "warm-template\n",
        "var/lib/cloud/data/set-hostname": '{"fqdn": "warm-template.pool", "hostname": "warm-template"}',
        "var/lib/cloud/instances/i-template/sem/config_users_groups": "done\n",
        "var/lib/cloud/instances/i-template/obj.pkl": "old private\n",
        "var/lib/cloud/instances/i-template/user-data.txt": "old private\n",
        "var/lib/dhcp/dhclient.eth0.leases": "lease\n",
        "var/lib/systemd/random-seed": "old seed",
        f"var/log/journal/{WAS_ID}/system.journal": "log",
        "home/fleet/notes": "warm-template 192.168.7.250\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "etc/ssh/ssh_host_ed25519_key").chmod(0o600)
    (root / "etc/netplan/50-cloud-init.yaml").chmod(0o600)
    (root / "dev").mkdir()
    (root / "dev/urandom").write_bytes(os.urandom(512))
    (root / "var/lib/cloud/instance").symlink_to("/var/lib/cloud/instances/i-template")


def run(root: Path, data: bytes) -> str:
    """Run the program as a guest's shell does; returns its answer."""
    said = root.parent / "told"
    said.write_bytes(data)
    done = subprocess.run(
        ["sh", "-c", f"perl -e '{PROGRAM}' <{said}"],
        env={"PATH": os.environ["PATH"], "ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("fleetbox:waiting\n")
    [answer] = re.findall(rf"^fleetbox:{NONCE}:(.*)\n", done.stdout, re.MULTILINE)
    assert done.returncode == (answer != "ok")
    return str(answer)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.is_symlink()}


# There is no interface in the folder: all else is done all the same.
NO_INTERFACE = "network: no interface has the address 02:aa:bb:cc:dd:01 "


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    guest(folder)
    return folder


def test_nothing_of_the_old_machine_stays(root: Path) -> None:
    assert run(root, told(IDENTITY, NONCE, 1)) == NO_INTERFACE
    old = (b"warm-template", b"02:aa:bb:cc:dd:01", b"02aabbccdd01", b"192.168.7.250", b"192.168.7.1\n", b"i-template")
    for name, content in contents(root).items():
        if name != "home/fleet/notes":
            assert not [word for word in (*old, WAS_ID.encode(), b"old ") if word in content.lower()], name
    left = [path.name for path in root.rglob("*") if WAS_ID in path.name or "template" in path.name or "~" in path.name]
    assert left == []
    assert (root / "home/fleet/notes").read_text() == "warm-template 192.168.7.250\n"  # a user's file is his own
    assert not list((root / "var/lib/dhcp").iterdir())


def test_the_new_machine_is_all_there(root: Path) -> None:
    run(root, told(IDENTITY, NONCE, 1))
    text = {name: content.decode(errors="replace") for name, content in contents(root).items()}
    assert text["etc/hostname"] == "node-1\n"
    assert text["proc/sys/kernel/hostname"] == "node-1"
    assert text["etc/hosts"] == "127.0.0.1 localhost\n127.0.1.1\tnode-1.demo\tnode-1\n10.0.0.9 my-own\n"
    assert text["etc/machine-id"] == text["run/machine-id"] == f"{IDENTITY.machine_id}\n"
    assert text["etc/ssh/ssh_host_ed25519_key"] == KEY.private_text
    assert text["etc/ssh/ssh_host_ed25519_key.pub"] == "ssh-ed25519 NEW\n"
    assert sorted(name for name in text if name.startswith("etc/ssh/")) == [
        "etc/ssh/ssh_host_ed25519_key",
        "etc/ssh/ssh_host_ed25519_key.pub",
        "etc/ssh/sshd_config",
    ]
    assert len((root / "var/lib/systemd/random-seed").read_bytes()) == 512
    assert f"var/log/journal/{IDENTITY.machine_id}/system.journal" in text
    modes = {"etc/ssh/ssh_host_ed25519_key": 0o600, "etc/netplan/50-cloud-init.yaml": 0o600, "etc/hosts": 0o644}
    assert {name: stat.S_IMODE((root / name).stat().st_mode) for name in modes} == modes


def test_network_files_of_every_renderer_follow_and_only_whole_words_change(root: Path) -> None:
    run(root, told(IDENTITY, NONCE, 1))
    networkd = (root / "etc/systemd/network/10-cloud-init-eth0.network").read_text()
    assert networkd == (
        "[Match]\nMACAddress=0a:11:22:33:44:55\nName=eth0\n\n[Network]\nAddress=10.64.9.3/20\n"
        "DNS=10.64.0.1 10.64.0.2\nDomains=demo\nGateway=10.64.0.1\n"
    )
    assert "10.64.9.3/20" in (root / "etc/systemd/network/10-eth0.network.d/own.conf").read_text()
    netplan = (root / "etc/netplan/50-cloud-init.yaml").read_text()
    assert "addresses: [10.64.9.3/20, 192.168.7.25/24]" in netplan
    assert "{macaddress: '0a:11:22:33:44:55'}" in netplan
    assert "search: [demo, swimming-pool, pool.example.org]" in netplan
    assert "via: 10.64.0.1}" in netplan
    assert (root / "run/udev/data/n2").read_text() == "E:ID_NET_NAME_MAC=enx0a1122334455\nE:ID_NET_NAME=eth0\n"
    assert (root / "run/systemd/netif/links/2").read_text().startswith("DNS=10.64.0.1 10.64.0.2\nDOMAINS=demo\n")
    assert (root / "etc/resolv.conf").read_text() == "search demo\nnameserver 10.64.0.1\nnameserver 10.64.0.2\n"


def test_cloud_init_takes_it_for_the_machine_that_it_has_set_up(root: Path) -> None:
    run(root, told(IDENTITY, NONCE, 1))
    cloud = root / "var/lib/cloud"
    assert (cloud / "instance").readlink() == Path("/var/lib/cloud/instances/i-m1")
    assert [path.name for path in (cloud / "instances").iterdir()] == ["i-m1"]
    assert (cloud / "instances/i-m1/sem/config_users_groups").read_text() == "done\n"
    for name in ("instance-id", "previous-instance-id"):
        assert (cloud / "data" / name).read_text() == "i-m1\n"
    assert (cloud / "data/previous-hostname").read_text() == "node-1\n"
    assert json.loads((cloud / "data/set-hostname").read_text()) == {"fqdn": "node-1.demo", "hostname": "node-1"}
    assert json.loads((root / "run/cloud-init/instance-data.json").read_text()) == {
        "instance-id": "i-m1",
        "host": "node-1",
    }


def test_done_twice_is_done_once(root: Path) -> None:
    run(root, told(IDENTITY, NONCE, 1))
    once = contents(root)
    run(root, told(IDENTITY, NONCE, 1))
    twice = contents(root)
    for files in (once, twice):
        del files["var/lib/systemd/random-seed"]
    assert once == twice


def test_files_that_a_guest_lacks_are_not_made_up(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("etc/ssh", "proc/sys/kernel"):
        (root / name).mkdir(parents=True)
    (root / "proc/sys/kernel/hostname").touch()
    assert run(root, told(IDENTITY, NONCE, 1)) == NO_INTERFACE
    assert {name for name in contents(root) if name.startswith(("var", "run"))} == set()


def test_a_step_that_fails_is_told_and_the_others_are_done(root: Path) -> None:
    (root / "etc/hosts").unlink()
    (root / "etc/hosts").mkdir()
    answer = run(root, told(IDENTITY, NONCE, 1))
    assert answer.startswith("hosts: ")
    assert (root / "etc/machine-id").read_text() == f"{IDENTITY.machine_id}\n"


def test_a_link_in_the_guest_is_replaced_never_followed(root: Path) -> None:
    victim = root / "home/fleet/notes"
    (root / "etc/ssh/ssh_host_ed25519_key").unlink()
    (root / "etc/ssh/ssh_host_ed25519_key").symlink_to(victim)
    (root / "etc/systemd/network/own.network").symlink_to(victim)
    run(root, told(IDENTITY, NONCE, 1))
    assert victim.read_text() == "warm-template 192.168.7.250\n"
    assert not (root / "etc/ssh/ssh_host_ed25519_key").is_symlink()


def test_without_its_nonce_the_program_touches_nothing(root: Path) -> None:
    before = contents(root)
    cut = told(IDENTITY, NONCE, 1).partition(b"# nonce")[0]
    done = subprocess.run(["perl", "-e", PROGRAM], input=cut, env={"ROOT": str(root)}, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"fleetbox:waiting\n")
    assert contents(root) == before


@pytest.mark.netns
def test_the_interface_follows_the_files(root: Path) -> None:
    script = f"""
        ip link add eth7 address {OLD.mac} type veth peer name eth8; ip link set eth7 up; ip link set eth8 up
        ip addr add {OLD.ip}/24 dev eth7 && ip route add default via {OLD.gateway}
        mkdir -p {root}/sys/class/net/eth7 {root}/sys/class/net/lo
        ip -o link show eth7 | cut -d: -f1 >{root}/sys/class/net/eth7/ifindex
        echo {OLD.mac} >{root}/sys/class/net/eth7/address
        echo 00:00:00:00:00:00 >{root}/sys/class/net/lo/address
        for turn in 1 2; do perl -e '{PROGRAM}' <{root}/told; done
        ip -j addr show eth7; ip -j route; ip -j -6 addr show eth7
    """
    (root / "told").write_bytes(told(IDENTITY, NONCE, 1))
    env = {"PATH": os.environ["PATH"], "ROOT": str(root)}
    done = subprocess.run(["unshare", "-n", "sh", "-ec", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = re.findall(rf"fleetbox:{NONCE}:(.*)\n", done.stdout)
    assert answers == ["ok", "ok"]
    [link], routes, [link6] = (json.loads(line) for line in done.stdout.splitlines()[-3:])
    assert link["address"] == NEW.mac
    assert [(a["local"], a["prefixlen"], a["broadcast"]) for a in link["addr_info"] if a["family"] == "inet"] == [
        (NEW.ip, 20, "10.64.15.255")
    ]
    assert [a["local"] for a in link6["addr_info"] if a] == ["fe80::811:22ff:fe33:4455"]
    assert [(r["dst"], r.get("gateway")) for r in routes] == [("default", NEW.gateway), ("10.64.0.0/20", None)]


HOSTILE = ["a'b", "a\nb", "$(id)", "a;b", "../x", "", "x" * 64, "-x", 'a"b']


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", ["hostname", "cluster", "old_cluster", "machine_id", "instance_id"])
def test_names_that_would_be_more_than_names_are_refused(name: str, value: str) -> None:
    if name == "instance_id" and value == "x" * 64:
        return
    with pytest.raises((ValueError, FleetboxError)):
        dataclasses.replace(IDENTITY, **{name: value})


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", ["ip", "mac", "gateway", "dns"])
def test_addresses_that_are_none_are_refused(name: str, value: str) -> None:
    if name == "gateway" and not value:
        return
    lease = dataclasses.replace(NEW, **{name: (value,) if name == "dns" else value})
    for age in ("old", "new"):
        with pytest.raises(ValueError, match="is not a"):
            dataclasses.replace(IDENTITY, **{age: lease})


def test_what_is_told_is_hexadecimal_in_short_lines_that_a_shell_takes_for_comments(tmp_path: Path) -> None:
    key = HostKey("'$(touch hit)`touch hit`\n.\n# .\n", "ssh-ed25519 '; touch hit")
    data = told(dataclasses.replace(IDENTITY, host_key=key), NONCE, 1)
    assert data.isascii()
    assert re.fullmatch(rb"(# \w+ [0-9a-f]*\n)+# \.\n", data)
    assert max(map(len, data.splitlines())) < 4095
    done = subprocess.run(["sh"], input=data, cwd=tmp_path, capture_output=True, check=True)
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == (b"", b"", [])
    root = tmp_path / "root"
    root.mkdir()
    guest(root)
    run(root, data)
    assert (root / "etc/ssh/ssh_host_ed25519_key").read_text() == key.private_text
    assert not list(tmp_path.rglob("hit"))


def test_a_key_too_long_for_the_line_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        told(dataclasses.replace(IDENTITY, host_key=HostKey("x" * 2048, "ssh-ed25519 X")), NONCE, 1)


def test_a_nonce_is_a_nonce() -> None:
    with pytest.raises(ValueError, match="nonce"):
        told(IDENTITY, "x" * 32, 1)


def test_entropy_differs_each_time_and_is_never_shown() -> None:
    again = NewIdentity("node-1", "demo", "pool", OLD, NEW, machine_id("m1"), "i-m1", KEY)
    assert again.entropy != IDENTITY.entropy
    assert repr(IDENTITY.entropy) not in repr(IDENTITY)
    with pytest.raises(ValueError, match="entropy"):
        dataclasses.replace(IDENTITY, entropy=b"short")


def test_a_machine_id_is_the_members_own_and_stays() -> None:
    assert machine_id("a") == machine_id("a") != machine_id("b")
    value = uuid.UUID(machine_id("a"))
    assert (value.version, value.variant) == (4, uuid.RFC_4122)


def test_the_program_is_a_shell_word_in_lines_that_a_terminal_takes() -> None:
    assert "'" not in PROGRAM
    assert max(map(len, PROGRAM.splitlines())) < 4000
    subprocess.run(["perl", "-wc", "-e", PROGRAM], check=True, capture_output=True)


def test_a_guest_of_another_installation_lets_us_in(root: Path) -> None:
    keys = root / "home/fleet/.ssh/authorized_keys"
    keys.parent.mkdir(parents=True)
    keys.write_text("ssh-ed25519 THEIRS\n")
    keys.chmod(0o600)
    ours = dataclasses.replace(IDENTITY, authorized_key="ssh-ed25519 OURS")
    for _ in range(2):
        run(root, told(ours, NONCE, 1))
        assert keys.read_text() == "ssh-ed25519 THEIRS\n\nssh-ed25519 OURS\n"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
