"""Where images come from: aliases and their sources in order, URLs, files, and one download for ten processes."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fleetbox import paths
from fleetbox.backends.host.files.worker import OnEvent
from fleetbox.errors import HostError, ImageError, NotFoundError, UsageError
from fleetbox.holder.images import archive, catalog, convert
from fleetbox.holder.images.catalog import CloudImage, Entry
from fleetbox.holder.images.library import ImageLibrary
from fleetbox.wire import Event, Notice
from tests.diskimages import UUID, make_ext4, make_partitioned, make_qcow2, make_tree, root_files


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageLibrary:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return ImageLibrary()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_ext4(tmp_path / "disk.raw", make_tree(tmp_path / "tree", root_files()))


class Site:
    """The files of a folder over HTTP; `taken` holds the paths of all requests."""

    def __init__(self, folder: Path) -> None:
        self.taken: list[str] = []
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

            def do_GET(self) -> None:
                site.taken.append(self.path)
                super().do_GET()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True).start()
    yield site
    site.server.shutdown()
    site.server.server_close()


def set_catalog(monkeypatch: pytest.MonkeyPatch, **entries: Entry) -> None:
    monkeypatch.setattr(catalog, "entries", lambda: {name.replace("_", "-"): e for name, e in entries.items()})


def cloud(url: str, sha256: str, suite: str = "") -> Entry:
    return Entry("snapshot", {catalog.host_architecture(): CloudImage(url, sha256)}, suite)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def notices(events: Sequence[Event]) -> str:
    return "\n".join(e.message for e in events if isinstance(e, Notice))


@pytest.fixture
def built(raw: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the archive build by a copy of a small disk; holds the suites that were built."""
    suites: list[str] = []

    async def build(
        suite: str, folder: Path, include: Sequence[str], scripts: Sequence[str], on_event: OnEvent
    ) -> Path:
        del include, scripts, on_event
        suites.append(suite)
        disk = folder / "build.raw"
        disk.write_bytes(raw.read_bytes())
        return disk

    monkeypatch.setattr(archive, "build", build)
    return suites


def test_a_file_is_imported_once(library: ImageLibrary, raw: Path) -> None:
    image = asyncio.run(library.import_(str(raw), name="mine"))
    assert (image.digest, image.names, image.boot, image.root) == (sha256_of(raw), ("mine",), "direct", f"UUID={UUID}")
    assert image.has_systemd
    assert image.stored_bytes < image.size_bytes == raw.stat().st_size
    again = asyncio.run(library.import_(str(raw), name="ours"))
    assert again.names == ("mine", "ours")
    assert asyncio.run(library.ensure(str(raw))).digest == image.digest
    assert asyncio.run(library.ensure("ours")).digest == image.digest
    assert len(library.list()) == 1


def test_a_changed_file_is_imported_anew(library: ImageLibrary, raw: Path) -> None:
    first = asyncio.run(library.ensure(str(raw)))
    data = bytearray(raw.read_bytes())
    data[-1] ^= 1
    raw.write_bytes(data)
    second = asyncio.run(library.ensure(str(raw)))
    assert second.digest == sha256_of(raw) != first.digest


def test_a_disk_that_only_firmware_starts_says_why(library: ImageLibrary, tmp_path: Path) -> None:
    disk = make_partitioned(tmp_path / "disk.raw", [make_tree(tmp_path / "tree", {"data": b"x"})])
    image = asyncio.run(library.ensure(str(make_qcow2(tmp_path / "disk.qcow2", disk))))
    assert (image.boot, image.kernel, image.initrd, image.root) == ("firmware", "", "", "")
    assert image.boot_reason


