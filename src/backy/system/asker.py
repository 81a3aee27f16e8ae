"""Who asked for something: the user behind this process."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress


def asker() -> str:
    """For people: "root (uid 0, sudo of anna) on host1". The name that sudo gives is not proved."""
    uid, name = os.getuid(), "unknown"
    with suppress(KeyError):
        name = pwd.getpwuid(uid).pw_name
    sudo = f", sudo of {os.environ['SUDO_USER']}" if "SUDO_USER" in os.environ else ""
    return f"{name} (uid {uid}{sudo}) on {os.uname().nodename}"
