"""cloud-hypervisor's command line for one machine: a pure function from its configuration to argv.

Every device has an id, by which a snapshot's configuration is rewritten for its clones (`configuration`). RAM is always
one zone of the same id: in a template it is a shared file, which the hypervisor then leaves out of its snapshots, in
clones a private mapping of the same file.

Values stand in the `key=value,…` syntax of the program's `option_parser`, in quotes: those cannot be escaped.
"""

from __future__ import annotations

from pathlib import Path

from fleetbox.backends.base import DirectBoot, Disk, VMConfig
from fleetbox.errors import MachineError
from fleetbox.sizes import MIB

ZONE = "ram"
NET = "net0"
SEED = "seed"

# Below it a guest has no memory to give back.
BALLOON_FROM_BYTES = 256 * MIB


def build(
    program: Path, config: VMConfig, api_socket: Path, firmware: Path | None, *, tap: str, hugepages: bool
) -> list[str]:
    """The argv that boots the machine. `firmware` is for machines that boot through it.

    Raises MachineError for a path that the program cannot be told.
    """
    argv = [*restore(program, api_socket), *_boot(config, firmware)]
    argv += ["--cpus", f"boot={config.cpus}", "--memory", "size=0", "--memory-zone", _zone(config, hugepages=hugepages)]
    if config.memory_bytes >= BALLOON_FROM_BYTES:
        size = balloon_bytes(config.memory_bytes)
        argv += ["--balloon", f"size={size},deflate_on_oom=on,free_page_reporting=on"]
    argv += ["--disk", *(disk_option(disk, name) for name, disk in disks(config).items())]
    if tap:
        argv += ["--net", f"id={NET},tap={tap},mac={config.mac}"]
    argv += ["--serial", f"file={quote(config.serial_log)}", "--console", "pty" if config.control_line else "off"]
    return [*argv, "--rng", "src=/dev/urandom"]


def restore(program: Path, api_socket: Path) -> list[str]:
    """The argv of a process that waits to be told of a saved machine."""
    return [str(program), "--api-socket", str(api_socket)]


def balloon_bytes(memory_bytes: int) -> int:
    """A quarter of the memory, in whole pages: the guest gives it back until it runs short of memory itself."""
    return memory_bytes // 4 // MIB * MIB


def disks(config: VMConfig) -> dict[str, Disk]:
    """All disks of a machine in their order, by their device's id."""
    found = {f"disk{number}": disk for number, disk in enumerate(config.disks)}
    if config.seed is not None:
        found[SEED] = Disk(config.seed, "raw", read_only=True, serial="cidata")
    return found | {fixture_id(number): disk for number, disk in enumerate(config.fixtures)}


def fixture_id(number: int) -> str:
    """The device of a fixture."""
    return f"fixture{number}"


def disk_option(disk: Disk, name: str) -> str:
    """A value of `--disk`. Raises MachineError."""
    options = f"path={quote(disk.path)},id={name},image_type={disk.format}"
    options += ",readonly=on" if disk.read_only else ""
    return options + (f",serial={quote(disk.serial)}" if disk.serial else "")


def quote(value: str | Path) -> str:
    """A value in quotes. Raises MachineError for what `option_parser` would cut or take for syntax."""
    text = str(value)
    if any(c in '"[]' for c in text) or text != text.strip():
        raise MachineError(
            f"cloud-hypervisor cannot be told of {text!r}",
            why="its command line has no way to say quotes, brackets, or spaces at an end",
            hint="choose a path without them",
        )
    return f'"{text}"'


def _boot(config: VMConfig, firmware: Path | None) -> list[str]:
    boot = config.boot
    if isinstance(boot, DirectBoot):
        initrd = ["--initramfs", str(boot.initrd)] if boot.initrd else []
        return ["--kernel", str(boot.kernel), *initrd, "--cmdline", boot.cmdline]
    return ["--firmware", str(boot.firmware or firmware)]


def _zone(config: VMConfig, *, hugepages: bool) -> str:
    size = f"id={ZONE},size={-(-config.memory_bytes // MIB)}M"
    if config.memory_file is not None:
        return f"{size},file={quote(config.memory_file)},shared=on"
    # Populated at once: a page that is not there later would end the machine.
    return f"{size},hugepages=on,prefault=on" if hugepages else size
