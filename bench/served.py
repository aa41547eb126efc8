# SPDX-License-Identifier: Apache-2.0
"""A daemon of its own, on a free port of this machine, for what measures one."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from pathlib import Path

RUN = (sys.executable, "-c", "from orinkit.cli import main; main()")


class Served:
    """`orin-run serve` with a bundle, ready."""

    def __init__(self, bundle: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # Without keys all requests are one client's, of whom fewer may wait than the queue holds.
        command = (*RUN, "serve", str(bundle), "--port", str(self.port), "--client-limit", "1000")
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while self.get("/readyz")[0] != 200:
            if self.process.poll() is not None:
                raise SystemExit(f"expected a server, found exit status {self.process.returncode}; start it by hand")
            time.sleep(0.05)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; 0 where nothing listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def close(self) -> int:
        """Drain it. Returns its exit status."""
        self.process.terminate()
        return self.process.wait(60)
