"""What the texts of records look like. A record may have been forged, or be damaged: texts that become paths, interface
names or arguments are checked when it is decoded, before anything is done with them.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import DecodeError, Meta

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"

Label = Annotated[str, Meta(pattern=rf"\A{_LABEL}\Z")]
"""A cluster's or member's name."""

Id = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]

Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
OptionalDigest = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]

Word = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9-]{0,128}\Z")]
"""A plain word, or nothing: a backend, an instance, a boot id."""

Interface = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._@-]{0,14}\Z")]
"""A network interface of this host, safe as a folder below /proc/sys."""

Address = Annotated[str, Meta(pattern=r"\A[0-9.]{0,15}\Z")]
Subnet = Annotated[str, Meta(pattern=r"\A[0-9./]{0,18}\Z")]
Mac = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{2}(?::[0-9a-f]{2}){5})?\Z")]

Pid = Annotated[int, Meta(ge=1, le=1 << 22)]
"""A process: more than PID_MAX_LIMIT there cannot be."""

Slot = Annotated[int, Meta(ge=0, le=1)]

MemberFile = Annotated[str, Meta(pattern=rf"\A{_LABEL}/[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}\Z")]
"""`member/file` in a snapshot's folder."""

UNDECODABLE = (DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON that anybody may have written raises."""
