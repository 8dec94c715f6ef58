"""Every error that fleetbox raises.

The tree, with each class's exit code::

    FleetboxError                 1
    ├── UsageError                2   the request makes no sense as written
    ├── NotFoundError             3   no such cluster, member, image
    ├── AmbiguousError            4   several answer to the name
    ├── HolderError               5   the holder cannot be talked to
    │   ├── ProtocolError         5   … because it is of another version
    │   └── HolderEnding          5   … because it is about to end; ask again
    ├── HostError                 6   this host cannot do it (`fleetbox doctor` knows more)
    ├── ConflictError             1   it exists already, or something else uses it
    ├── RecordError               1   a state file cannot be read or written
    ├── ImageError                1   an image cannot be had, read or used
    ├── DiskError                 1   a disk cannot be made, grown or locked
    ├── SnapshotError             1   a snapshot or its archive cannot be made, read or used
    ├── NetworkError              1   the cluster's network cannot be made or kept
    ├── MachineError              1   a machine did not start, answer or stop
    │   └── TimedOut              1   … or did not become what was waited for
    ├── PartialError              1   some of several targets failed; `failures` names each
    └── OperationInterrupted       130   the user stopped it (Ctrl-C, SIGTERM)

An error says in one line each what happened (`message`), why (`why`) and what to do (`hint`). `details` holds further
lines worth reading, such as the end of a machine's serial log. Every error crosses the control socket unchanged:
`to_wire` and `from_wire` are inverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

__all__ = [
    "AmbiguousError",
    "ConflictError",
    "DiskError",
    "FleetboxError",
    "HolderEnding",
    "HolderError",
    "HostError",
    "ImageError",
    "MachineError",
    "NetworkError",
    "NotFoundError",
    "OperationInterrupted",
    "PartialError",
    "ProtocolError",
    "RecordError",
    "SnapshotError",
    "TimedOut",
    "UsageError",
    "from_wire",
]


class FleetboxError(Exception):
    """Base of all errors; see the module's tree."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, why: str = "", hint: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.why = why
        self.hint = hint
        self.details = tuple(details)

    def __str__(self) -> str:
        return f"{self.message}: {self.why}" if self.why else self.message

    def to_wire(self) -> dict[str, Any]:
        """The error as JSON-ready `{code, message, why, hint, details}`."""
        return {
            "code": self.code,
            "message": self.message,
            "why": self.why,
            "hint": self.hint,
            "details": list(self.details),
        }


class UsageError(FleetboxError):
    code = "usage"
    exit_code = 2


class NotFoundError(FleetboxError):
    code = "not-found"
    exit_code = 3


class AmbiguousError(FleetboxError):
    code = "ambiguous"
    exit_code = 4


class HolderError(FleetboxError):
    code = "holder-unreachable"
    exit_code = 5


class ProtocolError(HolderError):
    code = "protocol-mismatch"


class HolderEnding(HolderError):
    code = "holder-ending"


class HostError(FleetboxError):
    code = "host-cannot"
    exit_code = 6


class ConflictError(FleetboxError):
    code = "conflict"


class RecordError(FleetboxError):
    code = "record"


class ImageError(FleetboxError):
    code = "image"


class DiskError(FleetboxError):
    code = "disk"


class SnapshotError(FleetboxError):
    code = "snapshot"


class NetworkError(FleetboxError):
    code = "network"


class MachineError(FleetboxError):
    code = "machine"


class TimedOut(MachineError):
    code = "timed-out"


class PartialError(FleetboxError):
    """Some of several targets failed; the others are done.

    `failures` maps each failed target's name to its own error.
    """

    code = "partial"

    def __init__(self, message: str, failures: Mapping[str, FleetboxError], **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.failures = dict(failures)

    def to_wire(self) -> dict[str, Any]:
        return super().to_wire() | {"failures": {name: e.to_wire() for name, e in self.failures.items()}}


class OperationInterrupted(FleetboxError):
    code = "interrupted"
    exit_code = 130


_BY_CODE: dict[str, type[FleetboxError]] = {
    cls.code: cls
    for cls in (
        FleetboxError,
        UsageError,
        NotFoundError,
        AmbiguousError,
        HolderError,
        ProtocolError,
        HolderEnding,
        HostError,
        ConflictError,
        RecordError,
        ImageError,
        DiskError,
        SnapshotError,
        NetworkError,
        MachineError,
        TimedOut,
        OperationInterrupted,
    )
}


def from_wire(data: Mapping[str, Any]) -> FleetboxError:
    """The error that `to_wire` described; an unknown code becomes a plain FleetboxError."""
    common: dict[str, Any] = {
        "why": str(data.get("why", "")),
        "hint": str(data.get("hint", "")),
        "details": [str(line) for line in data.get("details", ())],
    }
    message = str(data.get("message", "unknown error"))
    if data.get("code") == PartialError.code:
        failures = {str(name): from_wire(e) for name, e in dict(data.get("failures", {})).items()}
        return PartialError(message, failures, **common)
    return _BY_CODE.get(str(data.get("code")), FleetboxError)(message, **common)
