"""A connection into a cluster's private network, for OpenSSH: its `ProxyCommand` with `ProxyUseFdpass` (ssh_config(5)).

`python3 -ISE fdpass.py SOCKET HOST PORT [FALLBACK…]` asks the holder behind SOCKET to connect to HOST's PORT, hands
the connected socket over standard output, which OpenSSH made a socket for that, and ends. When no holder answers it
becomes FALLBACK, which starts one. Run as a script: only what is imported here is loaded, so it costs some 20 ms.
"""

import json
import os
import socket
import sys

LIMIT_S = 30.0


class HolderGone(ConnectionError):
    """Nobody answers on the dial socket."""


def dial(path: str, host: str, port: int, timeout_s: float = LIMIT_S) -> int:
    """The connected socket's descriptor, as the holder behind `path` made it.

    Raises HolderGone when no holder answers, OSError as `connect` does when the member cannot be reached.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(timeout_s)
        try:
            control.connect(path)
            control.sendall(json.dumps({"host": host, "port": port}).encode() + b"\n")
            answer, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        except TimeoutError:
            raise
        except OSError as e:
            raise HolderGone(e.errno, e.strerror) from e
    if descriptors:
        return descriptors[0]
    try:
        refused = json.loads(answer)
        number, words = int(refused["errno"]), str(refused["error"])
    except (ValueError, KeyError):
        raise HolderGone(0, "the holder hung up") from None
    raise OSError(number, words)


def hand_over(descriptor: int) -> None:
    """Give a descriptor to who reads standard output. Raises OSError when that is no socket."""
    with socket.socket(fileno=os.dup(1)) as out:
        socket.send_fds(out, [b"\0"], [descriptor])


def main(words: list[str]) -> int:
    """Connect and hand over; the exit code."""
    path, host, port, *fallback = words
    try:
        hand_over(dial(path, host, int(port)))
    except HolderGone as e:
        if fallback:
            os.execv(fallback[0], fallback)  # noqa: S606 - our own interpreter
        sys.stderr.write(f"fleetbox: the holder does not answer on {path}: {e.strerror}\n")
        return 1
    except OSError as e:
        sys.stderr.write(f"fleetbox: {host} port {port} cannot be reached: {e.strerror or e}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
