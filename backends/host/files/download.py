"""Downloads that resume: what has come stays in `<key>.part` until its user has taken it over and discards it.

A part is continued with an HTTP range request (RFC 9110 §14) only while the server still names the same validator (a
strong ETag, else Last-Modified) and the same size; otherwise it starts again. The caller holds the lock of the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import urllib.parse
from pathlib import Path

import msgspec
import requests
import urllib3

from fleetbox import paths
from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host.files import worker
from fleetbox.backends.host.files.sparse import digest_file
from fleetbox.backends.host.files.worker import Meter, OnEvent, Stop
from fleetbox.errors import ImageError
from fleetbox.shapes import UNDECODABLE
from fleetbox.sizes import format_size

_CONNECT_S = 4.0
_ANSWER_S = 10.0  # from the call to the first byte, names, redirects and several addresses included
_STALL_S = 20.0
_FRUITLESS_ATTEMPTS = 4
_CHUNK = 1 << 18
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Unreachable(ImageError):
    """The host cannot be reached, or does not hand the file out: another source may serve."""


class _Part(msgspec.Struct):
    """What is known about a part: `validator` is empty when the server names none, `total` 0 when it tells no size."""

    url: str
    validator: str
    total: int


def key_of(url: str, sha256: str = "") -> str:
    """The name under which a download is kept and locked."""
    return sha256 or hashlib.sha256(url.encode()).hexdigest()


def shown(url: str) -> str:
    """The URL without user and password, for messages and records."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


async def download(url: str, sha256: str, on_event: OnEvent) -> Path:
    """Fetch `url` into the downloads folder and return the complete file, which stays until `discard`.

    Raises Unreachable, or ImageError for a wrong digest (the file is discarded) and a full disk (the part is kept).
    Cancelled, it leaves a part that the next call continues.
    """
    folder = paths.downloads_dir()
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(urllib.parse.urlsplit(url).path).name or url
    with worker.step(on_event, "download", name):
        transfer = _Transfer(url, folder / f"{key_of(url, sha256)}.part", Meter(on_event, "download", name))
        await transfer.complete(pinned=bool(sha256))
        if sha256:
            await _check_digest(transfer.part, url, sha256)
        return transfer.part


def discard(part: Path) -> None:
    """Remove what `download` returned: it is used up, or of no use."""
    part.unlink(missing_ok=True)
    part.with_suffix(".json").unlink(missing_ok=True)


async def _check_digest(part: Path, url: str, sha256: str) -> None:
    found = await worker.run(lambda stop: digest_file(part, stop))
    if found != sha256:
        discard(part)
        raise ImageError(
            f"{shown(url)} is not the file that was asked for",
            why=f"its sha256 is {found}, not {sha256}; it was discarded",
            hint="check the digest, or who stands between this host and the server",
        )


