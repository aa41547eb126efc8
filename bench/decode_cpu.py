# SPDX-License-Identifier: Apache-2.0
"""Decode on the CPU, one sequence: a bundle with ONNX Runtime beside its float checkpoint with transformers.

    python bench/decode_cpu.py BUNDLE CHECKPOINT [--tokens 32] [--prompt 64] [--rounds 3] [--out FILE]

Needs torch and transformers (tests/oracle/requirements.txt). The two take turns in one process, so that the ratio is
worth something on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers

from orinkit.bundle import Bundle
from orinkit.engines import open_engine
from orinkit.ops import VERSIONS
from orinkit.runtime.batch import Row
from orinkit.runtime.steps import Stepper


def orinkit_decode(folder: Path, prompt: tuple[int, ...], tokens: int) -> Callable[[], float]:
    """A function that decodes `tokens` tokens after `prompt`; gives seconds."""
    bundle = Bundle.open(folder, keys=None, supported=VERSIONS)
    stepper = Stepper(open_engine("onnxruntime", bundle.graph, bundle.manifest.model), bundle.manifest.recipe.shapes)

    def run() -> float:
        token = int(stepper.prefill([Row(0, 0, prompt)])[0].argmax())
        start = time.perf_counter()
        for index in range(tokens):
            token = int(stepper.decode([Row(0, len(prompt) + index, (token,))])[0].argmax())
        return time.perf_counter() - start

    return run


def transformers_decode(folder: Path, prompt: tuple[int, ...], tokens: int) -> Callable[[], float]:
    """The same with transformers in bfloat16, its cache and greedy choice."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def run() -> float:
        with torch.inference_mode():
            out = model(torch.tensor([prompt]), use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            start = time.perf_counter()
            for _ in range(tokens):
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
            return time.perf_counter() - start

    return run


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    prompt = tuple(int(token) for token in np.random.default_rng(0).integers(0, 500, args.prompt))
    runs = {
        "orinkit": orinkit_decode(args.bundle, prompt, args.tokens),
        "transformers": transformers_decode(args.checkpoint, prompt, args.tokens),
    }
    best = {name: float("inf") for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            best[name] = min(best[name], run())
    rates = {name: args.tokens / seconds for name, seconds in best.items()}
    record = {
        "tokens_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "ratio": round(rates["orinkit"] / rates["transformers"], 2),
        "bundle": args.bundle.name,
        "prompt_tokens": args.prompt,
        "decoded_tokens": args.tokens,
        "rounds": args.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    text = json.dumps(record, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
