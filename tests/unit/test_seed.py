"""The seed ISO: what cloud-init reads from it, and who can read it on the host."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import stat
import subprocess
from pathlib import Path

import pycdlib
import pytest

from fleetbox.backends.base import Lease
from fleetbox.errors import DiskError
from fleetbox.holder.guest import fixtures
from fleetbox.holder.guest.hostkeys import HostKey
from fleetbox.holder.guest.seed import Seed, network_config, user_data, write_seed
from fleetbox.specs import Fixture

LEASE = Lease("node-1", "192.168.5.2", "02:00:00:00:00:01", 24, "192.168.5.1", ("192.168.5.1",))
HOST_KEY = HostKey("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----\n", "ssh-ed25519 HOST")
SEED = Seed("i-1", "node-1", "demo", "ssh-ed25519 USER fleetbox", HOST_KEY, LEASE)


def read_iso(path: Path) -> dict[str, bytes]:
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    files = {}
    for entry in iso.list_children(rr_path="/"):
        if entry.is_file():
            content = io.BytesIO()
            name = entry.rock_ridge.name().decode()
            iso.get_file_from_iso_fp(content, rr_path=f"/{name}")
            files[name] = content.getvalue()
    iso.close()
    return files


def test_iso_holds_what_nocloud_looks_for(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    write_seed(path, SEED)
    files = read_iso(path)
    assert set(files) == {"meta-data", "user-data", "network-config"}
    assert json.loads(files["meta-data"]) == {"instance-id": "i-1", "local-hostname": "node-1"}
    header, _, body = files["user-data"].partition(b"\n")
    assert header == b"#cloud-config"
    assert json.loads(body) == user_data(SEED)
    assert json.loads(files["network-config"]) == network_config(SEED)


def test_iso_is_found_by_its_label(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    write_seed(path, SEED)
    found = subprocess.run(["blkid", "-p", "-o", "export", path], capture_output=True, text=True, check=True).stdout
    assert "LABEL=cidata\n" in found
    assert "TYPE=iso9660\n" in found


def test_the_host_key_is_for_this_user_only_also_when_a_readable_seed_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    path.write_text("old")
    path.chmod(0o644)
    write_seed(path, SEED)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_equal_seeds_give_equal_files_whatever_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_seed(tmp_path / "a", SEED)
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_seed(tmp_path / "b", dataclasses.replace(SEED))
    write_seed(tmp_path / "c", dataclasses.replace(SEED, hostname="node-2"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_folder_that_is_not_there_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="seed"):
        write_seed(tmp_path / "nowhere" / "seed.iso", SEED)


def test_one_user_with_the_installations_key_and_no_password() -> None:
    [user] = user_data(SEED)["users"]
    assert user["name"] == "fleet"
    assert user["ssh_authorized_keys"] == ["ssh-ed25519 USER fleetbox"]
    assert user["lock_passwd"] is True
    assert user["sudo"] == "ALL=(ALL) NOPASSWD:ALL"


def test_identity_is_the_members_own() -> None:
    config = user_data(SEED)
    assert (config["hostname"], config["fqdn"]) == ("node-1", "node-1.demo")
    assert config["ssh_keys"] == {"ed25519_private": HOST_KEY.private_text, "ed25519_public": "ssh-ed25519 HOST"}


def test_network_is_the_lease() -> None:
    [(name, interface)] = network_config(SEED)["ethernets"].items()
    assert name == interface["set-name"] == "eth0"
    assert interface["match"] == {"macaddress": LEASE.mac}
    assert interface["addresses"] == ["192.168.5.2/24"]
    assert interface["routes"] == [{"to": "0.0.0.0/0", "via": "192.168.5.1"}]
    assert interface["nameservers"] == {"addresses": ["192.168.5.1"], "search": ["demo"]}
    assert [interface[key] for key in ("dhcp4", "dhcp6", "accept-ra")] == [False] * 3


def test_without_dns_and_fixtures_nothing_runs_at_boot() -> None:
    seed = dataclasses.replace(SEED, lease=dataclasses.replace(LEASE, dns=()))
    assert "bootcmd" not in user_data(seed)
    assert "nameservers" not in network_config(seed)["ethernets"]["eth0"]


def run_bootcmd(seed: Seed, root: Path, *, mount_exit: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the boot commands as cloud-init does (one `sh` script), in a folder instead of `/`, with `mount` recorded."""
    tools = root / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "mount").write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {root}/mounts\nexit {mount_exit}\n')
    (tools / "mount").chmod(0o755)
    script = "\n".join(user_data(seed)["bootcmd"])
    script = re.sub(r"(?<=[ '])/(etc|srv|opt)", rf"{root}/\1", script)
    return subprocess.run(["sh"], input=f"PATH={tools}:$PATH\n{script}", capture_output=True, text=True, check=False)