class _Transfer:
    def __init__(self, url: str, part: Path, meter: Meter) -> None:
        self._url = url
        self.part = part
        self._state = part.with_suffix(".json")
        self._meter = meter
        self._answered = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def complete(self, pinned: bool) -> None:
        """Fetch what is missing. A pinned file that is whole needs no server: its digest is checked anyway."""
        known = self._known()
        if pinned and known and known.total and known.total == self._have():
            return
        task = asyncio.ensure_future(worker.run(self._fetch))
        try:
            answered = asyncio.ensure_future(self._answered.wait())
            await asyncio.wait(
                {task, answered}, timeout=_ANSWER_S * timeout_scale(), return_when=asyncio.FIRST_COMPLETED
            )
            answered.cancel()
            if not task.done() and not self._answered.is_set():
                raise self._unreachable(f"no answer in {_ANSWER_S * timeout_scale():.0f} s")
            await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _unreachable(self, why: str) -> Unreachable:
        host = urllib.parse.urlsplit(self._url).hostname or "the host"
        return Unreachable(
            f"{shown(self._url)} cannot be fetched",
            why=f"{host}: {why}",
            hint="check the network and its proxy settings; what has come is kept and continued"
            if self._have()
            else "check the address, the network and its proxy settings",
        )

    def _have(self) -> int:
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    def _fetch(self, stop: Stop) -> None:
        """Attempt after attempt, as long as each brings something."""
        fruitless = 0
        with requests.Session() as session:
            while True:
                before = self._have()
                try:
                    self._attempt(session, stop)
                    return
                except _NETWORK as e:
                    stop.check()
                    fruitless = 0 if self._have() > before else fruitless + 1
                    if not self._have() or fruitless >= _FRUITLESS_ATTEMPTS:
                        raise self._unreachable(_reason(e)) from e
                    stop.sleep(0.5 * fruitless)
                except OSError as e:
                    if e.errno not in _NO_SPACE:
                        raise ImageError(f"{self.part} cannot be written", why=e.strerror or str(e)) from e
                    raise self._full(e.strerror or str(e)) from e

    def _full(self, why: str) -> ImageError:
        return ImageError(
            f"there is no space to download {shown(self._url)}",
            why=why,
            hint=f"free some in {self.part.parent} and try again: the {format_size(self._have())} that came are kept",
        )

    def _attempt(self, session: requests.Session, stop: Stop) -> None:
        have, known = self._have(), self._known()
        headers = {"Accept-Encoding": "identity"}
        if have and known and known.validator:
            headers |= {"Range": f"bytes={have}-", "If-Range": known.validator}
        timeouts = (_CONNECT_S * timeout_scale(), _STALL_S * timeout_scale())
        with session.get(self._url, headers=headers, stream=True, timeout=timeouts) as response:
            stop.waker = response.raw.shutdown
            stop.check()
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._answered.set)
            if response.status_code == 416 and "Range" in headers:
                if known and known.total == have:
                    return
                self.part.unlink()
                raise requests.ConnectionError("the server's file changed")
            if not response.ok:
                raise self._unreachable(f"HTTP {response.status_code} {response.reason}")
            offset = self._offset(response, have, known)
            if offset < 0:
                self.part.unlink()
                raise requests.ConnectionError("the server sent another range than was asked for")
            self._receive(response, offset, stop)

    def _known(self) -> _Part | None:
        try:
            known = msgspec.json.decode(self._state.read_bytes(), type=_Part)
        except (FileNotFoundError, *UNDECODABLE):
            return None
        return known if known.url == self._url else None

    def _offset(self, response: requests.Response, have: int, known: _Part | None) -> int:
        """Where the body belongs: 0 for a whole file, -1 when it fits nowhere. Writes down what the server says."""
        validator = _validator(response)
        if response.status_code == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if (
                match
                and known
                and int(match[1]) == have
                and (validator, int(match[2])) == (known.validator, known.total)
            ):
                return have
            return -1
        total = int(response.headers.get("Content-Length") or 0)
        self._state.write_bytes(msgspec.json.encode(_Part(self._url, validator, total)))
        return 0

    def _receive(self, response: requests.Response, offset: int, stop: Stop) -> None:
        known = self._known()
        total = known.total if known else 0
        mode = "ab" if offset else "wb"
        with self.part.open(mode, buffering=0) as file:
            status = os.statvfs(self.part.parent)
            free = status.f_bavail * status.f_frsize
            if total - offset > free:
                raise self._full(f"it needs {format_size(total - offset)} more, {format_size(free)} are free")
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                stop.check()
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
                offset += len(chunk)
                self._meter.update(offset, total)
        stop.check()  # a connection that was shut down looks like the end of a body without a length
        if total and offset != total:
            raise requests.ConnectionError("the connection was cut")


_NETWORK = (requests.RequestException, urllib3.exceptions.HTTPError)


def _validator(response: requests.Response) -> str:
    etag: str = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    modified: str = response.headers.get("Last-Modified", "")
    return modified


def _reason(error: BaseException) -> str:
    """The innermost cause of a network error, in a few words."""
    if isinstance(error, (requests.ConnectTimeout, requests.ReadTimeout, urllib3.exceptions.TimeoutError)):
        return "it does not answer in time"
    seen: BaseException | None = error
    text = str(error)
    while seen is not None:
        text = str(seen) or text
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        nested = next((a for a in seen.args if isinstance(a, BaseException)), None)
        seen = getattr(seen, "reason", None) if isinstance(getattr(seen, "reason", None), BaseException) else nested
    return re.sub(r"^<[^>]*>: |^\w+\(.*?\): ", "", text)[:200]
