"""Which of the host's apt sources are the distribution's own archive (sources.list(5), both formats).

An archive build takes nothing from anybody else: a third-party source may carry the release's very name as its suite,
so a source counts only when its Release file says `Origin: Debian`. It is fetched by apt itself, with the host's
proxies and certificates.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fleetbox.backends.host.process import ProgramFailed, run_blocking
from fleetbox.errors import HostError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_APT_HELPER = "/usr/lib/apt/apt-helper"
_POCKETS = ("", "-updates", "-security", "/updates")
_CARRIED = re.compile(r"Acquire::(?:https?::.*|Check-Valid-Until|Check-Date|Retries|ForceIPv[46]) \"")


@dataclass(frozen=True)
class Source:
    """One archive, suite and its components; `signed_by` is a keyring's path, an inlined key, or empty."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""

    def deb822(self) -> str:
        lines = [
            "Types: deb",
            f"URIs: {self.uri}",
            f"Suites: {self.suite}",
            f"Components: {' '.join(self.components)}",
            f"Signed-By: {self.signed_by or KEYRING}",
        ]
        return "\n".join(lines) + "\n"


def read_sources(etc_apt: Path = Path("/etc/apt")) -> list[Source]:
    """Every enabled binary source of the host, in apt's order. Files that cannot be read are as good as absent."""
    files = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    found: list[Source] = []
    for file in files:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        if file.suffix == ".list":
            found += _parse_list(text)
        elif file.suffix == ".sources":
            found += _parse_deb822(text)
    return [replace(source, uri=_behind_mirror_list(source.uri)) for source in found]


def _parse_list(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)]\s+)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if match:
            options = dict(option.split("=", 1) for option in (match[1] or "").split() if "=" in option)
            yield Source(match[2], match[3], tuple(match[4].split()), options.get("signed-by", ""))


def _parse_deb822(text: str) -> Iterator[Source]:
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')}\n{line}"
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(uri, suite, tuple(fields.get("components", "").split()), fields.get("signed-by", ""))


def _behind_mirror_list(uri: str) -> str:
    """The first mirror of a `mirror+file:` list, as Debian's cloud images use: the guest has no such file."""
    if uri.startswith("mirror+file:"):
        try:
            lines = Path(uri.removeprefix("mirror+file:")).read_text().splitlines()
        except OSError:
            return uri
        return next((line.split()[0] for line in lines if line.strip() and not line.startswith("#")), uri)
    return uri


def archive_sources(
    suite: str, host_suite: str, sources: Sequence[Source], origin_of: Callable[[Source], str]
) -> tuple[list[Source], list[str]]:
    """The sources of Debian's release `suite`, and in words what was left out and why.

    A host of another Debian release, `host_suite`, reaches the same archive: its sources serve with the suite
    exchanged.
    """
    wanted = [suite + pocket for pocket in _POCKETS]
    candidates = [s for s in sources if s.suite in wanted and "main" in s.components]
    if not any(s.suite == suite for s in candidates) and host_suite:
        candidates = [
            replace(s, suite=suite + s.suite.removeprefix(host_suite))
            for s in sources
            if s.suite in [host_suite + pocket for pocket in _POCKETS] and "main" in s.components
        ]
    taken: dict[tuple[str, str], Source] = {}
    left_out = []
    for source in candidates:
        origin = origin_of(source)
        if origin == "Debian":
            # Others' components would bring firmware and the like that a stock guest does not have.
            taken.setdefault((source.uri, source.suite), replace(source, components=("main",)))
        else:
            left_out.append(f"{source.uri} {source.suite} ({f'its origin is {origin}' if origin else 'not reachable'})")
    return (list(taken.values()) if any(s.suite == suite for s in taken.values()) else []), left_out


def fetch_origin(source: Source) -> str:
    """The `Origin` of a source's Release file; empty when it cannot be fetched."""
    if not source.uri.startswith(("http://", "https://", "file:/", "copy:/")):
        return ""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "InRelease"
        Path(folder).chmod(0o755)  # apt fetches as its own user where it can
        argv = [_APT_HELPER, "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
        address = f"{source.uri.rstrip('/')}/dists/{source.suite}/InRelease"
        try:
            run_blocking([*argv, "download-file", address, str(target)], timeout_s=30)
            text = target.read_text(errors="replace")
        except (ProgramFailed, HostError, OSError):
            return ""
    match = re.search(r"(?m)^Origin: *(.*?) *$", text)
    return match[1] if match else "unknown"


def apt_options() -> str:
    """The host's apt settings that decide how it reaches the archive, as lines of apt.conf(5)."""
    dump = run_blocking(["apt-config", "dump"]).decode(errors="replace")
    return "\n".join(line for line in dump.splitlines() if _CARRIED.match(line)) + "\n"


def host_codename(os_release: Path = Path("/etc/os-release")) -> str:
    """The codename of the Debian release that this host runs; empty on another distribution."""
    try:
        fields = dict(line.split("=", 1) for line in os_release.read_text().splitlines() if "=" in line)
    except OSError:
        return ""
    return fields.get("VERSION_CODENAME", "").strip('"') if fields.get("ID", "").strip('"') == "debian" else ""