def test_fixtures_are_mounted_read_only_outer_before_inner(tmp_path: Path) -> None:
    guests = ["/srv/data/in", "/srv/data", "/opt/it's", "/srv/$(false);x&"]
    seed = dataclasses.replace(SEED, fixtures=tuple(Fixture("/host", guest) for guest in guests))
    (tmp_path / "etc").mkdir()
    done = run_bootcmd(seed, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    mounts = (tmp_path / "mounts").read_text().splitlines()
    assert mounts == [
        f"-t ext4 -o ro,nosuid,nodev LABEL={fixtures.label(guest)} {tmp_path}{guest}" for guest in sorted(guests)
    ]
    assert all(Path(f"{tmp_path}{guest}").is_dir() for guest in guests)


def test_a_fixture_that_cannot_be_mounted_is_told_and_stops_nothing(tmp_path: Path) -> None:
    seed = dataclasses.replace(SEED, fixtures=(Fixture("/host", "/srv/data"),))
    (tmp_path / "etc").mkdir()
    done = run_bootcmd(seed, tmp_path, mount_exit=32)
    assert done.returncode == 0
    assert "cannot be mounted" in done.stderr


@pytest.mark.parametrize("linked", [False, True])
def test_resolver_is_written_only_where_nobody_else_does(tmp_path: Path, linked: bool) -> None:
    (tmp_path / "etc").mkdir()
    resolver = tmp_path / "etc/resolv.conf"
    (tmp_path / "stub").write_text("nameserver 127.0.0.53\n")
    if linked:
        resolver.symlink_to(tmp_path / "stub")
    assert run_bootcmd(SEED, tmp_path).returncode == 0
    assert resolver.read_text() == ("nameserver 127.0.0.53\n" if linked else "search demo\nnameserver 192.168.5.1\n")
    assert (tmp_path / "stub").read_text() == "nameserver 127.0.0.53\n"


def control_line_argv(
    tmp_path: Path, *, systemd: bool, exit_code: int = 0, device: str = "ttyS1"
) -> tuple[list[str], str]:
    """What the seed's boot commands run as `systemd-run`, and what they say; `systemctl` writes a file of its own."""
    seed = dataclasses.replace(SEED, control_line=device, lease=dataclasses.replace(LEASE, dns=()))
    (tmp_path / "tools").mkdir()
    for name, file in (("systemd-run", "argv"), ("systemctl", "systemctl")):
        program = tmp_path / "tools" / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/{file}\nexit {exit_code}\n')
        program.chmod(0o755)
    if systemd:
        (tmp_path / "run/systemd/system").mkdir(parents=True)
    script = "\n".join(user_data(seed)["bootcmd"]).replace("/run/systemd", f"{tmp_path}/run/systemd")
    done = subprocess.run(
        ["sh"], input=f"PATH={tmp_path}/tools:$PATH\n{script}", capture_output=True, text=True, check=True
    )
    argv = tmp_path / "argv"
    return (argv.read_text().splitlines() if argv.exists() else []), done.stderr


def test_control_line_is_the_distributions_agetty_with_a_bare_shell(tmp_path: Path) -> None:
    argv, said = control_line_argv(tmp_path, systemd=True)
    unit, agetty = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    assert said == ""
    assert "--no-block" in unit  # it starts only when the boot is further than the command that waits for it
    assert {"--setenv=ENV=", "--setenv=PS1=", "--setenv=HISTFILE=/dev/null"} <= set(unit)
    assert agetty[0] == "agetty"
    assert agetty[agetty.index("--login-program") + 1] == "/bin/sh"
    assert agetty[-3:] == ["ttyS1", "115200", "dumb"]
    assert not (tmp_path / "systemctl").exists()


def test_no_login_takes_a_virtualizer_s_console_from_the_control_line(tmp_path: Path) -> None:
    argv, said = control_line_argv(tmp_path, systemd=True, device="hvc0")
    assert said == ""
    assert argv[-3:] == ["hvc0", "115200", "dumb"]
    assert (tmp_path / "systemctl").read_text().split()[-2:] == ["stop", "serial-getty@hvc0.service"]


def test_without_systemd_there_is_no_control_line(tmp_path: Path) -> None:
    assert control_line_argv(tmp_path, systemd=False) == ([], "")


def test_a_control_line_that_fails_is_told_and_stops_nothing(tmp_path: Path) -> None:
    assert "no control line" in control_line_argv(tmp_path, systemd=True, exit_code=1)[1]


def test_no_control_line_unless_asked_for() -> None:
    assert not any("agetty" in command for command in user_data(SEED)["bootcmd"])
