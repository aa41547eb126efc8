# SPDX-License-Identifier: Apache-2.0
"""The daemon put together: sockets, routes, supervisor, watch; from the first signal to the exit code."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from orinkit.bundle import Bundle, load_keys
from orinkit.memory.needs import ENGINES, memory_plan
from orinkit.ops import VERSIONS
from orinkit.runtime.start import open_tokenizer
from orinkit.serve import listen, openapi, page
from orinkit.serve.api import Api, Call, Route, place, refuse
from orinkit.serve.child import WORKER
from orinkit.serve.connection import Connection
from orinkit.serve.generation import Generation
from orinkit.serve.handover import Handover
from orinkit.serve.health import Health
from orinkit.serve.http import Response
from orinkit.serve.logs import Log
from orinkit.serve.metrics import Metrics
from orinkit.serve.notify import Notifier
from orinkit.serve.settings import Settings, read_api_keys
from orinkit.serve.supervisor import Supervisor
from orinkit.serve.trial import Trial
from orinkit.serve.watch import watch

_LIVE_CONNECTIONS = 16
_FAREWELL = 1.0
"""Seconds in which the last answers must be out."""


@dataclass(frozen=True)
class Doors:
    """The listening sockets by who may use them."""

    public: tuple[socket.socket, ...]
    live: tuple[socket.socket, ...]
    admin: tuple[socket.socket, ...]
    paths: tuple[Path, ...]
    """Unix sockets that were made and are to be removed at the end."""


def run(settings: Settings, command: Sequence[str] = WORKER) -> int:
    """Serve until told to stop: the exit code. `command` starts a worker. Raises ConfigError, BundleError."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keys = () if settings.api_keys is None else read_api_keys(settings.api_keys)
    trusted = None if settings.keys is None else load_keys(Path(settings.keys))
    bundle = Bundle.open(Path(settings.bundle), keys=trusted, supported=VERSIONS)
    doors = open_doors(settings, os.environ)
    return asyncio.run(_serve(settings, bundle, keys, doors, command))


def open_doors(settings: Settings, environment: Mapping[str, str]) -> Doors:
    """Make the sockets, or take those of systemd. Raises ConfigError, LockedError."""
    passed = listen.passed(environment)
    tcp = [listen.tcp(settings.host, settings.port)] if settings.port >= 0 else []
    made: dict[str, socket.socket] = {}
    paths: dict[str, Path] = {}
    if settings.sockets is not None:
        folder = listen.folder(Path(settings.sockets))
        modes = {"api": 0o660, "live": 0o660, "admin": 0o600}
        paths = {name: folder / f"{name}.sock" for name in modes if name not in passed}
        made = {name: listen.unix(path, modes[name]) for name, path in paths.items()}
    by_name = {name: (sock,) for name, sock in {**made, **passed}.items()}
    public = (*tcp, *by_name.get("api", ()))
    return Doors(public, by_name.get("live", ()), by_name.get("admin", ()), tuple(paths.values()))


async def _serve(settings: Settings, bundle: Bundle, keys: Sequence[str], doors: Doors, command: Sequence[str]) -> int:
    log, notifier = Log(), Notifier()
    manifest = bundle.manifest
    model = settings.name or manifest.name
    handover = Handover(bundle.folder, settings.engine, Path(settings.keys) if settings.keys else None)
    need = worker_bytes(bundle, settings.engine)
    metrics = Metrics(model)
    supervisor = Supervisor(settings, handover, manifest.model, manifest.recipe.shapes, need, metrics, log, command)
    tokenizer = open_tokenizer(bundle)
    trial = Trial(tokenizer, manifest.model.vocab, manifest.model.eos)
    generation = Generation(supervisor, tokenizer, trial, model, log)
    tables = routes(supervisor, generation, Health(supervisor, model))
    # The mode of admin.sock lets nobody else in.
    apis = [
        Api(table, own, settings.allowed_hosts, metrics, log) for table, own in zip(tables, (keys, (), ()), strict=True)
    ]
    limits = (listen.affordable(settings.connections), _LIVE_CONNECTIONS, _LIVE_CONNECTIONS)
    rooms = [listen.Door(limit, _server(api, log)) for limit, api in zip(limits, apis, strict=True)]
    sockets = (doors.public, doors.live, doors.admin)
    tasks = [asyncio.ensure_future(room.accept(sock)) for room, own in zip(rooms, sockets, strict=True) for sock in own]
    watching = asyncio.ensure_future(watch(supervisor, notifier))
    running = asyncio.ensure_future(supervisor.run())
    _obey_signals(supervisor, notifier)
    log("listening", port=next((sock.getsockname()[1] for sock in doors.public if sock.family != socket.AF_UNIX), None))
    notifier.send("READY=1")
    try:
        # Without the watch nobody would notice a worker that hangs: its end is the end.
        await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
        return running.result() if running.done() else watching.result()
    finally:
        await _last_words(generation)
        await trial.close()
        for task in (*tasks, watching, running):
            task.cancel()
        await asyncio.wait({running})
        for room in rooms:
            await room.close()
        for path in doors.paths:
            path.unlink(missing_ok=True)


def worker_bytes(bundle: Bundle, engine: str) -> int:
    """Memory that a worker takes beside its own process: weights, caches, scratch."""
    manifest = bundle.manifest
    if engine not in ENGINES:
        return sum(entry.size for entry in manifest.files)
    return memory_plan(manifest.model, manifest.settled, engine).total("device", "host")


def routes(
    supervisor: Supervisor, generation: Generation, health: Health
) -> tuple[dict[str, Route], dict[str, Route], dict[str, Route]]:
    """The routes of the public sockets, of live.sock and of admin.sock."""

    async def drain(_: Call) -> Response:
        supervisor.drain()
        return Response.json({"status": "draining"}, 202)

    async def describe(_: Call) -> Response:
        return Response.json(openapi.document(version("orinkit")))

    live = {"/livez": Route("GET", health.livez, needs_key=False)}
    told = {"/readyz": Route("GET", health.readyz), "/metrics": Route("GET", health.metrics)}
    public = {
        **live,
        **told,
        **page.routes(),
        "/v1/chat/completions": Route("POST", generation.chat),
        "/v1/completions": Route("POST", generation.completion),
        "/openapi.json": Route("GET", describe),
        "/v1/models": Route("GET", health.models),
        "/v1/models/": Route("GET", health.model),
    }
    return public, live, {**live, **told, "/drain": Route("POST", drain)}


def _server(api: Api, log: Log) -> listen.Serve:
    async def serve(accepted: socket.socket) -> None:
        try:
            await Connection(api.handle, refuse).serve(accepted)
        except Exception as error:  # noqa: BLE001  (a mistake of ours ends one connection, and is told)
            log("mistake", error=type(error).__name__, place=place(error))

    return serve


def _obey_signals(supervisor: Supervisor, notifier: Notifier) -> None:
    """The first SIGTERM or SIGINT drains, the second one ends everything now."""

    def stop() -> None:
        notifier.send("STOPPING=1")
        supervisor.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


async def _last_words(generation: Generation) -> None:
    """Let answers that were just told of the end still be written."""
    end = time.monotonic() + _FAREWELL
    while generation.num_active and time.monotonic() < end:
        await asyncio.sleep(0.01)
