"""IPv4 forwarding of single interfaces, and giving the uplink's flag back.

A packet is forwarded when the interface that it *came in* by forwards, so the bridge's flag lets guests out and the
uplink's lets answers in. The bridge's goes with the bridge. The uplink belongs to the host: a record shared by all
installations names the bridges that need it, and the last one's end turns it off again. Only interfaces that did not
forward before are recorded. The caller holds the network namespace's lock (`lock.network_lock`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from fleetbox import paths
from fleetbox.errors import NotFoundError, RecordError
from fleetbox.identity import boot_id
from fleetbox.records import SCHEMA, read_record
from fleetbox.shapes import Interface, Word

log = logging.getLogger(__name__)


class ForwardingRecord(msgspec.Struct):
    """Which uplinks we switched on, each with the bridges that need it and their installations' state folders."""

    boot_id: Word
    uplinks: dict[Interface, dict[Interface, str]]
    schema: int = SCHEMA


def _record_path(namespace: int) -> Path:
    return paths.host_dir() / f"forwarding-{namespace}.json"


def _flag(interface: str) -> Path:
    return Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding")


def forwards(interface: str) -> bool:
    """Whether packets that come in by the interface (or "all") are forwarded; False when it is gone."""
    try:
        return _flag(interface).read_text().strip() == "1"
    except OSError:
        return False


def _set(interface: str, on: bool) -> None:
    with contextlib.suppress(FileNotFoundError):  # the interface is gone
        _flag(interface).write_text("1" if on else "0")


def _read(namespace: int) -> ForwardingRecord:
    path = _record_path(namespace)
    try:
        record = read_record(path, ForwardingRecord)
    except NotFoundError:
        return ForwardingRecord(boot_id(), {})
    except RecordError as e:
        log.warning("%s; it is kept aside and uplinks stay as they are", e)
        path.replace(path.with_suffix(".unreadable"))
        return ForwardingRecord(boot_id(), {})
    return record if record.boot_id == boot_id() else ForwardingRecord(boot_id(), {})


def _write(namespace: int, record: ForwardingRecord) -> None:
    path = _record_path(namespace)
    if not record.uplinks:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(record))
    temporary.replace(path)


def claim(namespace: int, bridge: str, uplinks: Iterable[str]) -> None:
    """Forward on the bridge and on the uplinks; the bridge must exist, else its claim counts as given up."""
    record = _read(namespace)
    for uplink in uplinks:
        if uplink in record.uplinks or not forwards(uplink):
            record.uplinks.setdefault(uplink, {})[bridge] = str(paths.state_dir())
    _write(namespace, record)
    for interface in (bridge, *record.uplinks):
        _set(interface, on=True)


def settle(namespace: int, alive: Collection[str]) -> None:
    """Drop the claims of bridges that are not among `alive`, and switch off what nobody needs any more.

    Once somebody has switched forwarding on for the whole host, uplinks are left as they are.
    """
    record = _read(namespace)
    for uplink, users in list(record.uplinks.items()):
        record.uplinks[uplink] = kept = {bridge: state for bridge, state in users.items() if bridge in alive}
        if not kept:
            if not forwards("all"):
                _set(uplink, on=False)
            del record.uplinks[uplink]
    _write(namespace, record)
