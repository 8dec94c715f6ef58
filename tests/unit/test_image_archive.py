"""Which of the host's sources an archive build takes, and what it asks of mmdebstrap."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fleetbox.backends.base import timeout_scale
from fleetbox.errors import HostError, ImageError, UsageError
from fleetbox.holder.images import aptsources, archive
from fleetbox.holder.images.aptsources import Source, archive_sources, read_sources

DEB822 = """\
Types: deb deb-src
# an older snapshot: http://mirror.test/snapshot
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.test/debian-security/
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQENBF
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://mirror.test/disabled
Suites: bookworm
Components: main

Types: deb-src
URIs: http://mirror.test/source
Suites: bookworm
Components: main
"""

ONE_LINE = """\
# deb http://mirror.test/commented bookworm main
deb http://mirror.test/debian bookworm main contrib # trailing
deb [arch=amd64 signed-by=/etc/apt/keyrings/tool.gpg] http://third.test/tool bookworm main
deb-src http://mirror.test/debian bookworm main
deb http://third.test/node nodistro main
deb http://third.test/docker bookworm stable
"""


@pytest.fixture
def etc_apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def origin(source: Source) -> str:
    return "Debian" if "mirror.test" in source.uri else "Tool Inc."


def test_both_formats_are_read(etc_apt: Path) -> None:
    (etc_apt / "sources.list").write_text(ONE_LINE)
    (etc_apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    (etc_apt / "sources.list.d" / "old.list.disabled").write_text("deb http://mirror.test/no bookworm main\n")
    found = read_sources(etc_apt)
    assert found[0] == Source("http://mirror.test/debian", "bookworm", ("main", "contrib"))
    assert found[1].signed_by == "/etc/apt/keyrings/tool.gpg"
    assert [(s.uri, s.suite) for s in found[4:]] == [
        ("http://mirror.test/debian", "bookworm"),
        ("http://mirror.test/debian", "bookworm-updates"),
        ("http://mirror.test/debian-security/", "bookworm-security"),
    ]
    assert "BEGIN PGP" in found[6].signed_by


def test_an_inlined_key_survives_the_way_through(etc_apt: Path) -> None:
    file = etc_apt / "sources.list.d" / "debian.sources"
    file.write_text(DEB822)
    before = read_sources(etc_apt)
    file.write_text("\n".join(s.deb822() for s in before))
    assert read_sources(etc_apt) == before


def test_a_mirror_list_is_replaced_by_its_first_mirror(etc_apt: Path) -> None:
    (etc_apt / "mirrors").write_text("# ours\nhttp://mirror.test/debian priority:1\nhttp://other.test/debian\n")
    (etc_apt / "sources.list").write_text(f"deb mirror+file:{etc_apt}/mirrors bookworm main\n")
    assert [s.uri for s in read_sources(etc_apt)] == ["http://mirror.test/debian"]


def test_third_parties_stay_out(etc_apt: Path) -> None:
    (etc_apt / "sources.list").write_text(ONE_LINE)
    (etc_apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    taken, left_out = archive_sources("bookworm", "bookworm", read_sources(etc_apt), origin)
    assert [(s.uri, s.suite, s.components) for s in taken] == [
        ("http://mirror.test/debian", "bookworm", ("main",)),
        ("http://mirror.test/debian", "bookworm-updates", ("main",)),
        ("http://mirror.test/debian-security/", "bookworm-security", ("main",)),
    ]
    assert left_out == ["http://third.test/tool bookworm (its origin is Tool Inc.)"]


def test_another_release_comes_from_the_same_archive(etc_apt: Path) -> None:
    (etc_apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    taken, _ = archive_sources("trixie", "bookworm", read_sources(etc_apt), origin)
    assert [s.suite for s in taken] == ["trixie", "trixie-updates", "trixie-security"]


def test_an_unreachable_archive_leaves_the_choice_to_mmdebstrap(etc_apt: Path) -> None:
    (etc_apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    taken, left_out = archive_sources(
        "bookworm", "bookworm", read_sources(etc_apt), lambda s: "Debian" if "security" in s.suite else ""
    )
    assert taken == []
    assert all("not reachable" in text for text in left_out)


def test_a_host_without_sources_has_none(tmp_path: Path) -> None:
    assert read_sources(tmp_path / "nothing") == []


def test_only_what_reaches_the_archive_is_carried_over(monkeypatch: pytest.MonkeyPatch) -> None:
    dump = (
        'APT::Update::Post-Invoke:: "rm -f /x";\nAcquire::http::Proxy "http://proxy.test:3128";\n'
        'Acquire::Check-Valid-Until "false";\nAcquire::Languages:: "none";\nDir::Cache "var";\n'
    )
    monkeypatch.setattr(aptsources, "run_blocking", lambda argv: dump.encode())
    assert aptsources.apt_options() == (
        'Acquire::http::Proxy "http://proxy.test:3128";\nAcquire::Check-Valid-Until "false";\n'
    )


def test_the_host_s_release(tmp_path: Path) -> None:
    file = tmp_path / "os-release"
    file.write_text('NAME="x y"\nID=debian\nVERSION_CODENAME=bookworm\n')
    assert aptsources.host_codename(file) == "bookworm"
    file.write_text("ID=ubuntu\nVERSION_CODENAME=noble\n")
    assert aptsources.host_codename(file) == ""
    assert aptsources.host_codename(tmp_path / "nothing") == ""


def build(folder: Path, include: list[str] | None = None, scripts: list[str] | None = None) -> Path:
    return asyncio.run(archive.build("bookworm", folder, include or [], scripts or [], lambda _: None))


def test_bad_packages_and_scripts_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a package name"):
        build(tmp_path, include=["jq,--hook-dir=/x"])
    with pytest.raises(UsageError, match="no script"):
        build(tmp_path, scripts=[str(tmp_path / "nothing")])
    assert list(tmp_path.iterdir()) == []


def test_without_root_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="root"):
        build(tmp_path)


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """A mmdebstrap of the test's own, first on PATH, on a host without sources of its own."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "mmdebstrap").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(aptsources, "read_sources", list)
    work = folder / "work"
    work.mkdir()
    return work


