# SPDX-License-Identifier: Apache-2.0
"""Who may ask what: keys, hosts, origins, methods, and what errors and logs tell."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orinkit.errors import ServiceError
from orinkit.serve import api, daemon, page
from orinkit.serve.metrics import Metrics
from toolkit.serve.servers import MODEL, Server, serving

KEYS = ("sk-first-of-all-the-keys", "sk-second-of-all-the-keys")
CANARY = "canary-7f3a9c"
Start = Callable[..., Server]


@pytest.fixture(scope="module")
def keyed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A daemon with two keys."""
    path = tmp_path_factory.mktemp("keys") / "api_keys"
    path.write_text("\n".join(KEYS))
    path.chmod(0o400)
    with serving(bundle, KEYS[0], api_keys=str(path)) as server:
        yield server


def public_routes() -> dict[str, api.Route]:
    """The table of the daemon itself; what answers is of no interest."""

    class Anything:
        def __getattr__(self, name: str) -> Any:
            return name

    public, _, _ = daemon.routes(Anything(), Anything(), Anything())  # type: ignore[arg-type]
    return public


def test_a5_every_route_but_livez_and_the_page_needs_a_key(keyed: Server) -> None:
    """The files of the page are the same for everybody and tell nothing."""
    table = {**public_routes(), "/unknown": api.Route("GET", None)}  # type: ignore[arg-type]
    is_open = {"/livez", *page.routes()}
    assert {path for path, route in table.items() if not route.needs_key} == is_open
    keyed.key = None
    for (path, route), key in itertools.product(table.items(), ("", f"Bearer x{KEYS[0]}", KEYS[0], f"Basic {KEYS[0]}")):
        reply = keyed.request(route.method, path, b"{}" if route.method == "POST" else None, Authorization=key)
        assert reply.status == (200 if path in is_open else 401)
    keyed.key = KEYS[1]
    assert keyed.request("GET", "/v1/models").status == 200
    assert keyed.request("GET", "/unknown").status == 404
    keyed.key = KEYS[0]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "[::", "", "127.0.0.1.evil.example"]
)
def test_a7_another_host_is_refused(server: Server, host: str) -> None:
    reply = server.request("GET", "/readyz", Host=host)
    assert (reply.status, reply.code) == (403, "host")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost", "http://203.0.113.5"])
def test_a7_another_origin_is_refused(server: Server, origin: str) -> None:
    reply = server.request("GET", "/readyz", Origin=origin)
    assert (reply.status, reply.code) == (403, "origin")
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a7_pages_of_this_server_may_ask(server: Server) -> None:
    host = f"localhost:{server.port}"
    assert server.request("GET", "/readyz", Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a8_a_form_is_refused(server: Server, kind: str) -> None:
    reply = server.request("POST", "/v1/completions", b"{}", Content_Type=kind)
    assert (reply.status, reply.code) == (415, "content_type")


def test_other_methods_and_paths_are_refused(server: Server) -> None:
    assert server.request("GET", "/v1/completions").status == 405
    assert server.request("POST", "/readyz", b"{}").status == 405
    assert server.request("GET", "/V1/models").status == 404


def test_a3_the_sockets_have_their_modes(server: Server) -> None:
    folder = Path(server.sockets)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"api.sock": 0o660, "live.sock": 0o660, "admin.sock": 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_a45_admin_calls_are_for_the_admin_socket(server: Server) -> None:
    assert server.request("POST", "/drain", b"{}").status == 404


def test_a40_errors_tell_nothing_of_the_machine(server: Server) -> None:
    told = b""
    for body in (b"{", b"[]", b'{"model":"demo"}', b'{"model":"demo","prompt":1}', b'{"model":"x","prompt":"a"}'):
        told += server.request("POST", "/v1/completions", body).body
    told += server.request("GET", "/etc/passwd").body
    for word in (str(server.folder), "Traceback", ".py", "/tmp", "PATH", "socket", os.sep + "work"):
        assert word.encode() not in told


def test_a41_prompts_answers_and_keys_are_in_no_log_and_no_metric(keyed: Server) -> None:
    answer = keyed.complete(f"{CANARY} is in the prompt").json["choices"][0]["text"]
    keyed.complete(f"{CANARY}", max_tokens=0)
    keyed.request("POST", "/v1/completions", {"model": CANARY, "prompt": "x"})
    told = keyed.log_path.read_text() + keyed.request("GET", "/metrics").body.decode()
    assert all(word not in told for word in (CANARY, answer, *KEYS))
    limits = Path(f"/proc/{keyed.process.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0", limits)
    assert re.search(r"Max core file size +0 +0", Path(f"/proc/{keyed.worker}/limits").read_text())


def test_a42_hostile_names_stay_on_one_line_of_the_log(server: Server) -> None:
    lines = len(server.log_path.read_text().splitlines())
    assert server.complete("a\r\nb\x1b[31m" + "x" * 100, model="evil\r\n\x1b[2J" + "y" * 100_000).status == 404
    assert server.complete(**{"x\r\n\x1b": 1}).status == 400
    told = server.log_path.read_text().splitlines()
    assert len(told) == lines + 1
    assert len(told[-1]) < 1000
    assert "\x1b" not in told[-1]


def test_a43_no_process_shows_a_key(keyed: Server) -> None:
    for pid in (keyed.process.pid, keyed.worker):
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not [key for key in KEYS if key.encode() in shown]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "demo\0", "x" * 10_000, "Demo", ""])
def test_a44_a_model_is_only_ever_compared(server: Server, name: str) -> None:
    reply = server.complete(model=name)
    assert (reply.status, reply.code) == (404, "model_not_found")


def test_a_model_of_another_name_is_not_found(server: Server) -> None:
    assert server.request("GET", f"/v1/models/{MODEL}").json["id"] == MODEL
    assert server.request("GET", "/v1/models/other").status == 404


def test_a_mistake_of_ours_is_told_as_one() -> None:
    error = ServiceError("words", 503, "cuda_700", retry_after=7)
    reply = api.refuse(error, "id-1")
    assert reply.headers == {"Retry-After": "7"}
    assert api.describe(error, "id-1") == {
        "message": "words",
        "type": "engine_fault",
        "param": None,
        "code": "cuda_700",
        "retryable": True,
        "request_id": "id-1",
    }


def test_a_refusal_is_counted(server: Server) -> None:
    before = server.metric('orin_requests_refused_total{code="model_not_found"}')
    server.complete(model="other")
    assert server.metric('orin_requests_refused_total{code="model_not_found"}') == before + 1
    assert Metrics("x").value("orin_requests_refused_total") == 0
