"""Tell systemd how the daemon is: the protocol of sd_notify(3), one datagram a message."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> None:
    """Send "READY=1" and the like; does nothing where nobody listens ($NOTIFY_SOCKET)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket, unix(7)
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(0)
        try:
            channel.sendto("\n".join(lines).encode(), address)
        except OSError:
            return  # the backups matter more than who watches them


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear "WATCHDOG=1": half of what it waits for."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() else None
