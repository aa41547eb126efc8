# SPDX-License-Identifier: Apache-2.0
"""Writes Orin's sections of the table of choices by select.h's costs for their multiprocessors: by reasoning.

PYTHONPATH=toolkit:tests python bench/kernels/tune_orin.py

The costs were measured on an H200; only their ratios count. On a board, `make tune` measures instead.
"""

from __future__ import annotations

import tempfile
from dataclasses import astuple, replace
from pathlib import Path

import tuned_table
from tuned_table import TOKENS, Tuned

from int4_gemm_cases import MODEL_SHAPES

ORINS = (16, 14, 8, 4)
"""Multiprocessors of AGX Orin 64 GB and DRIVE, AGX Orin 32 GB, Orin NX and Nano 8 GB, Nano 4 GB."""
SHARED_BYTES = 163 * 1024
STEP = 32
"""Tokens of the smallest tile."""
ORIGIN = "by the costs of select.h, measured on an H200; not measured on this GPU"


def name(sm_count: int) -> str:
    return f"Orin with {sm_count} multiprocessors"


def matrices() -> list[tuple[int, int]]:
    """N and K of every matrix of the models that recipes name."""
    return sorted({shape for shapes in MODEL_SHAPES.values() for shape in shapes})


def projected(folder: Path, sm_count: int) -> list[Tuned]:
    """One entry for neighbouring steps with the same choice, which changes at multiples of the smallest tile only."""
    cases = [(tokens, n, k) for n, k in matrices() for tokens in range(STEP, TOKENS[-1] + 1, STEP)]
    _, choices = tuned_table.ask(folder, sm_count, SHARED_BYTES, cases)
    found: list[Tuned] = []
    for (tokens, n, k), choice in zip(cases, choices, strict=True):
        first = max(17, tokens - STEP + 1)
        last = found[-1] if found else None
        if last and (last.n, last.k) == (n, k) and last.choice == replace(choice, group_m=8):
            first = found.pop().first_tokens
        found.append(Tuned(sm_count, SHARED_BYTES, n, k, 128, first, tokens, *astuple(replace(choice, group_m=8))))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for sm_count in ORINS:
            tuned_table.write(name(sm_count), ORIGIN, projected(Path(folder), sm_count))


if __name__ == "__main__":
    main()
