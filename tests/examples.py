"""The examples of docstrings and documents, as doctest runs them: on a cluster `demo` of three, called `cluster`.

An example with the option GUEST talks to a guest: it is run where there are some.
"""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path
from types import ModuleType

import fleetbox
from fleetbox import cluster, events, host, images, member, refs, snapshots, templates, wait

ROOT = Path(__file__).parents[1]
GUEST = doctest.register_optionflag("GUEST")
MODULES: tuple[ModuleType, ...] = (
    fleetbox,
    cluster,
    events,
    host,
    images,
    member,
    refs,
    snapshots,
    templates,
    wait,
)
DOCUMENTS = ("docs/reference/python.md",)
FENCE = re.compile(r"^```.*$", re.MULTILINE)


def examples() -> list[doctest.DocTest]:
    """All that there are, by where they stand."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for module in MODULES for test in finder.find(module, module.__name__) if test.examples]
    for name in DOCUMENTS:
        text = FENCE.sub("", (ROOT / name).read_text())  # a fence would be taken for expected output
        found.append(doctest.DocTestParser().get_doctest(text, {}, name, name, 0))
    return found


def run(test: doctest.DocTest, *, guests: bool) -> str:
    """Run one, with a demo cluster that is as it should be; what went wrong, empty when nothing did.

    With `guests` only the examples that need some are run, without them all others.
    """
    for other in fleetbox.clusters():
        if other.name != "demo" or {m.name for m in other.members} - {"node-1", "node-2", "node-3"}:
            other.destroy()
    demo = fleetbox.up("demo", members=3, cold=not guests)
    test.globs = {
        "fleetbox": fleetbox,
        "wait": wait,
        "snapshots": snapshots,
        "cluster": demo,
        "member": demo.members[0],
        **{name: value for name, value in vars(wait).items() if inspect.isfunction(value)},
    }
    for example in test.examples:
        example.options[doctest.SKIP] = bool(example.options.get(GUEST)) is not guests
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    snapshots.remove([snapshot.id for snapshot in snapshots.list_snapshots()])
    return "".join(said)
