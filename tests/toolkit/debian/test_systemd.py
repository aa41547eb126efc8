# SPDX-License-Identifier: Apache-2.0
"""What systemd makes of the daemon, with the values of the shipped unit: a systemd of our own, ended with the test.

It runs as the manager of a user in a namespace of mounts and a control group of its own, so the machine's own systemd,
if it has one, knows nothing of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from debian import build
from toolkit.serve.conftest import bundle, start
from toolkit.serve.servers import Server, is_running, wait_for

__all__ = ["bundle", "start"]
MANAGER = Path("/lib/systemd/systemd")
SERVICE = Path(build.__file__).with_name("orin-run.service")
NAMES = (
    "StartLimitIntervalSec",
    "StartLimitBurst",
    "Type",
    "Restart",
    "RestartPreventExitStatus",
    "KillMode",
    "TimeoutStopSec",
    "OOMPolicy",
    "UMask",
    "LimitCORE",
    "LimitNOFILE",
)
"""What is taken from the shipped unit; the sandbox needs a system's manager, and two times are shortened."""
ROOM = """
set -e
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run
mkdir -p /run/systemd/system /sys/fs/cgroup/orin-test-$$
echo $$ > /sys/fs/cgroup/orin-test-$$/cgroup.procs
"$@" || true
echo $$ > /sys/fs/cgroup/cgroup.procs
find /sys/fs/cgroup/orin-test-$$ -depth -type d -exec rmdir {} ';'
"""
UNSHARE = ("unshare", "--mount", "sh", "-c", ROOM, "sh")


class Systemd:
    """A manager, and what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.shipped = dict(line.partition("=")[::2] for line in SERVICE.read_text().splitlines())
        folder.chmod(0o700)
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
        command = [*UNSHARE, str(MANAGER), "--user", "--log-target=null", "--unit=basic.target"]
        self.process = subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL)
        wait_for(self.answers)

    def answers(self) -> bool:
        """Whether it can be asked: its socket is there a moment before it listens."""
        asked = subprocess.run(("systemctl", "--user", "show"), env=self._environment, capture_output=True, check=False)
        return asked.returncode == 0

    def control(self, *arguments: str) -> str:
        command = ["systemctl", "--user", *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def value(self, name: str) -> str:
        """Of our service."""
        return self.control("show", "--value", "--property", name, "orin-run.service")

    @property
    def main(self) -> int:
        """Process number of the service, 0 while there is none."""
        return int(self.value("MainPID"))

    def wrapper(self) -> tuple[str, ...]:
        """What makes a command that follows it our service; it waits for the service's end."""
        given = {**{name: self.shipped[name] for name in NAMES}, "WatchdogSec": "2", "RestartSec": "0.1"}
        properties = [f"--property={name}={value}" for name, value in given.items()]
        passed = [f"--setenv={name}" for name in ("PYTHONPATH", "ORIN_FI", "ORIN_FI_DELAY", "OPENBLAS_NUM_THREADS")]
        runtime = f"XDG_RUNTIME_DIR={self._environment['XDG_RUNTIME_DIR']}"
        where = f"--working-directory={Path.cwd()}"
        return (
            *("env", runtime, "systemd-run", "--user", "--quiet", "--wait", "--pipe", "--unit=orin-run", where),
            *properties,
            *passed,
        )


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    if not MANAGER.exists() or shutil.which("systemd-run") is None:
        pytest.skip("needs systemd")
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make namespaces and control groups")
    manager = Systemd(tmp_path)
    yield manager
    manager.control("exit")
    assert manager.process.wait(60) == 0


def test_f9_systemd_starts_a_supervisor_that_stands_still_again_and_gives_up_in_the_end(
    systemd: Systemd, start: Callable[..., Server]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start(wrapper=systemd.wrapper(), port=port)
    server.wait_ready()
    supervisor, worker = systemd.main, server.worker
    os.kill(supervisor, signal.SIGSTOP)
    wait_for(lambda: systemd.main not in (0, supervisor), server.explain)
    wait_for(lambda: not is_running(worker), server.explain)
    server.wait_ready()
    server.check_golden()
    begun = {supervisor}
    while systemd.value("ActiveState") != "failed":
        if main := systemd.main:
            begun.add(main)
            with contextlib.suppress(ProcessLookupError):
                os.kill(main, signal.SIGKILL)
    assert len(begun) == int(systemd.shipped["StartLimitBurst"])
    assert server.process.wait(10) != 0
