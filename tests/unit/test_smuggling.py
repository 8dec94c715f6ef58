"""Nothing that a user, a record or a guest names becomes an option, a path, or another line of a file."""

from __future__ import annotations

import shlex
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetbox import names, paths, ssh
from fleetbox.backends.base import Disk, FirmwareBoot, VMConfig
from fleetbox.backends.host.network import naming
from fleetbox.backends.qemu.command import escape, name_option
from fleetbox.errors import UsageError
from fleetbox.holder.snapshots.store import check_name
from fleetbox.records import ClusterRecord, MemberRecord, MemberState
from fleetbox.specs import Fixture, MemberSpec, check_fixture

NASTY = st.sampled_from(
    [
        *(
            "-rf",
            "--help",
            "-oProxyCommand=x",
            "a,b=c",
            "a\nb",
            "a b",
            "a'b",
            'a"b',
            "$(x)",
            "`x`",
            "a;b",
            "..",
            "../x",
        ),
        *(
            "a/b",
            "a\0b",
            "ﬁx",
            "A",
            "a.b",
            "a_b",
            "a:b",
            "%h",
            "~x",
            "{}",
            "\x1b[2J",
            "\u202e",
            "a\\b",
            "-",
            "a-",
            "0" * 64,
        ),
    ]
)
TEXT = NASTY | st.text(max_size=80) | st.builds("".join, st.lists(NASTY | st.text(max_size=5), max_size=4))
LABEL = st.from_regex(r"\A[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
MANY = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path))


@MANY
@given(TEXT)
def test_a_name_is_a_plain_word_or_refused(text: str) -> None:
    try:
        name = names.check_label(text, "member name")
    except UsageError:
        return
    assert name.isascii()
    assert name.strip("-") == name == name.lower()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert shlex.quote(name) == name
    folder = paths.member_dir("web", name)
    assert folder.parent == paths.cluster_data_dir("web")
    assert len(naming.tap_name("web", name)) <= 15


@MANY
@given(TEXT)
def test_a_snapshots_name_is_one_word_or_refused(text: str) -> None:
    try:
        name = check_name(text)
    except UsageError:
        return
    assert shlex.quote(name) == name or not name
    assert not name.startswith(("-", "."))
    assert "/" not in name


@MANY
@given(TEXT)
def test_a_fixtures_guest_path_is_one_word_below_the_root(text: str) -> None:
    for guest in (text, f"/{text}", f"/srv/{text}"):
        try:
            fixture = check_fixture(Fixture("/", guest))
        except UsageError:
            continue
        assert fixture.guest.startswith("/")
        assert fixture.guest.isprintable()
        assert not set(fixture.guest) & set(" ,\\\n\t\0")
        assert ".." not in fixture.guest.split("/")


@MANY
@given(TEXT)
def test_a_value_stays_one_value_in_qemus_syntax(text: str) -> None:
    """Single commas separate; doubled ones are one of the value's own."""
    kept = escape(text).replace(",,", "\0\0")
    assert "," not in kept
    assert kept.replace("\0\0", ",") == text
    config = VMConfig(
        name="web/node-1",
        run_dir=Path(f"/run/{text}".replace("\0", "")),
        disks=(Disk(Path("/x"), "raw"),),
        seed=None,
        boot=FirmwareBoot(),
        mac="02:00:00:00:00:01",
        cpus=1,
        memory_bytes=1 << 28,
        serial_log=Path("/x"),
    )
    assert "," not in name_option(config).replace(",,", "")


@MANY
@given(LABEL, LABEL, st.lists(TEXT, max_size=3))
def test_nothing_that_is_run_on_a_member_becomes_an_option_of_ssh(cluster: str, name: str, words: list[str]) -> None:
    words = [word.replace("\0", "") for word in words]
    member = MemberRecord(
        id="0" * 16,
        name=name,
        state=MemberState.RUNNING,
        spec=MemberSpec(),
        image_digest="",
        mac="",
        ip="192.168.1.2",
        folder=str(paths.member_dir(cluster, name)),
        created_at=0.0,
    )
    record = ClusterRecord("0" * 16, cluster, "qemu", "", "", "host", 0.0, members={name: member})
    argv = ssh.argv(record, member, words, tty=False, multiplex=True, batch=True)
    before, after = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    assert after == ["192.168.1.2", *words]
    options = " ".join(before)
    assert "StrictHostKeyChecking=yes" in options
    assert f"UserKnownHostsFile={paths.known_hosts(cluster)}" in options.replace('"', "")
    assert "GlobalKnownHostsFile=/dev/null" in options or "GlobalKnownHostsFile=none" in options
    assert msgspec.json.decode(msgspec.json.encode(record), type=ClusterRecord) == record
