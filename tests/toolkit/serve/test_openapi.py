# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from orinkit.serve import openapi, page
from toolkit.serve.servers import Server
from toolkit.serve.test_api import public_routes


def test_every_route_of_the_api_is_described() -> None:
    described = {path.partition("{")[0]: set(methods) for path, methods in openapi.document("1")["paths"].items()}
    untold = {"/openapi.json", *page.routes()}
    routes = {path: {route.method.lower()} for path, route in public_routes().items()}
    assert described == {path: methods for path, methods in routes.items() if path not in untold}


def test_the_server_gives_its_document(server: Server) -> None:
    told = server.request("GET", "/openapi.json").json
    assert told == openapi.document(told["info"]["version"])
