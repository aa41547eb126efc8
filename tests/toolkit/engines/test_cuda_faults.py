# SPDX-License-Identifier: Apache-2.0
"""R5: after an illegal address nothing is answered and nothing wrong was; a new process gives the golden tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gpu
LIBRARY = Path(__file__).parents[3] / "build/kernels/liborin_kernels.so"


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-python", exc_type=ImportError)
    from orinkit.engines.gpu import Gpu
    from orinkit.errors import EngineError

    try:
        Gpu()
    except EngineError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    if not LIBRARY.is_file():
        pytest.skip("needs `make kernels`")


def process(bundle: Path, fault: str) -> Any:
    """What came of a process of its own."""
    program = Path(__file__).with_name("faulty_pipeline.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(program), str(bundle), str(LIBRARY), fault]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("fault", ["decode", "prefill"])
def test_a_fault_gives_no_wrong_token_and_a_new_process_the_golden_ones(demo_bundle: Path, fault: str) -> None:
    found = process(demo_bundle, fault)
    golden, first = found["golden"], found["first"]
    assert first["code"] == 700
    assert 4 <= len(first["tokens"]) < len(golden)
    assert first["tokens"] == golden[: len(first["tokens"])]
    assert found["later"] == [{"tokens": [], "code": 700}] * 3
    anew = process(demo_bundle, "none")
    assert [anew["first"], *anew["later"]] == [{"tokens": golden, "code": None}] * 4
