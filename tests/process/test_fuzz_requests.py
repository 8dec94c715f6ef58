"""Ten thousand malformed requests to a holder's control socket.

Made from the holder's own description of what it takes (the request types, as JSON Schema) and from mutated bytes of
HTTP; the same in every run. None may be answered with 5xx, hang, leave a traceback in the log, take memory, or do
anything: the cluster afterwards is what it was before.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

import fleetbox
from fleetbox import paths, records, wire
from fleetbox.control import ControlSocket

TYPES: dict[str, type[wire.Request]] = {
    "up": wire.UpRequest,
    "add": wire.AddRequest,
    "start": wire.TargetsRequest,
    "stop": wire.TargetsRequest,
    "destroy": wire.TargetsRequest,
    "save": wire.SaveRequest,
    "restore": wire.RestoreRequest,
    "clone": wire.CloneRequest,
}
WRONG_SHAPE, WRONG_SENSE, WRONG_HTTP = 6000, 1500, 2500
PROTOCOL = f"{wire.PROTOCOL_HEADER}: {wire.PROTOCOL}\r\n".encode()

# Nothing of these is a name, a snapshot, an image or a path that a request could be served with.
NASTY = (
    "",
    "-rf",
    "--help",
    "../../etc",
    "node-9\n",
    "a\0b",
    "node-1,romfile=/etc/shadow",
    "$(reboot)",
    "'; drop table",
    "\ud7ff\U0010ffff",
    "x" * 5000,
    "NODE-1",
    "node-1/../node-2",
    "no-such-one",
)


class Connection:
    """A connection that is used again as long as the holder keeps it, as answering is what is tested."""

    def __init__(self, path: Path, limit_s: float) -> None:
        self._path, self._limit_s = path, limit_s
        self._socket: socket.socket | None = None

    def send(self, data: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; (0, b"") when it hangs up. A holder that is silent is a TimeoutError."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(self._limit_s)
            self._socket.connect(str(self._path))
        try:
            self._socket.sendall(data)
            file = self._socket.makefile("rb")
            status = file.readline()
            if not status:
                raise ConnectionResetError
            lines = iter(file.readline, b"\r\n")
            headers = dict(line.rstrip().lower().split(b": ", 1) for line in lines if b": " in line)
            body = b""
            if headers.get(b"transfer-encoding") == b"chunked":
                while size := int(file.readline(), 16):
                    body += file.read(size + 2)[:-2]
                file.readline()
            else:
                body = file.read(int(headers.get(b"content-length", b"0")))
            if headers.get(b"connection") == b"close":
                self.close()
            return int(status.split()[1]), body
        except ConnectionError:
            self.close()
            return 0, b""

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n".encode()
    return head + PROTOCOL + b"\r\n" + body


def any_value(chance: random.Random, depth: int = 0) -> Any:
    simple: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: chance.choice((True, False)),
        lambda: chance.choice((0, -1, 1 << 31, 1 << 63, 1 << 80, -(1 << 70))),
        lambda: chance.choice((0.5, -1e300, 1e-300)),
        lambda: chance.choice(NASTY),
    )
    if depth < 3 and chance.random() < 0.3:
        if chance.random() < 0.5:
            return [any_value(chance, depth + 1) for _ in range(chance.randrange(4))]
        return {chance.choice(NASTY): any_value(chance, depth + 1) for _ in range(chance.randrange(4))}
    return chance.choice(simple)()


def as_described(chance: random.Random, schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """A value as the schema wants it, but for chance."""
    if chance.random() < 0.08:
        return any_value(chance)
    if "$ref" in schema:
        return as_described(chance, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return as_described(chance, chance.choice(schema["anyOf"]), root)
    if "enum" in schema:
        return chance.choice([*schema["enum"], "none of them"])
    match schema.get("type"):
        case "object":
            value = {
                name: as_described(chance, kind, root)
                for name, kind in schema.get("properties", {}).items()
                if chance.random() < 0.6
            }
            if chance.random() < 0.2:
                value[chance.choice(NASTY)] = any_value(chance)
            return value
        case "array":
            return [as_described(chance, schema.get("items", {}) or {}, root) for _ in range(chance.randrange(3))]
        case "string":
            return chance.choice(NASTY)
        case "integer":
            return chance.choice((-5, 0, 1 << 40))
        case "number":
            return chance.choice((-1.0, 0.0, 1e300))
        case "boolean":
            return chance.choice((True, False))
    return any_value(chance)


def understood(body: bytes, kind: type[wire.Request]) -> bool:
    try:
        msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def wrong_shapes(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Bodies that are no request: of other types, with other keys, cut, or no JSON at all."""
    (schemas, definitions) = msgspec.json.schema_components(TYPES.values())
    described = dict(zip(TYPES, schemas, strict=True))
    root = {"$defs": definitions}
    made = 0
    while made < WRONG_SHAPE:
        operation = chance.choice(list(TYPES))
        body = json.dumps(as_described(chance, described[operation], root)).encode()
        if chance.random() < 0.3:
            place = chance.randrange(len(body) + 1)
            junk = chance.choice((b"", b"\0", b"\xff", b"[" * 5000, b'{"":' * 2000, b"\\ud800", b"NaN", b"1e999"))
            body = body[:place] + junk + body[place + chance.randrange(6) :]
        if not body or understood(body, TYPES[operation]):
            continue
        made += 1
        yield operation, body


