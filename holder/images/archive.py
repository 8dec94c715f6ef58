"""Images built from the distribution's signed archive by mmdebstrap(1): Debian as its cloud images have it, smaller.

No mirror is named here: the host's own apt configuration says where the archive is, or mmdebstrap's default does. The
disk is one ext4 file system without partitions, so a machine starts from its kernel directly and its file system grows
by cloud-init's resizefs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import uuid
from collections.abc import Sequence
from pathlib import Path

import psutil

from fleetbox.backends.host import process, programs
from fleetbox.backends.host.files import worker
from fleetbox.backends.host.files.worker import Meter, OnEvent
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import HostError, ImageError, UsageError
from fleetbox.holder.images import aptsources, catalog
from fleetbox.sizes import GIB, format_size
from fleetbox.wire import Notice

_PACKAGES = (
    *("systemd", "systemd-sysv", "systemd-timesyncd", "dbus", "libpam-systemd", "udev", "kmod"),
    *("cloud-init", "cloud-guest-utils", "e2fsprogs", "openssh-server", "sudo", "ca-certificates"),
    *("iproute2", "iputils-ping", "netcat-openbsd", "curl", "less", "procps", "lz4", "zstd"),
)
_RESOLVED_IN_SYSTEMD = ("bullseye",)
_MIN_DISK_BYTES = 4 * GIB
_NEEDED_BYTES = 2 * GIB
_STEP = "build"

# mmdebstrap mounts /proc, /sys and /dev into the chroot. In namespaces of its own these never show on the host, where a
# clean-up could walk into them, and go with the build however it ends: also when this process is killed.
_ISOLATED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)

# The newest features that every supported guest's kernel and e2fsck know; the host's own defaults may be newer.
_FEATURES = (
    "none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,has_journal,extent,huge_file,flex_bg,"
    "metadata_csum,64bit,dir_nlink,extra_isize"
)

# What machines of qemu, cloud-hypervisor and firecracker need to reach their disk: a few MiB instead of 40, which an
# emulated guest unpacks in a fraction of the time.
_INITRAMFS_MODULES = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "virtio_net", "virtio_console", "virtio_rng"),
    *("nvme", "ahci", "sd_mod", "ext4"),
)
# Written before the packages are installed, so that their scripts find it; none of it is any package's own file.
_FILES = {
    "etc/initramfs-tools/conf.d/fleetbox": "MODULES=list\nCOMPRESS=lz4\nFSTYPE=ext4\n",
    "usr/share/initramfs-tools/modules.d/fleetbox": "\n".join(_INITRAMFS_MODULES) + "\n",
    "etc/cloud/cloud.cfg.d/90_fleetbox.cfg": (
        "datasource_list: [NoCloud, None]\n"
        "locale: C.UTF-8\n"
        "apt: {preserve_sources_list: true}\n"
        "grub_dpkg: {enabled: false}\n"
    ),
    # cloud-init's networkd renderer drops `accept-ra: false`; networkd would wait 12 s for a router's advertisement.
    "etc/systemd/network/10-cloud-init-eth0.network.d/fleetbox.conf": "[Network]\nIPv6AcceptRA=no\n",
    "etc/fstab": "LABEL=root / ext4 defaults,errors=remount-ro 0 1\n",
}
_TIMERS = "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer"
_FINISH = f"""\
chroot "$1" systemctl enable systemd-networkd.service systemd-resolved.service
for unit in {_TIMERS} e2scrub_reap.service; do
  if [ -e "$1/usr/lib/systemd/system/$unit" ] || [ -e "$1/lib/systemd/system/$unit" ]; then
    chroot "$1" systemctl disable "$unit"
  fi
