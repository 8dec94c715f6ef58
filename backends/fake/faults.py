"""Scripted faults of the fake backend.

`FLEETBOX_FAKE_FAULTS` holds rules, separated by commas or line ends; of several that match, the first counts::

    rule    = step [":" target] "=" action
    step    = network | create | start | boot | address | pause | resume | snapshot | restore | stop | adopt
    target  = shell pattern of a member (node-2, node-?, mycluster/*), for `network` of a cluster; all when left out
    action  = fail | hang | die | slow:SECONDS | die-after:SECONDS

For example::

    start:node-2=fail            node-2's hypervisor refuses to start
    start:*=die                  every hypervisor crashes while it starts
    boot:node-1=die-after:0.5    node-1 runs, and crashes half a second later
    boot=slow:2.5                every machine boots for 2.5 seconds
    address:node-3=hang          node-3 never answers on its address
    stop:node-1=hang             node-1 ignores its power button and SIGTERM: only SIGKILL ends it
    network=fail                 no network can be made

`fail` raises the step's error, and is a kernel panic for `boot`. `hang` lasts until the call is cancelled or its time
is up. `die` ends the machine's process by SIGKILL within the step. `slow` goes on after that time. `restore` is the
start of a machine from a snapshot and comes after its `start`; such a machine does not `boot`. `stop=hang` is settled
when the machine starts: the guest itself is deaf, also to the next holder.

A value `@FILE` is a file of such rules that is read anew at every step (no file: no faults), so that a test can change
the faults of a holder that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from fleetbox.errors import FleetboxError, MachineError, NetworkError, UsageError

_PLAIN = frozenset({"fail", "hang"})
_TIMED = frozenset({"slow", "die-after"})
STEPS: dict[str, frozenset[str]] = {
    "network": _PLAIN | {"slow"},
    "create": _PLAIN | {"slow"},
    "start": _PLAIN | {"slow", "die"},
    "boot": _PLAIN | {"slow", "die", "die-after"},
    "address": _PLAIN | {"slow", "die"},
    "pause": _PLAIN | {"slow", "die"},
    "resume": _PLAIN | {"slow", "die"},
    "snapshot": _PLAIN | {"slow", "die"},
    "restore": _PLAIN | {"slow", "die"},
    "stop": _PLAIN | {"slow", "die"},
    "adopt": _PLAIN | {"slow", "die"},
}
_RULE = re.compile(r"(?P<step>[a-z]+)(?::(?P<target>[^=\s]+))?=(?P<action>[a-z-]+)(?::(?P<seconds>\d+(?:\.\d*)?))?")


@dataclass(frozen=True)
class Fault:
    """One rule. `target` is a shell pattern, `seconds` belongs to `slow` and `die-after`."""

    step: str
    target: str
    action: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.step}:{self.target}={self.action}" + (f":{self.seconds:g}" if self.action in _TIMED else "")

    def hits(self, step: str, name: str) -> bool:
        """Whether it applies to the step of the cluster or `cluster/member` of that name."""
        return step == self.step and any(fnmatch.fnmatchcase(n, self.target) for n in (name, name.rpartition("/")[2]))

    def error(self, name: str) -> FleetboxError:
        """What the step raises when it fails."""
        kind = NetworkError if self.step == "network" else MachineError
        return kind(f"{name}: the step '{self.step}' failed", why=f"the fake backend was told so ({self})")


def parse(text: str) -> tuple[Fault, ...]:
    """The rules of `text`; raises UsageError for one that is not understood."""
    return tuple(_parse_rule(rule) for part in re.split(r"[,\n]", text) if (rule := part.strip()))


def _parse_rule(rule: str) -> Fault:
    match = _RULE.fullmatch(rule)
    if match is None:
        raise _unknown(rule, "a fault reads STEP[:MEMBER]=ACTION")
    step, action = match["step"], match["action"]
    if step not in STEPS:
        raise _unknown(rule, f"the steps are {', '.join(STEPS)}")
    if action not in STEPS[step]:
        raise _unknown(rule, f"the step '{step}' can {', '.join(sorted(STEPS[step]))}")
    if (action in _TIMED) != (match["seconds"] is not None):
        raise _unknown(rule, f"'{action}' {'needs' if action in _TIMED else 'takes no'} seconds")
    return Fault(step, match["target"] or "*", action, float(match["seconds"] or 0))


def _unknown(rule: str, why: str) -> UsageError:
    return UsageError(
        f"{rule!r} is not a fault of the fake backend",
        why=why,
        hint="for example FLEETBOX_FAKE_FAULTS=start:node-2=fail,boot:*=slow:2.5",
    )


class Faults:
    """The rules in force. Tests may assign `text` at any time; raises UsageError for what is not understood."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    @property
    def text(self) -> str:
        return self._text

    @text.setter
    def text(self, text: str) -> None:
        self._file = Path(text[1:]) if text.startswith("@") else None
        self._rules = () if self._file else parse(text)
        self._text = text

    def find(self, step: str, name: str) -> Fault | None:
        """The first rule for that step of a cluster or `cluster/member`."""
        rules = self._rules
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                rules = parse(self._file.read_text())
        return next((rule for rule in rules if rule.hits(step, name)), None)

    async def reach(self, step: str, name: str) -> Fault | None:
        """Go through a step: wait when it is slow, never return when it hangs, raise its error when it fails.

        Returns the rule, as the other actions are the machine's to perform.
        """
        fault = self.find(step, name)
        if fault is None:
            return None
        match fault.action:
            case "slow":
                await asyncio.sleep(fault.seconds)
            case "hang":
                await asyncio.get_running_loop().create_future()
            case "fail":
                raise fault.error(name)
        return fault
