# SPDX-License-Identifier: Apache-2.0
"""R3: where no more memory is free than the plan says, captures and all, everything starts and every slot fills."""

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
TOLERANCE = 0.03


def test_the_planned_memory_suffices_to_the_last_token(tmp_path: Path, record_property: Any) -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-python", exc_type=ImportError)
    from orinkit.engines.gpu import Gpu
    from orinkit.errors import EngineError

    try:
        Gpu()
    except EngineError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    if not LIBRARY.is_file():
        pytest.skip("needs `make kernels`")
    program = Path(__file__).with_name("at_budget.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(program), str(tmp_path), str(LIBRARY), str(TOLERANCE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    record_property("bytes", found)
    peak = max(found[when] for when in ("loaded", "ready", "filled"))
    assert abs(peak / found["planned"] - 1) <= TOLERANCE
    assert found["filled"] == found["ready"]
    assert found["tokens"] == 8 * 13
