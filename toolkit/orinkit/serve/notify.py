# SPDX-License-Identifier: Apache-2.0
"""What systemd is told: sd_notify(3), one datagram a message, and how often its watchdog wants to hear."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """Does nothing where no service manager asked for notifications."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the abstract name space, which begins with a zero byte.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "") if is_for_us else ""
        self.interval = int(microseconds) / 2e6 if microseconds.isdigit() else None
        """Seconds between two pings, half of what the watchdog allows; None: there is no watchdog."""

    def send(self, message: str) -> None:
        """Such as READY=1. A service manager that does not listen is no reason to stop."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as own, suppress(OSError):
            own.sendto(message.encode(), self._address)