def test_a_build_makes_one_sparse_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "my script.sh"
    script.write_text("echo hello\n")
    work = stand_in(
        tmp_path, monkeypatch, 'printf "%s\\n" "$@" > argv; for last; do :; done; mkdir -p "$last/etc" "$last/usr"'
    )
    monkeypatch.chdir(tmp_path)
    disk = build(work, include=["jq"], scripts=[str(script)])
    assert disk.stat().st_size == 4 << 30
    assert disk.stat().st_blocks * 512 < 200 << 20
    argv = (tmp_path / "argv").read_text().splitlines()
    packages = next(a for a in argv if a.startswith("--include=")).removeprefix("--include=").split(",")
    assert {"cloud-init", "openssh-server", "jq"} <= set(packages)
    assert any("my script.sh'" in a for a in argv if a.startswith("--customize-hook="))
    assert argv[-2:] == ["bookworm", str(work / "root")]


def test_a_failed_build_says_what_mmdebstrap_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = stand_in(
        tmp_path, monkeypatch, 'echo "I: running"; echo "E: Unable to locate package nonsense" >&2; exit 25'
    )
    with pytest.raises(ImageError, match="Unable to locate package nonsense") as caught:
        build(work)
    assert caught.value.details


def processes_with(mark: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline", "status"]) if mark in (p.info["cmdline"] or [])]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")
def test_a_cancelled_build_leaves_no_process_and_no_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"600.{os.getpid()}"
    script = f"""
    for last; do :; done
    mkdir -p "$last/proc"
    mount -t proc none "$last/proc"
    setsid sleep {mark} &
    touch {tmp_path}/runs
    wait
    """
    work = stand_in(tmp_path, monkeypatch, script)

    async def cancel_once_it_runs() -> None:
        task = asyncio.ensure_future(archive.build("bookworm", work, [], [], lambda _: None))
        while not (tmp_path / "runs").exists() or not processes_with(mark):
            await asyncio.sleep(0.01)
        assert str(work) not in Path("/proc/mounts").read_text()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_once_it_runs())
    assert processes_with(mark) == []
    assert list((work / "root" / "proc").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")
def test_a_build_ends_with_the_process_that_wanted_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"601.{os.getpid()}"
    work = stand_in(tmp_path, monkeypatch, f"sleep {mark} & touch {tmp_path}/runs; wait")
    code = f"""
import asyncio
from pathlib import Path
from fleetbox.holder.images import archive
asyncio.run(archive.build("bookworm", Path({str(work)!r}), [], [], lambda _: None))
"""
    child = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "runs").exists() or not processes_with(mark):
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    deadline = time.monotonic() + 20 * timeout_scale()
    while processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes_with(mark) == []


def test_progress_only_grows(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    progress = archive._BuildProgress(log)
    seen = [progress.read()]
    for text in (
        "I: running apt-get update...\n",
        "I: downloading packages with apt...\nGet:1 http://mirror.test/debian bookworm/main amd64 jq amd64 1.6 [1 B]\n",
        "I: installing remaining packages inside the chroot...\n",
        "Unpacking jq (1.6) ...\nSetting up j",
        "q (1.6) ...\n",
        "I: cleaning package lists and apt cache...\n",
    ):
        with log.open("a") as file:
            file.write(text)
        seen.append(progress.read())
    percents = [percent for percent, _, _ in seen]
    assert percents == sorted(percents)
    assert percents[-1] < 100
    assert seen[5][2] == "jq"