def wrong_senses(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Requests as they are described that ask for what cannot be."""
    fixtures = ({"host": "/etc", "guest": "/a b"}, {"host": "/nowhere", "guest": "/x"}, {"host": "/", "guest": "../x"})
    specs: tuple[dict[str, Any], ...] = (
        {"cpus": 0},
        {"cpus": -(1 << 60)},
        {"cpus": 1 << 60},
        {"memory_bytes": 1},
        {"memory_bytes": 1 << 62},
        {"disk_bytes": -1},
        {"disk_bytes": 1 << 62},
        {"boot": "later"},
        {"kernel": "/no/such/kernel\n"},
        {"image": ""},
        *({"fixtures": [fixture]} for fixture in fixtures),
    )
    for _ in range(WRONG_SENSE):
        nasty = chance.choice(NASTY)
        operation, body = chance.choice(
            (
                ("up", {"names": [nasty] if nasty != "no-such-one" else [nasty, nasty]}),
                ("up", {"members": chance.choice((0, -7, 201, 1 << 62))}),
                ("up", {"members": 2, "spec": chance.choice(specs)}),
                ("up", {"backend": nasty or "-", "members": 2}),
                ("add", {"names": ["node-1"]}),
                ("add", {"count": chance.choice((0, -1, 500))}),
                ("add", {"spec": chance.choice(specs)}),
                (chance.choice(("start", "stop", "destroy")), {"members": [nasty]}),
                ("save", {"members": [nasty]}),
                ("save", {"members": ["node-1", "node-2"]}),
                ("save", {"name": chance.choice(("../x", "-x", "a/b", "x" * 99, "\n"))}),
                ("restore", {"snapshot": nasty}),
                ("clone", {"snapshot": nasty, "name": chance.choice(NASTY)}),
            )
        )
        yield operation, json.dumps(body).encode()


def wrong_http(chance: random.Random) -> Iterator[bytes]:
    """Bytes that are almost HTTP. Each ends its connection, as it may be waited on for more."""
    good = (
        b"GET /v1/ping HTTP/1.1\r\nHost: x\r\n" + PROTOCOL + b"\r\n",
        post("/v1/ops/restore", b'{"snapshot": "no-such-one"}'),
        b"POST /v1/ops/x/cancel HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        + PROTOCOL
        + b"\r\n5\r\nabcde\r\n0\r\n\r\n",
    )
    junk = (
        b"\0",
        b"\r\n",
        b"\n",
        b" ",
        b"\xff" * 9,
        b"A" * 70_000,
        b"Content-Length: -1\r\n",
        b"%00%2e%2e/",
        b"HTTP/9.9",
    )
    for _ in range(WRONG_HTTP):
        data = bytearray(chance.choice(good))
        for _ in range(chance.randrange(1, 4)):
            place = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[place] ^= 1 << chance.randrange(8)
                case 1:
                    data[place:place] = chance.choice(junk)
                case 2:
                    del data[place : place + chance.randrange(1, 30)]
                case _:
                    del data[place:]
            if not data:
                data = bytearray(b"\0")
        yield bytes(data)


def hostile(path: Path, data: bytes, limit_s: float) -> bytes:
    """What comes back when somebody says that and no more."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(limit_s)
        client.connect(str(path))
        answer = b""
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while block := client.recv(65536):
                answer += block
        return answer


@pytest.mark.timeout(600)
def test_nothing_that_is_said_to_it_hurts_a_holder(home: Path, timeout_scale: float) -> None:
    fleetbox.up("web", cold=True)
    before = records.read_cluster("web")
    holder = records.live_holder("web")
    assert holder is not None
    process = psutil.Process(holder.process.pid)
    path, chance, limit_s = paths.holder_socket("web"), random.Random(5), 60 * timeout_scale
    connection = Connection(path, limit_s)

    def settled_bytes() -> int:
        return int(process.memory_info().rss)

    for operation, body in wrong_shapes(chance):
        status, answer = connection.send(post(f"/v1/ops/{operation}", body))
        assert status == 400, (operation, body[:300], status, answer[:300])
        assert json.loads(answer)["code"] == "usage"
    warm_bytes = settled_bytes()
    for operation, body in wrong_senses(chance):
        status, answer = connection.send(post(f"/v1/ops/{operation}", body))
        assert status == 200, (operation, body, status, answer)
        end = json.loads(answer.splitlines()[-1])
        assert end["event"] == "error", (operation, body, end)
        assert end["error"]["code"] != "failed", (operation, body, end)
        assert end["error"]["message"]
    connection.close()
    for data in wrong_http(chance):
        answer = hostile(path, data, limit_s)
        assert not answer.startswith(b"HTTP/1.1 5"), (data[:300], answer[:300])
        assert b"Traceback" not in answer
    grown_bytes = settled_bytes() - warm_bytes
    assert grown_bytes < 64 << 20, f"its memory grew by {grown_bytes >> 20} MiB"
    assert ControlSocket(path).get("/v1/ping", wire.Ping).pid == holder.process.pid, "it is the same holder"
    assert process.num_fds() < 64
    assert records.read_cluster("web") == before
    log = paths.holder_log("web").read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
    assert len(log) < 64 << 20
