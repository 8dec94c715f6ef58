"""A snapshot's folder in cloud-hypervisor's own form, made of ours and back again.

The program writes `config.json`, `state.json` and `memory-ranges`. We keep the first two in `state` and the last, when
there is one, as `memory`; a template's `memory` is the file that was its RAM. For a restore the program gets a folder
of its own form again, with the configuration rewritten for the machine to be: its disks, interface, log and memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fleetbox.backends.base import VMConfig
from fleetbox.backends.cloud_hypervisor import command
from fleetbox.backends.host import saved
from fleetbox.errors import MachineError
from fleetbox.shapes import UNDECODABLE

CONFIG = "config.json"
STATE = "state.json"
RANGES = "memory-ranges"


class Packed(msgspec.Struct, frozen=True):
    """Our `state`. `mapped` says that `memory` is the RAM itself, to be mapped; else it is a copy, to be read."""

    config: dict[str, Any]
    state: msgspec.Raw
    mapped: bool


def pack(folder: Path, memory_file: Path | None) -> None:
    """Turn a snapshot that the program has just written into our form. Blocks. Raises OSError and MachineError."""
    config_file, state_file, ranges = folder / CONFIG, folder / STATE, folder / RANGES
    mapped = memory_file is not None
    if memory_file is not None:
        if ranges.exists() and ranges.stat().st_size:
            raise MachineError("its memory cannot be given to clones", why="the hypervisor has copied it")
        ranges.unlink(missing_ok=True)
        (folder / saved.MEMORY).hardlink_to(memory_file)
    else:
        ranges.rename(folder / saved.MEMORY)
    config = _document(config_file)
    state = msgspec.Raw(state_file.read_bytes())
    packed = msgspec.json.encode(Packed(config, state, mapped))
    path = folder / saved.STATE
    path.touch(mode=0o600)
    path.write_bytes(packed)
    config_file.unlink()
    state_file.unlink()


def unpack(folder: Path, target: Path, config: VMConfig, tap: str, fixtures: int) -> bool:
    """Make in `target`, an empty folder, what the program restores; returns whether there are memory ranges to read.

    `fixtures` is how many the saved machine had. Blocks. Raises OSError and MachineError.
    """
    path = folder / saved.STATE
    try:
        packed = msgspec.json.decode(path.read_bytes(), type=Packed)
    except UNDECODABLE as e:
        raise MachineError(f"{path} cannot be restored", why=f"it cannot be understood: {e}") from e
    memory = folder / saved.MEMORY
    if not memory.is_file():
        raise MachineError(f"{folder} cannot be restored", why=f"there is no {saved.MEMORY}")
    if packed.mapped and memory.stat().st_size < config.memory_bytes:
        raise MachineError(f"{folder} cannot be restored", why=f"its {saved.MEMORY} is cut off")
    rewritten = rewrite(packed.config, config, tap, fixtures, memory if packed.mapped else None)
    (target / CONFIG).write_bytes(msgspec.json.encode(rewritten))
    (target / STATE).write_bytes(packed.state)
    if not packed.mapped:
        (target / RANGES).symlink_to(memory)
    return not packed.mapped


def rewrite(was: dict[str, Any], config: VMConfig, tap: str, fixtures: int, memory: Path | None) -> dict[str, Any]:
    """The saved machine's configuration for the machine to be; what is not named here stays as it was.

    Raises MachineError when the saved one has not the devices that fleetbox gives a machine.
    """
    try:
        new = dict(was)
        there = command.disks(config)
        gone = {command.fixture_id(number) for number in range(fixtures, len(config.fixtures))}
        expected = [name for name in there if name not in gone]
        if [disk["id"] for disk in was["disks"]] != expected:
            raise _unfit(f"its disks are {[disk['id'] for disk in was['disks']]}, not {expected}")
        new["disks"] = [disk | {"path": str(there[disk["id"]].path)} for disk in was["disks"]]
        if bool(was.get("net")) != bool(tap):
            raise _unfit("one of the two machines has a network, the other has none")
        if tap:
            [net] = was["net"]
            new["net"] = [net | {"tap": tap, "mac": config.mac}]
        new["serial"] = was["serial"] | {"file": str(config.serial_log)}
        new["console"] = was["console"] | {"file": None}
        [zone] = was["memory"]["zones"]
        # What was a template's file is ours alone; what was copied is read into memory of our own.
        zone = zone | {"file": str(memory) if memory else None, "shared": False, "hugepages": False, "prefault": False}
        new["memory"] = was["memory"] | {"zones": [zone]}
        new["payload"] = was["payload"] | _payload(config, was["payload"])
    except (LookupError, TypeError, ValueError) as e:
        raise _unfit(f"its configuration is not one of ours: {e!r}") from e
    return new


def _payload(config: VMConfig, was: dict[str, Any]) -> dict[str, Any]:
    """Kernel and initrd as they are here: the guest's reboot loads them again."""
    from fleetbox.backends.base import DirectBoot

    boot = config.boot
    if not isinstance(boot, DirectBoot):
        return {}
    if not was.get("cmdline"):  # the saved machine boots through firmware
        return {}
    return {"kernel": str(boot.kernel), "initramfs": str(boot.initrd) if boot.initrd else None}


def _document(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except UNDECODABLE as e:
        raise MachineError("its state cannot be kept", why=f"{path.name} cannot be understood: {e}") from e


def _unfit(why: str) -> MachineError:
    return MachineError("the snapshot cannot be restored", why=why)
