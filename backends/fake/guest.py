"""The fake guest: a shell that plays hypervisor and guest, told what to do through a FIFO.

Lines that it understands: `power-button` and `poweroff` end it, `reboot` boots it anew in the same process, `panic`
ends it with an error; any other line is shown on its console, the serial log, and remembered until it boots anew. A
paused machine is a stopped process (SIGSTOP): what it is told meanwhile waits. Its memory is a file of those lines,
beside the FIFO, so that a snapshot has something to save and a restore something to bring back.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fleetbox.records import MachineHandle

# $1 name, $2 descriptor of the FIFO, $3 descriptor that says "guest code runs", $4 how to start, $5 how to take a stop,
# $6 its memory, $7 "restored" when it goes on instead of booting
SCRIPT = r"""
boot() {
    : >"$memory"
    echo "[    0.000000] Linux version 0.0.0-fake"
    echo "[    0.004000] Calibrating delay loop (skipped)"
    echo "[    0.010000] fake: $name has booted"
    echo "${name##*/} login:"
}
name=$1 memory=$6
case $5 in deaf) trap '' TERM ;; *) trap 'echo "fake: ended by SIGTERM"; exit 0' TERM ;; esac
case $4 in
    fail) echo "fake: $name refuses to start"; exit 1 ;;
    die) kill -KILL $$ ;;
    hang) ;;
    *) echo >"/dev/fd/$3" ;;
esac
exec 3<>"/dev/fd/$2"
[ "$4" = hang ] || [ "$7" = restored ] || boot
while read -r line <&3; do
    case $line in
        power-button) [ "$5" = deaf ] || { echo "reboot: Power down"; exit 0; } ;;
        poweroff) echo "reboot: Power down"; exit 0 ;;
        reboot) echo "reboot: Restarting system"; boot ;;
        panic) echo "Kernel panic - not syncing: told so"; exit 1 ;;
        *) printf '%s\n' "$line"; printf '%s\n' "$line" >>"$memory" ;;
    esac
done
"""


def tell(handle: MachineHandle, line: str) -> bool:
    """Tell a fake machine's guest something, from any process of this user; False when it has ended."""
    return write(Path(handle.api_socket), line)


def recall(handle: MachineHandle) -> list[str]:
    """What a fake machine remembers: the lines that it was told and has taken in, oldest first."""
    return Path(handle.api_socket).with_suffix(".memory").read_text().splitlines()


def write(fifo: Path, line: str) -> bool:
    """Say a line into a guest's FIFO; False when nobody listens."""
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)  # fails when nobody has it open for reading (fifo(7))
    except OSError as e:
        if e.errno in (errno.ENXIO, errno.ENOENT):
            return False
        raise
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
    return True
