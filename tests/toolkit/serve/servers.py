# SPDX-License-Identifier: Apache-2.0
"""A real daemon in a process of its own, with a worker that fails on demand, and what to ask of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orinkit.bundle import GoldenCase
from orinkit.runtime.request import Request
from orinkit.serve import daemon
from orinkit.serve.settings import resolve
from toolkit.runtime.fake_program import make_bundle
from toolkit.runtime.serving import TOKENIZER, run, scheduler, tokens_of
from toolkit.runtime.tiny_tokenizer import TEMPLATE

CAPACITY = 512
SLOTS = 4
WORKER = (sys.executable, "-m", "toolkit.serve.faulty_worker")
MODEL = "demo"


def continuation(prompt: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
    """What the fake engine says after a prompt, greedily."""
    served = scheduler(capacity=CAPACITY, eos=())
    number = served.submit(Request(prompt, max_tokens=num_tokens))
    return tuple(tokens_of(run(served), number))


def golden_case(prompt: str, num_tokens: int) -> GoldenCase:
    ids = TOKENIZER.encode(prompt, CAPACITY)
    return GoldenCase(prompt, ids, continuation(ids, num_tokens), 0.1)


def fake_bundle(folder: Path, template: str = TEMPLATE) -> Path:
    """A bundle for the fake engine, with golden prompts."""
    cases = [golden_case("ROMEO:", 8), golden_case("To be", 5)]
    return make_bundle(folder, cases, CAPACITY, slots=SLOTS, template=template)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error."""
        return str(self.json["error"]["code"])


class Server:
    """One daemon. Settings are flags of `orin-run serve`; with `fault` None its worker is the one that is shipped."""

    def __init__(
        self, bundle: Path, fault: str | None = "", delay: float = 0.0, wrapper: tuple[str, ...] = (), **flags: Any
    ):
        self.folder = Path(tempfile.mkdtemp(prefix="orin-serve-"))
        self.injected = self.folder / "fault"
        self.log_path = self.folder / "log"
        self.key: str | None = None
        flags = {"bundle": str(bundle), "engine": "fake", "port": 0, "restart": 0.05, "sockets": self.sockets, **flags}
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OPENBLAS_NUM_THREADS": "1",
        }
        if fault is not None:
            environment |= {"ORIN_FI": fault or f"file:{self.injected}", "ORIN_FI_DELAY": str(delay)}
        command = [*wrapper, sys.executable, "-m", "toolkit.serve.servers", json.dumps(flags)]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    @property
    def sockets(self) -> str:
        return str(self.folder / "run")

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = self.log_path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"time"') and line.endswith("}")]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == name]

    @cached_property
    def port(self) -> int:
        wait_for(lambda: self.events("listening"), self.explain)
        return int(self.events("listening")[0]["port"])

    @property
    def worker(self) -> int:
        """Process number of the last worker."""
        wait_for(lambda: self.events("worker started"), self.explain)
        return int(self.events("worker started")[-1]["pid"])

    def explain(self) -> str:
        return self.log_path.read_text()[-3000:]

    def request(self, method: str, path: str, body: Any = None, timeout: float = 20, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            sent = {"Content-Type": "application/json"} if data is not None else {}
            if self.key is not None:
                sent["Authorization"] = f"Bearer {self.key}"
            connection.request(method, path, data, {**sent, **{k.replace("_", "-"): v for k, v in headers.items()}})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def complete(self, prompt: Any = "ROMEO:", **fields: Any) -> Reply:
        body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}
        return self.request("POST", "/v1/completions", body)

    def stream(self, prompt: Any = "ROMEO:", **fields: Any) -> Generator[str, None, None]:
        """The data of the events, as they come."""
        body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 8, "stream": True, **fields}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            for line in answer:
                if line.startswith(b"data: "):
                    yield line[6:].strip().decode()

    def readyz(self) -> Reply:
        return self.request("GET", "/readyz")

    def is_ready(self) -> bool:
        try:
            return self.readyz().status == 200
        except OSError:
            return False

    def wait_ready(self, seconds: float = 60) -> None:
        wait_for(self.is_ready, self.explain, seconds)

    def metric(self, line: str) -> float:
        """The value of the metric whose line begins so, labels of the model left out; 0 if there is none."""
        text = self.request("GET", "/metrics").body.decode().replace('model_name="demo",', "")
        found = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line)]
        return float(found[0]) if found else 0.0

    def inject(self, fault: str) -> None:
        """The worker takes it at its next step."""
        made = self.injected.with_suffix(".new")
        made.write_text(fault)
        made.rename(self.injected)

    def check_golden(self) -> None:
        """A short greedy answer is right."""
        case = golden_case("ROMEO:", 8)
        assert self.complete(list(case.prompt_tokens)).json["choices"][0]["text"] == TOKENIZER.decode(case.tokens)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def close(self) -> None:
        """End it if it still runs, and remove what it has written."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def serving(bundle: Path, key: str | None = None, **settings: Any) -> Iterator[Server]:
    """A daemon that is ready, and must drain cleanly at the end."""
    server = Server(bundle, **settings)
    server.key = key
    try:
        server.wait_ready()
        yield server
        assert server.stop() == 0
    finally:
        server.close()


def wait_for(happened: Callable[[], Any], explain: Callable[[], str] = str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, explain()
        time.sleep(0.01)


def tell_memory(figures: Path, available: int) -> None:
    """Write /proc/meminfo below another root; `available` is in KiB."""
    figures.parent.mkdir(exist_ok=True)
    lines = {"MemTotal": 8 << 20, "MemFree": available, "MemAvailable": available, "SwapFree": 0}
    figures.with_suffix(".new").write_text("".join(f"{name}: {value} kB\n" for name, value in lines.items()))
    figures.with_suffix(".new").rename(figures)


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def num_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def peak_memory(pid: int) -> int:
    """Bytes, the most that a process has had at once."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def raw(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def received(connected: socket.socket) -> bytes:
    """Everything until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := connected.recv(1 << 16):
            data += piece
    return data


def main() -> None:
    settings, _ = resolve(json.loads(sys.argv[1]), None)
    sys.exit(daemon.run(settings, WORKER) if "ORIN_FI" in os.environ else daemon.run(settings))


if __name__ == "__main__":
    main()
