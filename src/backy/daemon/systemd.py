"""Report the state of the daemon to systemd: sd_notify(3), one datagram for each message."""

import os
import socket


def notify(*lines: str) -> None:
    """Send messages such as "READY=1" to $NOTIFY_SOCKET, if that is set."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket, see unix(7)
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(0)
        try:
            channel.sendto("\n".join(lines).encode(), address)
        except OSError:
            return  # backups go on, even if systemd does not hear of it


def watchdog_seconds() -> float | None:
    """How often to send "WATCHDOG=1": twice in the time for which systemd waits; None if never."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() else None
