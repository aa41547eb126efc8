# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from toolkit.serve.servers import Server, fake_bundle, num_descriptors, serving, wait_for


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for the fake engine."""
    return fake_bundle(tmp_path_factory.mktemp("serve") / "bundle")


@pytest.fixture
def start(bundle: Path) -> Iterator[Callable[..., Server]]:
    """Starts daemons that end with the test."""
    servers: list[Server] = []

    def made(**settings: Any) -> Server:
        servers.append(Server(settings.pop("bundle", bundle), **settings))
        return servers[-1]

    yield made
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def shared(bundle: Path) -> Iterator[Server]:
    """One daemon for the tests of a module; its steps last 3 ms, so that there is time to interfere."""
    with serving(bundle, delay=0.003, fault_limit=10000, restart=0.2, restart_limit=0.2, drain=0.0) as server:
        yield server


@pytest.fixture
def grammar(shared: Server) -> None:
    """The process that tries grammars begins with the first one and stays: its pipes are no leak."""
    shared.wait_ready()
    shared.complete(response_format={"type": "regex", "regex": "a"})


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """The daemon of the module; after every case it is alive, ready and right, with as many descriptors as before."""
    shared.wait_ready()
    before = num_descriptors(shared.process.pid)
    yield shared
    shared.wait_ready()
    shared.check_golden()
    wait_for(lambda: num_descriptors(shared.process.pid) <= before, shared.explain)
