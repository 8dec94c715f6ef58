"""Completion for all shells: `fleetbox __complete WORD… CURRENT` prints `value<TAB>help` lines.

The shells' own scripts only hand the words over. What the command line looks like comes from `grammar`, which is
generated, so that neither Typer nor a verb is loaded; names come from records on disk, and no holder is started.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from fleetbox_cli.grammar import GRAMMAR, Verb

Candidate = tuple[str, str]
_GUEST = "COMMAND"


def complete(words: Sequence[str]) -> list[str]:
    """Lines for the last of `words`, which may be empty or half written; nothing where files are meant."""
    *before, current = words or [""]
    found = {value: text for value, text in _candidates(before, current) if value.startswith(current)}
    return [f"{value}\t{text}" if text else value for value, text in sorted(found.items())]


def _candidates(before: Sequence[str], current: str) -> Iterator[Candidate]:
    verb, options = GRAMMAR, dict(GRAMMAR["options"])
    arguments: list[str] = []
    words = iter(before)
    for word in words:
        if word.startswith("-"):
            kind = options.get(word, "").partition("\t")[0]
            if kind and next(words, None) is None:
                yield from _values(kind, ())
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
    yield from _values(_kind(verb, len(arguments)), arguments)


def _kind(verb: Verb, index: int) -> str:
    """What the argument at `index` is, empty when there is none; the last may repeat."""
    kinds = verb["arguments"]
    if index < len(kinds):
        return kinds[index].removesuffix("...")
    return kinds[-1].removesuffix("...") if kinds and kinds[-1].endswith("...") else ""


def _values(kind: str, taken: Sequence[str]) -> Iterator[Candidate]:
    if "|" in kind:
        yield from ((choice, "") for choice in kind.split("|"))
    elif source := _SOURCES.get(kind):
        yield from ((value, help_text) for value, help_text in source() if value not in taken)


def _clusters() -> Iterator[Candidate]:
    from fleetbox.records import cluster_names

    yield from ((name, "cluster") for name in cluster_names())


def _refs() -> Iterator[Candidate]:
    from fleetbox.records import ClusterRecord, observed_state, read_clusters

    records = [entry for entry in read_clusters() if isinstance(entry, ClusterRecord)]
    scope = os.environ.get("FLEETBOX_CLUSTER")
    names = [name for record in records for name in record.members]
    for record in records:
        yield record.name, "cluster"
        for member in record.members.values():
            state = observed_state(member).value
            yield f"{record.name}/{member.name}", state
            if names.count(member.name) == 1 or scope == record.name:
                yield member.name, f"{state}, of {record.name}"


def _images() -> Iterator[Candidate]:
    import msgspec

    from fleetbox import paths
    from fleetbox.specs import DEFAULT_IMAGE

    yield DEFAULT_IMAGE, "default"
    for path in paths.images_dir().glob("*/image.json"):
        try:
            record = msgspec.json.decode(path.read_bytes())
            yield from ((name, record["source"]) for name in record["names"] or [record["digest"][:12]])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a broken record is for `fleetbox image ls` to report


def _snapshots() -> Iterator[Candidate]:
    from fleetbox import paths

    for record in _records(paths.snapshots_dir(), "snapshot.json"):
        yield str(record.get("name") or record.get("id", "")), f"{record.get('kind')} of {record.get('cluster')}"


def _templates() -> Iterator[Candidate]:
    from fleetbox import paths

    for record in _records(paths.templates_dir(), "template.json"):
        image = record.get("image") or record.get("backend")
        yield str(record.get("key", ""))[:12], f"{image}, {record.get('cpus')} cpus"


def _records(folder: Path, name: str) -> Iterator[dict[str, object]]:
    """The records that can be read; a broken one is for the verbs to report."""
    import msgspec

    for path in folder.glob(f"[0-9a-f]*/{name}"):
        with suppress(OSError, ValueError, TypeError):
            yield msgspec.json.decode(path.read_bytes(), type=dict[str, object])


_SOURCES: dict[str, Callable[[], Iterator[Candidate]]] = {
    "CLUSTER": _clusters,
    "REF": _refs,
    "IMAGE": _images,
    "SNAPSHOT": _snapshots,
    "TEMPLATE": _templates,
}
