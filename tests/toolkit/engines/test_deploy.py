# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest

from orinkit.engines.deploy import DeployWeights, PackedMatrix, WeightInput, decode, encode
from orinkit.errors import BundleError

WEIGHTS = DeployWeights(
    (
        WeightInput("a.packed", "int8", (8, 16), 0, 128),
        WeightInput("s.packed", "float16", (8, 1), 4096, 16),
        WeightInput("n", "float32", (4,), 8192, 16),
    ),
    (PackedMatrix("a.packed", "s.packed"),),
)


def test_there_and_back() -> None:
    assert decode(encode(WEIGHTS)) == WEIGHTS
    assert encode(WEIGHTS) == encode(decode(encode(WEIGHTS)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": []}, "expected names of weights, found 'a.packed'"),
        ({"packed": [{"weight": "n", "scales": "x"}]}, "expected names of weights, found 'x'"),
        ({"weights": 1}, "weights"),
        ({"other": 1}, "other"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    raw = json.dumps(json.loads(encode(WEIGHTS)) | change).encode()
    with pytest.raises(BundleError, match=f"deploy.json: .*{message}.*export the bundle again"):
        decode(raw)


def test_a_name_comes_once() -> None:
    data = json.loads(encode(WEIGHTS))
    data["weights"].append(data["weights"][0])
    with pytest.raises(BundleError, match="each name once"):
        decode(json.dumps(data).encode())


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_index_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleError, match="export the bundle again"):
        decode(raw)
