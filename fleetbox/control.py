"""The control socket of a cluster's holder, from the client's side: HTTP over a unix socket (see `fleetbox.wire`)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
import requests
import requests_unixsocket

from fleetbox import wire
from fleetbox.errors import FleetboxError, HolderEnding, HolderError, from_wire
from fleetbox.faultpoint import reach
from fleetbox.stream import OnEvent, follow

T = TypeVar("T")

# Between two lines of a stream the holder sends a blank one at least this often, so silence means that it hangs.
SILENCE_LIMIT_S = 60.0


class ControlSocket:
    """One holder's socket. Every call is a request of its own; nothing stays open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._base = "http+unix://" + quote(str(path), safe="")

    def _session(self) -> requests.Session:
        session: requests.Session = requests_unixsocket.Session()
        session.trust_env = False  # no proxy stands before a unix socket
        session.headers[wire.PROTOCOL_HEADER] = str(wire.PROTOCOL)
        return session

    def get(self, path: str, kind: type[T], *, timeout_s: float = 10.0) -> T:
        """GET one JSON document. Raises HolderEnding when the holder goes, HolderError when it is silent, its error."""
        with self._session() as session:
            try:
                answer = session.get(self._base + path, timeout=timeout_s)
            except requests.Timeout as e:
                raise self._unreachable(e) from e
            except requests.ConnectionError as e:
                raise HolderEnding("the holder has ended", why=str(self.path), hint="try again") from e
            except requests.RequestException as e:
                raise self._unreachable(e) from e
        self._check(answer)
        return msgspec.json.decode(answer.content, type=kind)

    def run(self, operation: str, request: wire.Request, on_event: OnEvent | None = None) -> Any:
        """Run a long operation, following its events.

        Raises its error, HolderEnding when the holder has gone before it knew of the operation, HolderError,
        OperationInterrupted.
        """
        reach("client.request")
        with self._session() as session:
            try:
                answer = self._post(session, operation, request)
                self._check(answer)
                with contextlib.closing(answer):
                    reach("client.answered")
                    result = follow(answer.iter_lines(chunk_size=None), on_event, lambda: self._cancel(answer))
                    reach("client.ended")
                    return result
            except requests.RequestException as e:
                raise self._unreachable(e) from e

    def _post(self, session: requests.Session, operation: str, request: wire.Request) -> requests.Response:
        try:
            return session.post(
                f"{self._base}/v1/ops/{operation}",
                data=msgspec.json.encode(request),
                headers={"Content-Type": "application/json"},
                stream=True,
                timeout=(10.0, SILENCE_LIMIT_S),
            )
        except requests.Timeout:
            raise
        except requests.ConnectionError as e:
            # Who has heard answers before the operation has done anything, so it may be asked for again.
            raise HolderEnding("the holder has ended", why=str(self.path), hint="try again") from e

    def _cancel(self, answer: requests.Response) -> None:
        operation = answer.headers.get("Fleetbox-Operation", "")
        with self._session() as session, contextlib.suppress(requests.RequestException):
            session.post(f"{self._base}/v1/ops/{operation}/cancel", timeout=5.0)

    def _check(self, answer: requests.Response) -> None:
        if answer.status_code == 200:
            return
        try:
            error: FleetboxError = from_wire(answer.json())
        except ValueError:
            error = HolderError(f"the holder answered {answer.status_code}", why=answer.text[:200])
        raise error

    def _unreachable(self, error: Exception) -> HolderError:
        return HolderError(
            "the holder does not answer",
            why=f"{self.path}: {type(error).__name__}: {error}",
            hint="try again; its log is holder.log in the cluster's state folder",
        )