def test_a_refused_file_leaves_the_store_as_it_was(library: ImageLibrary, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no disk\n" * 1000)
    with pytest.raises(ImageError):
        asyncio.run(library.import_(str(tmp_path / "text"), name="mine"))
    with pytest.raises(ImageError, match="no image file"):
        asyncio.run(library.import_(str(tmp_path / "nothing")))
    assert library.list() == []
    assert [p.name for p in paths.images_dir().iterdir()] == [".lock"]
    assert list(paths.blobs_dir().iterdir()) == []


def test_an_import_with_a_wrong_digest_is_refused(library: ImageLibrary, raw: Path) -> None:
    with pytest.raises(ImageError, match="not the file"):
        asyncio.run(library.import_(str(raw), sha256="0" * 64))
    assert asyncio.run(library.import_(str(raw), sha256=sha256_of(raw).upper())).digest == sha256_of(raw)


@pytest.mark.parametrize("name", ["../x", "A", "a b", "-x", "deadbeef", "0" * 64, "x" * 64])
def test_a_bad_name_is_refused(library: ImageLibrary, raw: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name for an image"):
        asyncio.run(library.import_(str(raw), name=name))


@pytest.mark.parametrize("sha256", ["abc", "g" * 64, "0" * 65])
def test_a_bad_digest_is_refused(library: ImageLibrary, raw: Path, sha256: str) -> None:
    with pytest.raises(UsageError, match="sha256"):
        asyncio.run(library.import_(str(raw), sha256=sha256))


def test_an_unknown_reference_lists_the_catalog(library: ImageLibrary) -> None:
    with pytest.raises(NotFoundError) as caught:
        asyncio.run(library.ensure("debian-99"))
    assert "debian-12" in caught.value.hint
    with pytest.raises(NotFoundError):
        asyncio.run(library.pull("debian-99"))
    with pytest.raises(NotFoundError, match="archive"):
        asyncio.run(library.build("ubuntu-24.04"))


def test_the_catalog_is_complete() -> None:
    entries = catalog.entries()
    assert {"debian-11", "debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04", "ubuntu-26.04"} == set(entries)
    for entry in entries.values():
        assert set(entry.images) == {"amd64", "arm64"}
        assert all(len(i.sha256) == 64 and i.url.startswith("https://") for i in entry.images.values())
    assert entries["debian-12"].suite == "bookworm"


def test_a_url_is_fetched_once(library: ImageLibrary, raw: Path, site: Site) -> None:
    url = f"{site.url}/disk.raw"
    image = asyncio.run(library.ensure(url))
    assert (image.digest, image.source) == (sha256_of(raw), url)
    assert asyncio.run(library.ensure(url)) == image
    assert asyncio.run(library.pull(url, sha256_of(raw))).digest == image.digest
    assert asyncio.run(library.import_(url, name="mine")).names == ("mine",)
    assert site.taken == ["/disk.raw", "/disk.raw"]  # the digest was not known at first
    assert [p.suffix for p in paths.downloads_dir().iterdir() if p.suffix != ".lock"] == []


def test_an_alias_takes_the_cloud_image(
    library: ImageLibrary, raw: Path, site: Site, monkeypatch: pytest.MonkeyPatch, built: list[str]
) -> None:
    qcow2 = make_qcow2(raw.with_suffix(".img"), raw)
    set_catalog(monkeypatch, debian_12=cloud(f"{site.url}/disk.img", sha256_of(qcow2), "bookworm"))
    events: list[Event] = []
    image = asyncio.run(library.ensure("debian-12", events.append))
    assert (image.digest, image.names, built) == (sha256_of(raw), ("debian-12",), [])
    assert "cloud image snapshot" in notices(events)
    assert asyncio.run(library.ensure("debian-12")) == image
    assert asyncio.run(library.pull("debian-12")) == image
    assert site.taken == ["/disk.img"]


def test_an_unreachable_cloud_image_gives_way_to_the_archive(
    library: ImageLibrary, site: Site, monkeypatch: pytest.MonkeyPatch, built: list[str]
) -> None:
    set_catalog(monkeypatch, debian_12=cloud(f"{site.url}/nothing.img", "0" * 64, "bookworm"))
    events: list[Event] = []
    image = asyncio.run(library.ensure("debian-12", events.append))
    assert (image.names, image.source, built) == (("debian-12",), "archive build of debian-12", ["bookworm"])
    assert "HTTP 404" in notices(events)
    asyncio.run(library.ensure("debian-12"))
    assert built == ["bookworm"]


def test_a_wrong_digest_does_not_give_way(
    library: ImageLibrary, raw: Path, site: Site, monkeypatch: pytest.MonkeyPatch, built: list[str]
) -> None:
    set_catalog(monkeypatch, debian_12=cloud(f"{site.url}/{raw.name}", "0" * 64, "bookworm"))
    with pytest.raises(ImageError, match="discarded"):
        asyncio.run(library.ensure("debian-12"))
    assert built == []


def test_both_reasons_are_told_when_nothing_serves(
    library: ImageLibrary, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: object) -> Path:
        raise HostError("mmdebstrap is not installed", hint="install it")

    monkeypatch.setattr(archive, "build", fail)
    set_catalog(
        monkeypatch,
        debian_12=cloud(f"{site.url}/nothing.img", "0" * 64, "bookworm"),
        ubuntu=cloud(f"{site.url}/nothing.img", "0" * 64),
    )
    with pytest.raises(HostError, match=r"404.*mmdebstrap is not installed") as caught:
        asyncio.run(library.ensure("debian-12"))
    assert caught.value.hint == "install it"
    with pytest.raises(ImageError, match="404"):
        asyncio.run(library.ensure("ubuntu"))


def test_builds_are_named(library: ImageLibrary, built: list[str]) -> None:
    assert asyncio.run(library.build("debian-12")).names == ("debian-12",)
    custom = asyncio.run(library.build("debian-12", include=["jq"], name="with-jq"))
    assert custom.names == ("debian-12", "with-jq")  # the stand-in builds the same disk
    assert built == ["bookworm", "bookworm"]


def test_a_download_survives_a_full_store(
    library: ImageLibrary, raw: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{site.url}/disk.raw"
    with monkeypatch.context() as context:

        def full(*args: object) -> str:
            raise OSError(errno.ENOSPC, "No space left on device")

        context.setattr(convert, "copy_file", full)
        with pytest.raises(ImageError, match="No space"):
            asyncio.run(library.pull(url, sha256_of(raw)))
    assert asyncio.run(library.pull(url, sha256_of(raw))).digest == sha256_of(raw)
    assert site.taken == ["/disk.raw"]


def test_a_download_that_is_no_image_is_not_kept(library: ImageLibrary, tmp_path: Path, site: Site) -> None:
    (tmp_path / "page").write_text("<html>sign in first</html>")
    with pytest.raises(ImageError, match="no disk image"):
        asyncio.run(library.ensure(f"{site.url}/page"))
    assert [p.suffix for p in paths.downloads_dir().iterdir()] == [".lock"]


ASK = """
import asyncio, sys
from fleetbox.holder.images.library import ImageLibrary
print(asyncio.run(ImageLibrary().ensure(sys.argv[1])).digest)
"""


def test_ten_processes_make_one_download(library: ImageLibrary, raw: Path, site: Site) -> None:
    url = f"{site.url}/disk.raw"
    children = [
        subprocess.Popen([sys.executable, "-c", ASK, url], stdout=subprocess.PIPE, text=True) for _ in range(10)
    ]
    answers = {child.communicate()[0].strip() for child in children}
    assert answers == {sha256_of(raw)}
    assert site.taken == ["/disk.raw"]
    assert len(library.list()) == 1
