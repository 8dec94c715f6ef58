"""The seed: a NoCloud ISO that makes an image into one certain member, by the image's own cloud-init.

Checked against the sources of cloud-init 20.4 (Debian 11), 22.4 (12), 25.1 (13) and 26.2. NoCloud reads a seed on a
disk anew at every boot, so a seed that was written again takes effect at the next one: `bootcmd` (fixtures, resolver),
the root file system's size and `/etc/hosts` at every boot by default, the network through `updates` (not in 20.4: there
it takes a new instance-id). Users and SSH host keys are set once per instance-id.

All documents are JSON, which is YAML. The network is described in version 2 of the format (netplan's), in the words
that every renderer (netplan, networkd, ifupdown) of all those versions understands and none calls deprecated.
"""

from __future__ import annotations

import io
import shlex
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pycdlib

from fleetbox.backends.base import Lease
from fleetbox.backends.host.disk import disk_errors
from fleetbox.holder.guest import atomicfile, fixtures
from fleetbox.holder.guest.hostkeys import HostKey
from fleetbox.specs import Fixture

USER = "fleet"
INTERFACE = "eth0"


@dataclass(frozen=True)
class Seed:
    """Everything that tells a member from its image.

    cloud-init takes a new `instance_id` for a new machine: keep it while the disk is the same. `authorized_key` is the
    installation's public key. `fixtures` are mounted by their labels when their disks are attached. `control_line` is
    the guest's terminal (`ttyS1`) that becomes the control line, or empty for none; it needs systemd.
    """

    instance_id: str
    hostname: str
    cluster: str
    authorized_key: str
    host_key: HostKey
    lease: Lease
    fixtures: tuple[Fixture, ...] = ()
    control_line: str = ""


def write_seed(path: Path, seed: Seed) -> None:
    """Write the seed's ISO, readable by this user alone (it holds a private key).

    Equal seeds give equal files. Takes a few ms; blocks. Raises DiskError.
    """
    image = _iso(
        {
            "meta-data": _json({"instance-id": seed.instance_id, "local-hostname": seed.hostname}),
            "user-data": b"#cloud-config\n" + _json(user_data(seed)),
            "network-config": _json(network_config(seed)),
        }
    )
    with disk_errors(f"the seed {path} cannot be written"):
        atomicfile.write(path, image)


def user_data(seed: Seed) -> dict[str, Any]:
    """The member's cloud-config."""
    config: dict[str, Any] = {
        "preserve_hostname": False,
        "hostname": seed.hostname,
        "fqdn": f"{seed.hostname}.{seed.cluster}",
        "prefer_fqdn_over_hostname": False,
        "manage_etc_hosts": "localhost",
        "users": [
            {
                "name": USER,
                "gecos": "fleetbox",
                "groups": ["adm", "sudo"],
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "ssh_authorized_keys": [seed.authorized_key],
            }
        ],
        # With keys given, cloud-init generates none of any other type.
        "ssh_deletekeys": True,
        "ssh_keys": {
            "ed25519_private": seed.host_key.private_text,
            "ed25519_public": seed.host_key.public_text,
        },
        "updates": {"network": {"when": ["boot-new-instance", "boot"]}},
        # The rest keeps the boot short: nothing is fetched, generated or rewritten that an image has already.
        "package_update": False,
        "package_upgrade": False,
        "apt": {"preserve_sources_list": True},
        "locale": "false",  # version 22.4's schema wants a string
        "grub_dpkg": {"enabled": False},
        "ssh_publish_hostkeys": {"enabled": False},
        "ssh": {"emit_keys_to_console": False},
        "no_ssh_fingerprints": True,
    }
    commands = [*_control_line_command(seed), *_resolver_command(seed)]
    commands += [mount_command(f) for f in sorted(seed.fixtures, key=lambda f: f.guest)]
    if commands:
        config["bootcmd"] = commands
    return config


