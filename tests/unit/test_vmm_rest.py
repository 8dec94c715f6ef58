"""The REST client against hypervisors that answer, refuse, lie, break off and hang."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fleetbox.backends.vmm import rest
from fleetbox.backends.vmm.rest import Api, NoAnswer, Refused

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next((int(h.split(":")[1]) for h in head.split("\r\n") if h.lower().startswith("content-length:")), 0)
    return head, await reader.readexactly(length)


def answering(answer: bytes, seen: list[tuple[str, bytes]] | None = None) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        if seen is not None:
            seen.append(request)
        writer.write(answer)
        await writer.drain()
        writer.close()

    return serve


def http(status: str, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\nServer: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def ask(tmp_path: Path, serve: Serve, scenario: Callable[[Api], Awaitable[Any]]) -> Any:
    """The result of `scenario` with an API that `serve` answers for."""

    async def main() -> Any:
        log = tmp_path / "log"
        log.write_text("booting\nthe last words\n")
        server = await asyncio.start_unix_server(serve, tmp_path / "api.sock")
        async with server:
            return await scenario(Api("hyper", tmp_path / "api.sock", log, "/api/v1"))

    return asyncio.run(main())


def test_a_request_is_plain_http_with_json(tmp_path: Path) -> None:
    seen: list[tuple[str, bytes]] = []
    answer = http("200 OK", b'{"state": "Running"}')
    assert ask(tmp_path, answering(answer, seen), lambda api: api.put("/vm", {"a": 1})) == {"state": "Running"}
    [(head, body)] = seen
    lines = head.strip().split("\r\n")
    assert lines[0] == "PUT /api/v1/vm HTTP/1.1"
    assert {"Host: localhost", "Accept: application/json", "Content-Type: application/json"} <= set(lines)
    assert f"Content-Length: {len(body)}" in lines
    assert json.loads(body) == {"a": 1}


def test_a_request_without_a_body_names_no_length(tmp_path: Path) -> None:
    seen: list[tuple[str, bytes]] = []
    # As firecracker's server answers: neither a length nor a body.
    answer = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
    assert ask(tmp_path, answering(answer, seen), lambda api: api.put("/vm.pause")) is None
    assert "content" not in seen[0][0].lower()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"fault_message": "Wrong\\nstate."}', "Wrong state."),
        (b'["Error from API", "the VM is not running"]', "Error from API: the VM is not running"),
        (b"plain\x1b[31m words", "plain[31m words"),
        (b"", "HTTP 400"),
        (b"\xff\xfe", "��"),
        (b'{"code": 7}', "{'code': 7}"),
    ],
)
def test_a_refusal_says_why(tmp_path: Path, body: bytes, why: str) -> None:
    with pytest.raises(Refused, match="hyper refused GET /vm") as caught:
        ask(tmp_path, answering(http("400 Bad Request", body)), lambda api: api.get("/vm"))
    assert (caught.value.status, caught.value.why) == (400, why)


@pytest.mark.parametrize("status", [404, 405, 429, 500, 503])
def test_every_code_of_an_error_is_one(tmp_path: Path, status: int) -> None:
    with pytest.raises(Refused) as caught:
        ask(tmp_path, answering(http(f"{status} X")), lambda api: api.put("/vm"))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "no HTTP"),
        (http("200 OK", b"<html>"), "no JSON"),
        (http("200 OK", b"\xff"), "no JSON"),
        (http("200 OK", b"[1]"), "not a JSON object"),
        (http("204 No Content"), "not a JSON object"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "no HTTP"),
        (b"", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "no HTTP"),
    ],
)
def test_garbage_is_no_answer(tmp_path: Path, answer: bytes, why: str) -> None:
    with pytest.raises(NoAnswer, match=why) as caught:
        ask(tmp_path, answering(answer), lambda api: api.get("/vm"))
    assert caught.value.details == ("booting", "the last words")


def test_an_endless_answer_is_cut(tmp_path: Path) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                await writer.drain()
        except OSError:
            pass

    with pytest.raises(NoAnswer, match="more than"):
        ask(tmp_path, flood, lambda api: api.get("/vm"))


def test_silence_ends_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEETBOX_TIMEOUT_SCALE", raising=False)
    gone = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        assert await reader.read() == b""  # until the client gives up
        gone.set()
        writer.close()

    async def scenario(api: Api) -> None:
        with pytest.raises(NoAnswer, match=r"hyper did not answer PUT /vm.boot: no answer in 0 s") as caught:
            await api.put("/vm.boot", timeout_s=0.1)
        assert caught.value.details == ("booting", "the last words")
        await gone.wait()

    ask(tmp_path, hang, scenario)


def test_a_request_can_be_cancelled(tmp_path: Path) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await reader.read()
        gone.set()
        writer.close()

    async def scenario(api: Api) -> None:
        task = asyncio.ensure_future(api.get("/vm"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()

    ask(tmp_path, hang, scenario)


def test_no_socket_and_nobody_behind_it_are_no_answer(tmp_path: Path) -> None:
    api = Api("hyper", tmp_path / "none.sock", tmp_path / "log")
    with pytest.raises(NoAnswer, match="No such file"):
        asyncio.run(api.get("/"))
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "none.sock"))
    with pytest.raises(NoAnswer, match="refused"):
        asyncio.run(api.get("/"))


def test_the_limit_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_TIMEOUT_SCALE", "0.01")

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    with pytest.raises(NoAnswer, match="no answer in 0 s"):
        ask(tmp_path, hang, lambda api: api.get("/vm"))
    assert rest.ANSWER_S == 30.0
