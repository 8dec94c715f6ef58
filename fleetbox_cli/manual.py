"""Man pages, in man(7) macros: a verb's from the same source as its `--help`, a topic's from `topics`."""

from __future__ import annotations

import inspect
import re
from typing import Any

from fleetbox_cli.topics import TOPICS, Topic
from fleetbox_cli.verb import LazyGroup

ENVIRONMENT = {
    "FLEETBOX_CLUSTER": "The cluster that bare member names belong to.",
    "FLEETBOX_BACKEND": "The hypervisor of new clusters.",
    "FLEETBOX_NETWORK": "Where the networks of new clusters are made: auto, host or private.",
    "FLEETBOX_HOME": "Keep everything below this folder instead of the XDG folders.",
    "FLEETBOX_TIMEOUT_SCALE": "What every time limit is multiplied by, for slow hosts. [default: 1]",
    "NO_COLOR": "Print no colors.",
}
EXIT_STATUS = {
    "0": "Done.",
    "1": "Failed; with several targets, some of them.",
    "2": "The command line makes no sense.",
    "3": "Not found.",
    "4": "Ambiguous.",
    "5": "The holder is unreachable or of another version.",
    "6": "This host cannot do it; fleetbox doctor says why.",
    "130": "Interrupted.",
}


def verb_page(path: list[str], command: Any, context: Any) -> str:
    """The page of a verb or of a group of verbs."""
    parameters = command.get_params(context)
    name = "-".join(path)
    summary, _, rest = inspect.cleandoc(command.help or "").partition("\n")
    lines = _head(name, 1, summary)
    lines += [".SH SYNOPSIS", f".B {_roff(' '.join(path))}", _synopsis(command, parameters)]
    lines += [".SH DESCRIPTION", *_paragraphs(f"{summary}\n{rest}")]
    if isinstance(command, LazyGroup):
        for section in dict.fromkeys(entry.section for entry in command.entries.values()):
            lines += [".SH COMMANDS"] if section == "Commands" else _heading(section, first=".SH COMMANDS" not in lines)
            for verb, entry in command.entries.items():
                if entry.section == section:
                    lines += [".TP", f".BR {_roff(f'{name}-{verb}')} (1)", _roff(entry.help)]
    if arguments := [p for p in parameters if p.param_type_name == "argument"]:
        lines.append(".SH ARGUMENTS")
        for p in arguments:
            lines += [".TP", f".I {_roff(p.metavar)}", _roff(p.help or "")]
    lines.append(".SH OPTIONS")
    for p in parameters:
        if p.param_type_name == "option":
            value = "" if p.is_flag or p.count else f" \\fI{_roff(p.metavar or '')}\\fR"
            lines += [".TP", ", ".join(f"\\fB{_roff(o)}\\fR" for o in p.opts) + value, _roff(p.help or "")]
    if len(path) == 1:
        for title, terms in (("ENVIRONMENT", ENVIRONMENT), ("EXIT STATUS", EXIT_STATUS)):
            lines += [f".SH {title}", *_terms(terms)]
    if examples := _examples(command):
        lines += [".SH EXAMPLES", ".nf", *(_roff(line) for line in examples), ".fi"]
    return _page([*lines, *_see_also(path, command)])


def topic_page(topic: Topic) -> str:
    """The page of a topic (section 7)."""
    lines = _head(topic.name, 7, topic.summary)
    for title, text in topic.sections.items():
        lines += [f".SH {title}", *_blocks(text)]
    others = [f"{other.name} (7)" for other in TOPICS if other is not topic]
    return _page([*lines, *_references([f"{name} (1)" for name in topic.verbs] + others)])


def _head(name: str, section: int, summary: str) -> list[str]:
    return [
        f'.TH {_roff(name.upper())} {section} "" "fleetbox" "fleetbox"',
        ".SH NAME",
        f"{_roff(name)} \\- {_roff(summary.rstrip('.'))}",
    ]


def _heading(section: str, *, first: bool) -> list[str]:
    return [*([".SH COMMANDS"] if first else []), f".SS {_roff(section)}"]


def _synopsis(command: Any, parameters: list[Any]) -> str:
    names = [p.metavar for p in parameters if p.param_type_name == "argument"]
    words = ["[OPTIONS]", *names, *(["COMMAND ..."] if isinstance(command, LazyGroup) else [])]
    return "\\fI" + _roff(" ".join(words)) + "\\fR"


def _see_also(path: list[str], command: Any) -> list[str]:
    parent = "-".join(path[:-1])
    if not parent:
        return _references([f"{topic.name} (7)" for topic in TOPICS])
    verb = "-".join(path)
    topics = [f"{topic.name} (7)" for topic in TOPICS if verb in topic.verbs]
    return _references([f"{name} (1)" for name in dict.fromkeys([parent, "fleetbox"])] + topics)


def _references(pages: list[str]) -> list[str]:
    lines = [f".BR {_roff(page)}" for page in pages]
    return [".SH SEE ALSO", *(f"{line} ," for line in lines[:-1]), lines[-1]]


def _terms(terms: dict[str, str]) -> list[str]:
    return [line for term, text in terms.items() for line in (".TP", f".B {_roff(term)}", _roff(text))]


def _examples(command: Any) -> list[str]:
    _, found, text = (command.epilog or "").partition("Examples:\n")
    return inspect.cleandoc(text).splitlines() if found else []


def _paragraphs(text: str) -> list[str]:
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n") if p.strip()]
    return [line for p in paragraphs for line in (".PP", _roff(p))]


def _blocks(text: str) -> list[str]:
    """A topic's text: paragraphs; `term: text` lines behind two blanks are a list, deeper ones stand as they are."""
    lines: list[str] = []
    for block in text.strip("\n").split("\n\n"):
        if block.startswith("    "):
            lines += [".PP", ".RS 4", ".nf", *(_roff(line[4:]) for line in block.splitlines()), ".fi", ".RE"]
        elif block.startswith("  "):
            for item in re.split(r"\n {2}(?! )", block[2:]):
                term, _, meaning = " ".join(item.split()).partition(": ")
                lines += [".TP", f".B {_roff(term)}", _roff(meaning)]
        else:
            lines += [".PP", _roff(" ".join(block.split()))]
    return lines


def _roff(text: str) -> str:
    """Text as roff takes it: no escape, no request, and only ASCII."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    escaped = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in escaped)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _page(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
