"""A saved machine's folder: `state` in its hypervisor's form, `memory` where RAM is a file, and `machine.json`.

See `fleetbox.backends.base.Snapshots`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from fleetbox.backends.base import VMConfig
from fleetbox.errors import MachineError
from fleetbox.shapes import UNDECODABLE

STATE = "state"
MEMORY = "memory"
MACHINE = "machine.json"
FORMAT = 1


class Saved(msgspec.Struct, frozen=True):
    """What a restored machine must be made of for the saved state to fit; `fixtures` is how many there were."""

    identity: dict[str, str]
    cpus: int
    memory_bytes: int
    disks: int
    seed: bool
    fixtures: int
    control_line: bool
    format: int = FORMAT


def describe(config: VMConfig, identity: dict[str, str], *, control_line: bool) -> Saved:
    """The description of a machine of that configuration."""
    return Saved(
        identity,
        config.cpus,
        config.memory_bytes,
        len(config.disks),
        config.seed is not None,
        len(config.fixtures),
        control_line,
    )


def write(folder: Path, saved: Saved) -> None:
    """Raises OSError."""
    (folder / MACHINE).write_bytes(msgspec.json.format(msgspec.json.encode(saved)))


def read(folder: Path) -> Saved:
    """Raises MachineError when the folder holds no snapshot that this version understands."""
    try:
        saved = msgspec.json.decode((folder / MACHINE).read_bytes(), type=Saved)
    except OSError as e:
        raise MachineError(f"{folder} cannot be restored", why=f"{MACHINE}: {e.strerror}") from e
    except UNDECODABLE as e:
        raise MachineError(f"{folder} cannot be restored", why=f"{MACHINE} cannot be understood: {e}") from e
    if saved.format != FORMAT:
        raise MachineError(f"{folder} cannot be restored", why=f"its format is {saved.format}, not {FORMAT}")
    if not (folder / STATE).is_file():
        raise MachineError(f"{folder} cannot be restored", why=f"there is no {STATE}")
    return saved


def require_fit(saved: Saved, config: VMConfig, identity: dict[str, str], free: Collection[str] = frozenset()) -> None:
    """Raise MachineError when the state cannot be restored here, or into a machine of that configuration.

    `free` is the backend's `Capabilities.change_on_restore`.
    """
    what = f"{config.name} cannot be restored"
    for key in sorted(saved.identity.keys() | identity.keys()):
        was, here = saved.identity.get(key, ""), identity.get(key, "")
        if was != here:
            raise MachineError(what, why=f"the snapshot is of {key} {was or 'none'}, this host has {here or 'none'}")
    wanted = describe(config, identity, control_line=saved.control_line)
    shape: tuple[tuple[str, int, int], ...] = (
        ("cpus", saved.cpus, wanted.cpus),
        ("memory", saved.memory_bytes, wanted.memory_bytes),
        ("disks", saved.disks, wanted.disks),
        ("seed", saved.seed, wanted.seed),
    )
    for words, had, wants in shape:
        if had != wants and words not in free:
            raise MachineError(
                what,
                why=f"{words}: the saved machine has {had}, this one is to have {wants}",
                hint="memory of a running machine fits only a machine like it",
            )
    if saved.fixtures > wanted.fixtures:
        raise MachineError(what, why=f"the saved machine has {saved.fixtures} fixtures, this one {wanted.fixtures}")
