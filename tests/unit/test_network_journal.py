"""Names of host resources and the write-ahead record."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from fleetbox.backends.host import namespaces
from fleetbox.backends.host.network import naming
from fleetbox.backends.host.network.journal import (
    ForeignRule,
    Journal,
    NetworkRecord,
    add_rules,
    path_of,
    read_network,
    read_networks,
)
from fleetbox.errors import RecordError
from fleetbox.identity import boot_id, identify


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path))
    return tmp_path


def record(cluster: str) -> NetworkRecord:
    owner = identify(os.getpid())
    assert owner is not None
    bridge = naming.bridge_name(cluster)
    return NetworkRecord(
        cluster=cluster,
        bridge=bridge,
        table=naming.table_name(bridge),
        owner=owner,
        boot_id=boot_id(),
        namespace=namespaces.network_inode(),
        subnet="192.168.5.0/24",
    )


def rule(cluster: str = "alpha") -> ForeignRule:
    return ForeignRule("ip", "filter", "FORWARD", f"fleetbox:{naming.bridge_name(cluster)}:in")


def taps(cluster: str = "alpha") -> dict[str, str]:
    return {"node-1": naming.tap_name(cluster, "node-1"), "node-2/1": naming.tap_name(cluster, "node-2", 1)}


@pytest.mark.parametrize(
    "forged",
    [
        {"bridge": "eth0"},
        {"bridge": "../x"},
        {"cluster": "beta"},
        {"cluster": "../../etc"},
        {"table": "filter"},
        {"taps": {"node-1": "eth0"}},
        {"taps": {"node-1/2": "eth0"}},
        {"rules": [{"family": "ip", "table": "filter", "chain": "INPUT", "tag": "somebody else's"}]},
    ],
    ids=str,
)
def test_a_record_that_names_what_is_not_its_own_is_refused_and_kept(forged: dict[str, object]) -> None:
    """All that a record names is removed in the end: a forged one must not remove the host's own."""
    journal = Journal(record("alpha"))
    journal.write(taps=taps(), rules=(rule(),))
    path = path_of(journal.record.bridge)
    data = msgspec.json.encode(msgspec.to_builtins(journal.record) | forged)
    path.write_bytes(data)
    with pytest.raises(RecordError, match="cannot be understood"):
        read_network(journal.record.bridge)
    assert path.read_bytes() == data


def test_names_fit_and_tell_installations_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> tuple[str, str, str]:
        bridge = naming.bridge_name("alpha")
        return bridge, naming.tap_name("alpha", "node-1"), naming.table_name(bridge)

    bridge, tap, table = names()
    assert len(bridge) == 14
    assert len(tap) == 15
    assert table == f"fleetbox_{bridge[2:7]}_{bridge[8:]}"
    assert bridge[2:7] == tap[2:7]
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "other"))
    assert not {bridge, tap, table} & set(names())


def test_written_records_are_read_again() -> None:
    journal = Journal(record("alpha"))
    assert read_network(journal.record.bridge) is None
    journal.write(taps=taps(), rules=(rule(),))
    assert read_network(journal.record.bridge) == journal.record
    assert journal.record.taps == taps()
    journal.remove()
    assert read_network(journal.record.bridge) is None
    journal.remove()


def test_rules_added_by_others_survive_the_owners_writes() -> None:
    journal = Journal(record("alpha"))
    journal.write()
    add_rules(journal.record.bridge, (rule(),))
    journal.write(taps=taps())
    assert journal.record.rules == (rule(),)
    assert journal.record.taps == taps()


def test_rules_for_a_network_that_has_gone_make_no_record() -> None:
    add_rules(naming.bridge_name("alpha"), (rule(),))
    assert list(read_networks()) == []


def test_an_unreadable_record_is_named_kept_and_hides_no_other() -> None:
    Journal(record("alpha")).write()
    broken = path_of(naming.bridge_name("beta"))
    broken.write_bytes(b"{half")
    found = list(read_networks())
    errors = [r for r in found if isinstance(r, RecordError)]
    assert [r.cluster for r in found if isinstance(r, NetworkRecord)] == ["alpha"]
    assert len(errors) == 1
    assert str(broken) in errors[0].message
    assert broken.read_bytes() == b"{half"


def test_a_record_that_cannot_be_written_keeps_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(record("alpha"))
    journal.write()

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match="No space left"):
        journal.write(taps=taps())
    assert journal.record.taps == {}
    assert read_network(journal.record.bridge) == journal.record
    assert list(path_of("x").parent.glob("*.tmp")) == []
