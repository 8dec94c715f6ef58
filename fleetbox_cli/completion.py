"""Completion for all shells: `fleetbox __complete WORD… CURRENT` prints `value<TAB>help` lines.

The shells' own scripts (`shells`) only hand the words over. What the command line looks like comes from `grammar`,
which is generated; names come from records on disk, as they stand, and no holder is started. A keypress waits for
this: neither Typer nor a verb is loaded, nor anything else that takes milliseconds to import.
"""

from __future__ import annotations

import os

from fleetbox.roots import root
from fleetbox_cli.grammar import GRAMMAR

TYPE_CHECKING = False  # as `typing` has it, which would take longer to import than the rest to run
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fleetbox_cli.grammar import Verb

    Candidate = tuple[str, str]

_GUEST = "COMMAND"


def complete(words: Sequence[str]) -> list[str]:
    """Lines for the last of `words`, which may be empty or half written; nothing where the shell's files are meant."""
    *before, current = words or [""]
    found = {value: text for value, text in _candidates(before, current) if value.startswith(current)}
    return [f"{value}\t{text}" if text else value for value, text in sorted(found.items())]


def _candidates(before: Sequence[str], current: str) -> Iterator[Candidate]:
    verb, options = GRAMMAR, dict(GRAMMAR["options"])
    arguments: list[str] = []
    words = iter(before)
    for word in words:
        if word.startswith("-") and word != "-":
            kind = options.get(word, "").partition("\t")[0]
            if kind and next(words, None) is None:
                yield from _values(kind, (), current)
                return
        elif verb["verbs"]:
            if word not in verb["verbs"]:
                return
            verb = verb["verbs"][word]
            options |= verb["options"]
        else:
            arguments.append(word)
            if _kind(verb, len(arguments)) == _GUEST:
                return
    if current.startswith("-"):
        yield from ((name, option.partition("\t")[2]) for name, option in options.items())
        return
    yield from ((name, sub["help"]) for name, sub in verb["verbs"].items())
    yield from _values(_kind(verb, len(arguments)), arguments, current)


def _kind(verb: Verb, index: int) -> str:
    """What the argument at `index` is, empty when there is none; the last may repeat."""
    kinds = verb["arguments"]
    if index < len(kinds):
        return kinds[index].removesuffix("...")
    return kinds[-1].removesuffix("...") if kinds and kinds[-1].endswith("...") else ""


def _values(kind: str, taken: Sequence[str], current: str) -> Iterator[Candidate]:
    if "|" in kind:
        yield from ((choice, "") for choice in kind.split("|"))
    elif source := _SOURCES.get(kind):
        yield from ((value, text) for value, text in source(current) if value not in taken)


def _records(folder: str, name: str) -> Iterator[tuple[str, dict[str, object]]]:
    """The records that can be read, with their folder's name; broken ones are for the verbs to report."""
    import json

    try:
        found = sorted(os.listdir(folder))
    except OSError:
        return
    for entry in found:
        try:
            with open(f"{folder}/{entry}/{name}", encoding="utf-8") as file:
                record = json.load(file)
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            yield entry, record


def _clusters(current: str) -> Iterator[Candidate]:
    folder = f"{root('state')}/clusters"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    yield from ((name, "cluster") for name in names if os.path.exists(f"{folder}/{name}/cluster.json"))


def _readable() -> dict[str, dict[str, object]]:
    """The members of every cluster whose record can be read."""
    found = _records(f"{root('state')}/clusters", "cluster.json")
    return {cluster: members for cluster, record in found if isinstance(members := record.get("members"), dict)}


def _members(clusters: dict[str, dict[str, object]], *, end: str = "") -> Iterator[Candidate]:
    """Every member as CLUSTER/NAME, and by its bare name where that is enough."""
    scope = os.environ.get("FLEETBOX_CLUSTER")
    names = [name for members in clusters.values() for name in members]
    for cluster, members in clusters.items():
        for name, member in members.items():
            state = str(member.get("state", "")) if isinstance(member, dict) else ""
            yield f"{cluster}/{name}{end}", state
            if names.count(name) == 1 or scope == cluster:
                yield f"{name}{end}", f"{state}, of {cluster}"


def _refs(current: str) -> Iterator[Candidate]:
    clusters = _readable()
    yield from ((name, "cluster") for name in clusters)
    yield from _members(clusters)


def _places(current: str) -> Iterator[Candidate]:
    """What `cp` takes: members with their colon, and files here; what is on a member is not looked at."""
    yield from _members(_readable(), end=":")
    folder, slash, _ = current.rpartition("/")
    try:
        entries = list(os.scandir(f"{folder}{slash}" or "."))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") and not current.rpartition("/")[2].startswith("."):
            continue
        yield f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}", ""


def _images(current: str) -> Iterator[Candidate]:
    yield DEFAULT_IMAGE, "default"
    for digest, record in _records(f"{root('data')}/images", "image.json"):
        names = record.get("names")
        for name in names if isinstance(names, list) and names else [digest[:12]]:
            yield str(name), str(record.get("source", ""))


def _snapshots(current: str) -> Iterator[Candidate]:
    for name, record in _records(f"{root('data')}/snapshots", "snapshot.json"):
        if not name.startswith("."):
            yield str(record.get("name") or name), f"{record.get('kind')} of {record.get('cluster')}"


def _templates(current: str) -> Iterator[Candidate]:
    for key, record in _records(f"{root('cache')}/templates", "template.json"):
        if not key.startswith("."):
            yield key[:12], f"{record.get('image') or record.get('backend')}, {record.get('cpus')} cpus"


DEFAULT_IMAGE = "debian-12"

_SOURCES: dict[str, Callable[[str], Iterator[Candidate]]] = {
    "CLUSTER": _clusters,
    "REF": _refs,
    "IMAGE": _images,
    "SNAPSHOT": _snapshots,
    "TEMPLATE": _templates,
    "SRC... DST": _places,
}
