# SPDX-License-Identifier: Apache-2.0
"""The daemon as a program: how it starts, what it imports, how it ends."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orinkit import serve
from toolkit.serve.servers import Server, fake_bundle, is_running, wait_for

Start = Callable[..., Server]
MODULES = sorted(Path(serve.__file__).parent.glob("*.py"))


def refused(bundle: Path, **flags: object) -> tuple[int, str]:
    """Exit code and words of `orin-run serve` that must not start."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    command = [sys.executable, "-c", "from orinkit.cli import main; main()", "serve", str(bundle), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode, done.stderr


def test_a1_only_loopback_and_the_sockets_are_listened_at(server: Server) -> None:
    inodes = {str(path.readlink()) for path in Path(f"/proc/{server.process.pid}/fd").iterdir() if path.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
    assert listening == [f"0100007F:{server.port:04X}"]


def test_a2_another_address_without_a_key_is_refused(bundle: Path) -> None:
    code, words = refused(bundle, host="0.0.0.0", port=0)
    assert code == 78
    assert "allow_remote" in words


def test_f20_an_altered_bundle_is_refused_at_the_start(tmp_path: Path) -> None:
    broken = fake_bundle(tmp_path / "broken")
    (broken / "model.data").write_bytes(b"x")
    code, words = refused(broken, port=0)
    assert code == 78
    assert "model.data: expected 0 bytes" in words


def test_the_supervisor_imports_no_engine() -> None:
    code = """
import json, sys
from orinkit.serve import daemon
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "orinkit.serve.supervisor" in loaded
    forbidden = {"onnxruntime", "cuda", "tensorrt", "torch", "orinkit.serve.worker"}
    engines = {f"orinkit.engines.{name}" for name in ("ort", "cuda", "gpu", "kernels", "trt", "tensorrt")}
    assert not loaded & (forbidden | engines)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a48_a49_no_check_is_an_assert_and_no_deadline_is_of_the_wall_clock(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []
    calls = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    walls = {call for call in calls if call in ("time.time()", "datetime.now()", "datetime.utcnow()")}
    # The moment of an answer is part of the API.
    assert walls <= {"time.time()"}
    assert not walls or path.name in ("answers.py", "health.py")


def test_f6_a_supervisor_that_is_told_to_stop_while_loading_leaves_nobody_behind(start: Start) -> None:
    server = start(fault="hang@step:1")
    worker = server.worker
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    wait_for(lambda: not is_running(worker))
    assert sorted(Path(server.sockets).iterdir()) == []


def test_the_admin_socket_can_drain(start: Start) -> None:
    from orinkit.serve.status import _UnixConnection

    server = start()
    server.wait_ready()
    connection = _UnixConnection(Path(server.sockets) / "admin.sock")
    connection.request("POST", "/drain", b"{}", {"Content-Type": "application/json"})
    assert connection.getresponse().status == 202
    connection.close()
    assert server.process.wait(10) == 0
