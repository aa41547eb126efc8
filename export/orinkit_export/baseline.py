# SPDX-License-Identifier: Apache-2.0
"""The float model on the evaluation text: what an export is compared with.

It runs layer by layer in float32, so that one layer's weights are in memory, and leaves the hidden rows behind the last
layer. They do not depend on how weights are stored: a recipe that is changed because a bound was missed keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit import config
from orinkit.bundle import Provenance
from orinkit.ops.description import rms_norm
from orinkit_export.calibrate import Hidden, LayerRunner
from orinkit_export.plan import Plan
from orinkit_export.prepare import embedded
from orinkit_export.progress import progress
from orinkit_export.weights import Weight

Float32 = NDArray[np.float32]


def inputs(plan: Plan, provenance: Provenance) -> dict[str, Any]:
    """What the hidden rows depend on."""
    files, ids = config.dump(provenance.files), provenance.texts["evaluation"]
    return {"files": files, "model": config.dump(plan.spec), "ids": ids}


def run(plan: Plan, folder: Path) -> None:
    """Leave the hidden rows of the evaluation text in `folder`; a killed run goes on at its layer.

    The last token of a sequence has no next one to predict, so it is left out.
    """
    ids = plan.evaluation_ids[:, :-1]
    stored = plan.stored()
    shared = {weight.name: _read(weight) for weight in stored if weight.name.startswith("rope.")}
    hidden, runner = Hidden(folder), LayerRunner(plan.spec, ids.shape[1])
    if hidden.next_layer is None:
        hidden.write((*ids.shape, plan.spec.hidden), embedded(plan.embedding(), ids))
        hidden.commit(0)
    layers = range(hidden.next_layer or 0, len(plan.spec.layers))
    with progress("float model", ids.size * len(layers), "tokens x layers") as advance:
        for index in layers:
            prefix, rows = f"layers.{index}.", hidden.read(index)
            arrays = {w.name.removeprefix(prefix): _read(w) for w in stored if w.name.startswith(prefix)}
            hidden.write(rows.shape, runner.forward(index, arrays, shared, rows, advance))
            hidden.commit(index + 1)


def rows(plan: Plan, folder: Path) -> Float32:
    """The hidden rows [sequences, tokens-1, H] that `run` left in `folder`, behind the last norm."""
    norm = _read(next(weight for weight in plan.stored() if weight.name == "final_norm"))
    return rms_norm(Hidden(folder).read(len(plan.spec.layers)), norm, plan.spec.norm_eps)


def logits(plan: Plan, normed: Float32) -> Iterator[Float32]:
    """Logits of rows [T, H] of `rows`, in blocks [T, n] of the vocabulary."""
    for block in plan.head().blocks():
        yield normed @ block.T


def _read(weight: Weight) -> Float32:
    return np.concatenate(list(weight.blocks()))