def network_config(seed: Seed) -> dict[str, Any]:
    """The member's one interface, found by its MAC address and called `eth0` in every image.

    Router advertisements are off: nobody sends them, and networkd would wait 12 s for one before it calls the interface
    configured. (The networkd renderer of 22.4 drops this setting: an image with it needs a drop-in of its own.)
    """
    lease = seed.lease
    interface: dict[str, Any] = {
        "match": {"macaddress": lease.mac},
        "set-name": INTERFACE,  # without it, 20.4 and 22.4 would look for an interface of the key's name
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "addresses": [f"{lease.ip}/{lease.prefix_length}"],
        "routes": [{"to": "0.0.0.0/0", "via": lease.gateway}],
    }
    if lease.dns:
        interface["nameservers"] = {"addresses": list(lease.dns), "search": [seed.cluster]}
    return {"version": 2, "ethernets": {INTERFACE: interface}}


def _control_line_command(seed: Seed) -> list[str]:
    # The distribution's own agetty with a bare shell on a line that only the machine's owner on the host can open: no
    # login, no history, no profile, no prompts. A unit of this boot alone: nothing is installed. An interactive shell
    # does not end by SIGTERM: without the hangup a shutdown would wait for it.
    if not seed.control_line:
        return []
    unit = ["--unit=fleetbox-control", "--description=Control line", "-p", "Restart=always", "-p", "KillSignal=SIGHUP"]
    unit += [f"--setenv={name}" for name in ("PS1=", "PS2=", "ENV=", "HISTFILE=/dev/null")]
    agetty = ["agetty", "--skip-login", "--login-program", "/bin/sh", "--local-line"]
    agetty += [
        "--noclear",
        "--noissue",
        "--nonewline",
        "--nohostname",
        "--nohints",
        seed.control_line,
        "115200",
        "dumb",
    ]
    run = shlex.join(["systemd-run", "--quiet", "--no-block", "--collect", *unit, "--", *agetty])
    command = f"[ ! -d /run/systemd/system ] || {run} || echo 'fleetbox: no control line' >&2"
    if not seed.control_line.startswith("hvc"):
        return [command]
    # systemd-getty-generator puts a login on every virtualizer's console. It waits in the queue of this boot, and would
    # take the terminal from the shell.
    getty = shlex.join(["systemctl", "--quiet", "--no-block", "stop", f"serial-getty@{seed.control_line}.service"])
    return [f"[ ! -d /run/systemd/system ] || {getty}", command]


def _resolver_command(seed: Seed) -> list[str]:
    # An image without systemd-resolved or resolvconf (both make it a link) has nobody to write this file.
    if not seed.lease.dns:
        return []
    lines = [f"search {seed.cluster}", *(f"nameserver {server}" for server in seed.lease.dns)]
    return [f"[ -L /etc/resolv.conf ] || printf '%s\\n' {shlex.join(lines)} > /etc/resolv.conf"]


def mount_command(fixture: Fixture) -> str:
    # Not cloud-init's `mounts`, which runs once per instance and leaves removed fixtures in /etc/fstab. A fixture that
    # cannot be mounted is told on the console and does not stop the boot.
    guest, label = shlex.quote(fixture.guest), fixtures.label(fixture.guest)
    failure = shlex.quote(f"fleetbox: the fixture {fixture.guest} cannot be mounted")
    return (
        f"{{ [ -d {guest} ] || mkdir -p {guest}; }} && mount -t ext4 -o ro,nosuid,nodev LABEL={label} {guest}"
        f" || echo {failure} >&2"
    )


def _json(document: dict[str, Any]) -> bytes:
    return msgspec.json.encode(document) + b"\n"


# pycdlib takes every date from the clock. Its own clock stands still, so that equal seeds give equal files.
_CLOCK = types.SimpleNamespace(**{**vars(time), "time": lambda: 0.0, "localtime": time.gmtime})
for _module in (pycdlib.pycdlib, pycdlib.headervd, pycdlib.dates, pycdlib.utils):
    _module.time = _CLOCK


def _iso(files: dict[str, bytes]) -> bytes:
    """An ISO 9660 image with Rock Ridge names, labelled as NoCloud wants it."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident="cidata", rock_ridge="1.09")
    for name, content in files.items():
        plain = name.upper().replace("-", "_")
        iso.add_fp(io.BytesIO(content), len(content), f"/{plain}.;1", rr_name=name)
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    return image.getvalue()
