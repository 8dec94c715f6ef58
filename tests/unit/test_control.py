"""A holder that goes away while it is asked: the operation may be asked for again until it was answered."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from fleetbox import wire
from fleetbox.control import ControlSocket
from fleetbox.errors import HolderEnding, HolderError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "holder.sock"


def test_nobody_listens_any_more(path: Path) -> None:
    with pytest.raises(HolderEnding):
        ControlSocket(path).run("stop", wire.TargetsRequest())
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(path))
    with pytest.raises(HolderEnding):
        ControlSocket(path).run("stop", wire.TargetsRequest())


def test_the_connection_ends_before_an_answer(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(path))
        holder.listen()

        def serve() -> None:
            connection, _ = holder.accept()
            with connection:
                connection.recv(1 << 20)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(HolderEnding):
            ControlSocket(path).run("stop", wire.TargetsRequest())
        thread.join()


def test_an_answer_that_is_cut_is_an_error(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(path))
        holder.listen()

        def serve() -> None:
            connection, _ = holder.accept()
            with connection:
                connection.recv(1 << 20)
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(HolderError) as error:
            ControlSocket(path).run("stop", wire.TargetsRequest())
        thread.join()
    assert type(error.value) is HolderError
