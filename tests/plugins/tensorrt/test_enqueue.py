# SPDX-License-Identifier: Apache-2.0
"""Every adapter's enqueue on a GPU, through TensorRT's interfaces, against the references of the ops.

Eagerly, captured and replayed twice, and with states apart from their outputs. The workspace is as large as the adapter
asked for and full of 0xFF, as are outputs. The library is that of `orin-export plugins --target targets/host.yaml`.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import attention_cases as attention
import gated_delta_cases as gated_delta
import int4_gemm_cases as int4_gemm
from adapter_cases import attention_case, write_cases
from op_cases import Case, embedding, projection
from orinkit.ops import OPS
from tolerances import RELATIVE_ERROR, relative_error

ROOT = Path(__file__).parents[3]
HOST = ROOT / "build/tests/plugins/programs/host-x86_64-10.3/host"
LIBRARY = ROOT / "build/plugins/host/liborin_plugins.so"
MODES = ("eager", "captured", "apart")
NAMES = (
    *("embedding-wide", "embedding-int8", "embedding-int4", "linear-1", "linear-24", "linear-130", "linear-int8-1"),
    *("linear-int8-24", "linear-int8-130", "linear-rows", "gemm-1", "gemm-8", "gemm-16", "gemm-17", "gemm-64"),
    *("gemm-300", "gemm-swiglu", "gemm-many-swiglu", "gemm-rows", "gemm-columns-1", "gemm-columns-64", "gemm-long"),
    *(
        "decode",
        "decode-padded",
        "decode-window",
        "verify",
        "prefill",
        "mixed",
        "delta-decode",
        "delta-chunks",
        "delta-mixed",
    ),
)
"""Of the cases, which are only made where there is a GPU."""

pytestmark = pytest.mark.gpu


def has_gpu() -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return bool(driver.cuInit(0) == 0)


def _attention(heads: attention.Heads, *rows: attention.Row, capacity: int, window: int = 0, tail: int = 0) -> Case:
    return attention_case("attention", attention.step(heads, list(rows), capacity, window, tail=tail))


@cache
def cases() -> dict[str, Case]:
    """Every op, and of each the paths that its launcher takes: few and many tokens, one and several splits."""
    row, qwen, llama = attention.Row, attention.MODELS["Qwen3.5-0.8B and 2B"], attention.MODELS["Llama-3.1-8B"]
    step, delta = gated_delta.Row, gated_delta.QWEN_SMALL
    decode = (row(1, 70, 2), row(1, 3, 0), row(1, 900, 4), row(1, 0, 5))
    found = {
        **{f"embedding-{kind}": embedding(1, kind) for kind in ("wide", "int8", "int4")},
        **{f"linear-{t}": projection(2, "wide", tokens=t, n=66, k=512, options="nbr") for t in (1, 24, 130)},
        **{f"linear-int8-{t}": projection(2, "int8", tokens=t, n=66, k=512, options="ns") for t in (1, 24, 130)},
        "linear-rows": projection(3, "wide", tokens=40, n=4290, k=256, options="np", float32_output=1),
        **{f"gemm-{t}": int4_gemm.gemm(t, 1024, 2048, options="nr") for t in (1, 8, 16, 17, 64, 300)},
        "gemm-swiglu": int4_gemm.gemm(1, 2048, 1024, group=32, options="zns"),
        "gemm-many-swiglu": int4_gemm.gemm(70, 2048, 1024, group=64, options="zbs"),
        "gemm-rows": int4_gemm.gemm(40, 5000, 512, options="nf", rows=(39, 7, 0)),
        **{f"gemm-columns-{t}": int4_gemm.gemm(t, 1024, 2048, options="nrc") for t in (1, 64)},
        "gemm-long": int4_gemm.gemm(2, 256, 8192, options="n"),
        "decode": _attention(qwen, *decode, capacity=1024),
        "decode-padded": _attention(qwen, *decode, row(0, 0, -1), row(0, 0, -1), capacity=1024, tail=2),
        "decode-window": _attention(llama, row(1, 200, 1), row(1, 31, 0), capacity=96, window=64),
        "verify": _attention(llama, row(4, 100, 1), capacity=256),
        "prefill": _attention(qwen, row(100, 300, 1), capacity=512),
        "mixed": _attention(llama, row(200, 0, 0), row(1, 55, 2), row(30, 17, 1), capacity=512),
        "delta-decode": gated_delta.step(1, delta, [step(1, 9, 2), step(1, 0, 0), step(0, 0, -1)]),
        "delta-chunks": gated_delta.step(2, delta, [step(300, 5, 1)]),
        "delta-mixed": gated_delta.step(3, gated_delta.QWEN_MIDDLE, [step(70, 0, 0), step(1, 3, 1)]),
    }
    return {name: replace(case, name=name) for name, case in found.items()}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what the adapters wrote."""
    for path in (HOST, LIBRARY):
        if not path.is_file():
            pytest.skip(f"needs {path.relative_to(ROOT)}; run the tests beside this one, and orin-export plugins")
    if not has_gpu():
        pytest.skip("needs an NVIDIA GPU")
    folder = tmp_path_factory.mktemp("enqueue")
    path = write_cases(folder, list(cases().values()))
    done = subprocess.run([HOST, LIBRARY, "run", path], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert '"failed"' not in done.stdout, done.stdout
    return folder


def test_the_cases_are_all_there(ran: Path) -> None:
    assert tuple(cases()) == NAMES


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name: str, mode: str, ran: Path) -> None:
    case = cases()[name]
    outputs = OPS[case.op_type].compute(case.inputs, case.attributes)
    for tensor, expected in zip(OPS[case.op_type].outputs, outputs, strict=True):
        path = ran / f"{case.name}.{tensor.name}.{mode}"
        found = np.fromfile(path, expected.dtype).reshape(expected.shape)
        assert np.array_equal(np.isnan(found), np.isnan(expected)), f"{tensor.name}: foreign values"
        known = ~np.isnan(expected)
        assert relative_error(found[known], expected[known]) < RELATIVE_ERROR["float16"], tensor.name


@pytest.mark.parametrize("name", NAMES)
def test_the_modes_agree_bit_for_bit(name: str, ran: Path) -> None:
    for tensor in OPS[cases()[name].op_type].outputs:
        eager, *others = [(ran / f"{name}.{tensor.name}.{mode}").read_bytes() for mode in MODES]
        assert others == [eager, eager], tensor.name


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool: str, ran: Path) -> None:
    sanitizer = shutil.which("compute-sanitizer", path="/usr/local/cuda/bin") or shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("needs compute-sanitizer of the CUDA toolkit")
    words = (sanitizer, "--tool", tool, "--error-exitcode", "9", HOST, LIBRARY, "run", ran / "cases.txt")
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=500)
    found = "\n".join(line for line in done.stdout.splitlines() if line.startswith("====="))
    assert done.returncode == 0, found[:4000]
    assert done.stdout.count('"said"') == len(NAMES)
    assert re.search(r"SUMMARY: 0 (errors|hazards)", done.stdout)