done
rm -f "$1"/etc/ssh/ssh_host_* "$1/etc/hostname" "$1/var/lib/dbus/machine-id" "$1/etc/resolv.conf"
rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
ln -s ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"
: > "$1/etc/machine-id"
"""


async def build(suite: str, folder: Path, include: Sequence[str], scripts: Sequence[str], on_event: OnEvent) -> Path:
    """Build Debian's release `suite` with further packages and scripts, and return the raw disk in `folder`.

    `folder` is the caller's to remove. Raises HostError when this host cannot build, UsageError for a script that is
    not there, ImageError when the build fails. Cancelled, every process of the build has ended.
    """
    for script in scripts:
        if not Path(script).is_file():
            raise UsageError(f"there is no script {script}", hint="--run takes a file on this host")
    for package in include:
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]*(?::[a-z0-9]+)?", package):
            raise UsageError(f"{package!r} is not a package name", hint="for example --include python3-yaml")
    programs.require("mmdebstrap")
    programs.require("mke2fs")
    if os.geteuid() != 0:
        raise HostError("images are built as root only", hint="run `sudo fleetbox image build`, or import an image")
    _check_space(folder)
    with worker.step(on_event, _STEP, f"Debian {suite}"):
        root = folder / "root"
        argv = await _mmdebstrap(suite, root, folder, include, scripts, on_event)
        await _run(argv, folder / "build.log", Meter(on_event, _STEP, f"Debian {suite}", "percent"))
        return await _make_disk(root, folder / "build.raw")


def _check_space(folder: Path) -> None:
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < _NEEDED_BYTES:
        raise ImageError(
            "there is no space to build an image",
            why=f"it needs {format_size(_NEEDED_BYTES)}, {format_size(free)} are free",
            hint=f"free some in {folder.parent}",
        )


async def _mmdebstrap(
    suite: str, root: Path, folder: Path, include: Sequence[str], scripts: Sequence[str], on_event: OnEvent
) -> list[str]:
    sources, left_out = await worker.run(lambda _: _sources(suite))
    if left_out:
        on_event(Notice(message=f"not used for the image: {'; '.join(left_out)}"))
    (folder / "apt.conf").write_text(await worker.run(lambda _: aptsources.apt_options()))
    configure, finish = folder / "configure.sh", folder / "finish.sh"
    lines = ["set -e"]
    for path, content in _FILES.items():
        lines += [f'mkdir -p "$1/{Path(path).parent}"', f'printf %s {shlex.quote(content)} > "$1/{path}"']
    configure.write_text("\n".join(lines) + "\n")
    finish.write_text("set -e\n" + _FINISH)
    packages = [f"linux-image-cloud-{catalog.host_architecture()}", *_PACKAGES, *include]
    if suite not in _RESOLVED_IN_SYSTEMD:
        packages.append("systemd-resolved")
    argv = [*_ISOLATED, "mmdebstrap", "--verbose", "--mode=root", "--variant=minbase", "--format=directory"]
    argv += [f"--aptopt={folder / 'apt.conf'}", "--dpkgopt=force-unsafe-io"]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("man", "locale")]
    argv += [f"--include={','.join(packages)}", f'--essential-hook=sh {shlex.quote(str(configure))} "$1"']
    argv += [f"--customize-hook={_script_hook(Path(script))}" for script in scripts]
    argv += [f'--customize-hook=sh {shlex.quote(str(finish))} "$1"', suite, str(root)]
    if sources:
        (folder / "debian.sources").write_text("\n".join(source.deb822() for source in sources))
        argv.append(str(folder / "debian.sources"))
    return argv


def _sources(suite: str) -> tuple[list[aptsources.Source], list[str]]:
    codename = aptsources.host_codename()
    return aptsources.archive_sources(suite, codename, aptsources.read_sources(), aptsources.fetch_origin)


def _script_hook(script: Path) -> str:
    """Runs a script of the host inside the chroot, by its `#!` line or else by sh."""
    inside = "/root/.fleetbox-run"
    with script.open("rb") as file:
        shebang = file.read(2) == b"#!"
    command = inside if shebang else f"sh {inside}"
    source = shlex.quote(str(script.absolute()))
    return f'install -m 0700 {source} "$1{inside}" && chroot "$1" {command} && rm "$1{inside}"'


async def _run(argv: Sequence[str], log: Path, meter: Meter) -> None:
    host = HostThread("mmdebstrap")
    try:
        child = await process.spawn(host, argv, log_file=log, extra_env={"DEBIAN_FRONTEND": "noninteractive"})
        waiting = asyncio.ensure_future(child.wait())
        progress = _BuildProgress(log)
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=0.25)
                meter.update(*progress.read())
            code = waiting.result()
        finally:
            await _kill(child, waiting)
            child.close()
    finally:
        host.close()
    if code != 0:
        lines = process.tail(log, 200, 1 << 16)
        errors = [line for line in lines if line.startswith(("E: ", "Err:", "dpkg: error", "update-initramfs: fail"))]
        raise ImageError(
            "the image cannot be built from the archive",
            why=(errors or lines or ["mmdebstrap failed"])[0].removeprefix("E: "),
            hint="check that `apt update` works on this host, and the names of packages and scripts",
            details=lines[-20:],
        )


async def _kill(child: process.Process, waiting: asyncio.Future[int | None]) -> None:
    """End a build at once. unshare(1) outlives its only child, the first process of its pid namespace, and that ends
    last of all that run there: when `waiting` is done, nothing of the build runs or is mounted.
    """
    while not waiting.done():
        with contextlib.suppress(psutil.NoSuchProcess):
            for first in psutil.Process(child.pid).children():
                first.kill()
        await asyncio.wait({waiting}, timeout=0.1)


class _BuildProgress:
    """Percent done and what is going on, from mmdebstrap's verbose output."""

    _STAGES = (
        ("running apt-get update", 2.0, 10.0),
        ("downloading packages", 10.0, 25.0),
        ("extracting archives", 25.0, 30.0),
        ("installing essential", 30.0, 40.0),
        ("installing remaining", 40.0, 85.0),
        ("running --customize-hook", 85.0, 95.0),
        ("cleaning package lists", 95.0, 97.0),
    )

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = 0
        self._low = self._high = 0.0
        self._lines = 0
        self._message = ""

    def read(self) -> tuple[float, float, str]:
        """(percent, 100, message) as of now."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data.rpartition(b"\n")[0]
        self._offset += len(whole) + 1 if whole else 0
        for line in whole.decode(errors="replace").splitlines():
            self._lines += 1
            for text, low, high in self._STAGES:
                if line.startswith(f"I: {text}"):
                    self._low, self._high, self._lines = low, high, 0
                    self._message = line.removeprefix("I: ").split(":")[0].rstrip(".")
            if match := re.match(r"(?:Unpacking|Setting up|Get:\d+ \S+ \S+ \S+) (\S+)", line):
                self._message = match[1]
        # Within a stage nothing says how much there is to do: approach its end, the slower the nearer.
        return self._low + (self._high - self._low) * self._lines / (self._lines + 200), 100.0, self._message


async def _make_disk(root: Path, disk: Path) -> Path:
    used = await process.run(["du", "-s", "--block-size=1", str(root)])
    size_bytes = max(_MIN_DISK_BYTES, -(-2 * int(used.split()[0]) // GIB) * GIB)
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-L", "root", "-U", str(uuid.uuid4())]
    argv += ["-O", _FEATURES, "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", str(root)]
    try:
        await process.run([*argv, str(disk), f"{size_bytes // 1024}k"], timeout_s=600)
    except process.ProgramFailed as e:
        raise ImageError(
            "the image's file system cannot be made", why=e.why, hint=f"check the space in {disk.parent}"
        ) from e
    return disk
