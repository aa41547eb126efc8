# SPDX-License-Identifier: Apache-2.0
"""A process whose device meets an illegal address while it serves, and goes on asking; prints what came of it.

    python faulty_pipeline.py BUNDLE KERNELS none|decode|prefill

decode   a launch with a wild pointer comes between captured decode steps that run ahead
prefill  the prefill of the next prompt, enqueued kernel by kernel, has one
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from orinkit.bundle import Bundle
from orinkit.engines.cuda import CudaEngine
from orinkit.errors import DeviceError
from orinkit.ops import VERSIONS
from orinkit.runtime.pipeline import open_pipeline
from orinkit.runtime.request import Finished, Request, Token
from orinkit.runtime.scheduler import Scheduler
from orinkit.runtime.start import open_tokenizer

WILD = 0x100
TOKENS_BEFORE = 4


def inject(engine: CudaEngine, served: Scheduler, fault: str) -> None:
    """Put the wild pointer where the fault has it."""
    if fault == "prefill":
        captures: Any = served._pipeline._captures  # type: ignore[attr-defined]
        size = min(captures.prefills)
        captures.contexts.short[size].launches[0].arguments.y = WILD
        captures.prefills[size] = replace(captures.prefills[size], launch=captures.contexts.short_step(size))
        served.submit(Request((1, 2, 3), max_tokens=2))
    elif fault == "decode":
        pointers = {"ids": WILD, "cu_seqlens": WILD, "slots": WILD, "counts": WILD}
        arguments = engine.library.arguments("prompt", **pointers, tokens=3, sequences=1, vocab=4096)
        engine.library.launch("prompt", arguments, engine.gpu.stream)


def serve(served: Scheduler, request: Request, found: dict[str, Any], at_most: int = 1 << 30) -> None:
    """Run a request, or so many tokens of it; `found` gets its tokens, and the code of the error that ended it."""
    found |= {"tokens": [], "code": None}
    number = served.submit(request)
    go_on(served, number, found, at_most)


def go_on(served: Scheduler, number: int, found: dict[str, Any], at_most: int = 1 << 30) -> None:
    while not served.is_idle and len(found["tokens"]) < at_most:
        for event in served.step():
            if event.request == number and isinstance(event, Token):
                found["tokens"].append(event.token)
            if event.request == number and isinstance(event, Finished) and isinstance(event.error, DeviceError):
                found["code"] = event.error.code


def main() -> None:
    """See the module's docstring."""
    folder, kernels, fault = sys.argv[1:]
    bundle = Bundle.open(Path(folder), keys=None, supported=VERSIONS)
    model, shapes = bundle.manifest.model, replace(bundle.manifest.recipe.shapes, slots=2)
    engine = CudaEngine(bundle.graph, bundle.data, model, Path(kernels))
    served = Scheduler(open_pipeline(engine, shapes), shapes, open_tokenizer(bundle), model)
    golden = bundle.manifest.golden[0]
    request = Request(golden.prompt_tokens, max_tokens=len(golden.tokens))
    first: dict[str, Any] = {}
    serve(served, request, first, TOKENS_BEFORE)
    inject(engine, served, fault)
    go_on(served, 1, first)
    later: list[dict[str, Any]] = [{} for _ in range(3)]
    for found in later:
        serve(served, request, found)
    print(json.dumps({"golden": list(golden.tokens), "first": first, "later": later}))


if __name__ == "__main__":
    main()
