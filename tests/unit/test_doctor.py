"""The doctor finds what is wrong, survives what breaks, and says what to do."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from fleetbox.backends.host import programs
from fleetbox.errors import HostError, NetworkError
from fleetbox.holder.doctor import examine, firewall, hypervisor, machine, network
from fleetbox.holder.doctor.examination import guarded, in_thread
from fleetbox.host import Check


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "search_path", lambda: str(tmp_path))
    monkeypatch.delenv("FLEETBOX_QEMU", raising=False)


def find(checks: tuple[Check, ...], name: str) -> Check:
    [check] = [c for c in checks if c.name == name]
    return check


@pytest.mark.netns
def test_this_host_is_examined_without_touching_its_network(own_network: None, fleetbox_home: Path) -> None:
    report = asyncio.run(examine())
    names = [check.name for check in report.checks]
    assert len(names) == len(set(names))
    assert {"kvm", "backend", "network", "folders", "disk space", *(p.name for p in programs.PROGRAMS)} <= set(names)
    assert report.backend == "qemu"
    assert report.accelerator in ("kvm", "tcg")
    assert report.accelerator in find(report.checks, "backend").message
    assert find(report.checks, "kvm").status == ("ok" if report.accelerator == "kvm" else "warn")
    assert all(check.hint for check in report.checks if check.status != "ok")
    assert all(check.why for check in report.checks)
    assert [name for _, name in socket.if_nameindex()] == ["lo"]


@pytest.mark.usefixtures("no_programs")
def test_missing_programs_fail_with_their_package(fleetbox_home: Path) -> None:
    report = asyncio.run(examine())
    for program in programs.PROGRAMS:
        check = find(report.checks, program.name)
        assert check.status == ("warn" if program.optional else "fail")
        assert program.package in check.hint
        assert check.why
        assert check.fixable
    assert report.accelerator == "tcg"
    assert find(report.checks, "folders").status == "ok"


def test_an_unknown_backend_is_one_failed_check(fleetbox_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_BACKEND", "nonsense")
    report = asyncio.run(examine())
    assert find(report.checks, "backend").status == "fail"
    assert report.backend == ""


def test_a_check_that_hangs_or_breaks_is_a_finding() -> None:
    hanging = threading.Event()

    def breaks() -> Check:
        raise ZeroDivisionError("by design")

    def refuses() -> Check:
        raise HostError("no", why="reason", hint="do this")

    async def scenario() -> list[Check]:
        return await asyncio.gather(
            guarded("hang", in_thread(lambda: Check("hang", "ok", str(hanging.wait()))), limit_s=0.01),
            guarded("break", in_thread(breaks)),
            guarded("refuse", in_thread(refuses)),
            guarded("fine", in_thread(lambda: Check("fine", "ok", "all right"))),
        )

    begun = time.monotonic()
    hang, broken, refused, fine = asyncio.run(scenario())
    assert time.monotonic() - begun < 60  # the thread that hangs is not waited for
    hanging.set()
    assert (hang.status, broken.status, refused.status, fine.status) == ("warn", "warn", "fail", "ok")
    assert "by design" in broken.message
    assert refused.hint == "do this"


@pytest.mark.netns
@pytest.mark.usefixtures("no_programs")
def test_a_network_without_nft_fails_and_names_the_package() -> None:
    check = asyncio.run(in_thread(network.check))
    assert check.status == "fail"
    assert "nftables" in check.hint


@pytest.mark.netns
def test_other_firewalls_are_named(own_network: None) -> None:
    assert firewall.check_forward() == Check("firewall", "ok", "nothing drops forwarded packets")
    rules = """
      table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }
      table inet kind { chain forward { type filter hook forward priority filter; policy accept; }; }
      table ip other { chain INPUT { type filter hook input priority filter; policy drop; }; }
    """
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    check = firewall.check_forward()
    assert "ip filter FORWARD drops" in check.message
    assert "kind" not in check.message
    assert "other" not in check.message


def test_folders_open_to_others_are_named(fleetbox_home: Path) -> None:
    assert machine.check_folders().status == "ok"  # none is there yet: they can be made
    run = fleetbox_home / "run"
    run.mkdir()
    run.chmod(0o755)
    check = machine.check_folders()
    assert check.status == "fail"
    assert f"{run} is open to others (mode 755)" in check.message
    run.chmod(0o700)
    assert machine.check_folders().status == "ok"
    (fleetbox_home / "data").write_text("a file where a folder should be")
    assert "data is not a folder" in machine.check_folders().message


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away, which takes root")
def test_folders_of_somebody_else_are_named(fleetbox_home: Path) -> None:
    (fleetbox_home / "state").mkdir(mode=0o700)
    os.chown(fleetbox_home / "state", 12345, -1)
    assert "state belongs to uid 12345" in machine.check_folders().message


def test_disk_space_fails_warns_and_passes(fleetbox_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "TOO_LOW_DISK_BYTES", 0)
    monkeypatch.setattr(machine, "LOW_DISK_BYTES", 0)
    assert machine.check_disk_space().status == "ok"
    monkeypatch.setattr(machine, "LOW_DISK_BYTES", 1 << 60)
    assert machine.check_disk_space().status == "warn"
    monkeypatch.setattr(machine, "TOO_LOW_DISK_BYTES", 1 << 60)
    assert machine.check_disk_space().status == "fail"
    assert machine.check_disk_space().hint


def test_a_clock_behind_what_was_written_is_named(fleetbox_home: Path) -> None:
    assert machine.check_clock().status == "ok"
    (fleetbox_home / "state").mkdir()
    written = (fleetbox_home / "state").stat().st_mtime
    assert machine.check_clock(lambda: written - machine.SKEW_S + 1).status == "ok"
    check = machine.check_clock(lambda: written - 3600)
    assert check.status == "warn"
    assert "3600 s behind" in check.message
    assert "set-ntp" in check.hint


@pytest.mark.parametrize(("value", "words"), [("1", "on;"), ("0", "off"), (None, "not loaded")])
def test_bridge_netfilter_is_information(tmp_path: Path, value: str | None, words: str) -> None:
    if value is not None:
        setting = tmp_path / "net/bridge/bridge-nf-call-iptables"
        setting.parent.mkdir(parents=True)
        setting.write_text(value + "\n")
    check = firewall.check_bridge(tmp_path)
    assert check.status == "ok"
    assert check.message.startswith(words)


@pytest.mark.netns
def test_strict_source_validation_matters_where_rules_route(own_network: None, tmp_path: Path) -> None:
    for scope, value in (("all", "1"), ("default", "0")):
        setting = tmp_path / f"net/ipv4/conf/{scope}/rp_filter"
        setting.parent.mkdir(parents=True)
        setting.write_text(value + "\n")
    assert firewall.check_rp(tmp_path) == Check("rp_filter", "ok", "all strict, default off")
    subprocess.run(["ip", "rule", "add", "fwmark", "7", "table", "77"], check=True)
    check = firewall.check_rp(tmp_path)
    assert check.status == "warn"
    assert "rp_filter=2" in check.hint


@pytest.mark.netns
def test_subnets_that_routes_take_are_named(own_network: None) -> None:
    assert network.check_subnets().status == "ok"
    subprocess.run(["ip", "link", "add", "vpn", "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", "vpn", "up"], check=True)
    subprocess.run(["ip", "route", "add", "192.168.7.0/24", "dev", "vpn"], check=True)
    check = network.check_subnets()
    assert check.status == "ok"
    assert "192.168.7.0/24" in check.message
    subprocess.run(["ip", "route", "add", "10.0.0.0/8", "dev", "vpn"], check=True)
    check = network.check_subnets()
    assert check.status == "warn"
    assert "10.0.0.0/8 covers a whole pool" in check.message
    subprocess.run(["ip", "route", "add", "192.168.0.0/16", "dev", "vpn"], check=True)
    with pytest.raises(NetworkError, match="no free subnet"):
        network.check_subnets()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")
def test_a_kvm_device_that_is_denied_names_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hypervisor.check_kvm_access(tmp_path / "kvm").status == "ok"
    device = tmp_path / "kvm"
    device.touch(mode=0o660)
    assert hypervisor.check_kvm_access(device).status == "ok"
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may open everything
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr(os, "getegid", lambda: 65534)
    check = hypervisor.check_kvm_access(device)
    assert check.status == "warn"
    assert "sudo usermod -aG root nobody" in check.hint
    monkeypatch.setattr(os, "getgrouplist", lambda user, gid: [0])
    assert "this session is not" in hypervisor.check_kvm_access(device).message


@pytest.mark.netns
def test_private_networks_are_tried_in_a_child(own_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    check = network.check_private()
    assert check.status == "ok"
    assert "pasta" in check.message
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    find = programs.find
    monkeypatch.setattr(programs, "find", lambda name: None if name in ("pasta", "slirp4netns") else find(name))
    check = network.check_private()
    assert check.status == "warn"
    assert "lead nowhere" in check.message
    assert "passt" in check.hint


@pytest.mark.netns
@pytest.mark.parametrize("needed", [False, True])
def test_private_networks_that_cannot_be_made_matter_to_who_needs_them(
    own_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, needed: bool
) -> None:
    child = tmp_path / "python"
    child.write_text("#!/bin/sh\nprintf 'it cannot be made: AppArmor\\nrun: this' >&2; exit 1\n")
    child.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(child))
    monkeypatch.setattr(network, "may_use_the_hosts", lambda: not needed)
    check = network.check_private()
    assert check == Check("private networks", "fail" if needed else "warn", "it cannot be made: AppArmor", "run: this")


def test_an_ordinary_user_is_told_of_private_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "may_use_the_hosts", lambda: False)
    check = network.check()
    assert check.status == "ok"
    assert "private" in check.message
