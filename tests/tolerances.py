# SPDX-License-Identifier: Apache-2.0
"""The one metric and the one table of tolerances."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RELATIVE_ERROR = {
    "float32": 2e-5,
    "float16": 1.5e-3,
}
"""Largest ||found - expected|| / ||expected|| of an op's output, by the type of its activations."""

LOGITS_FLOAT32 = 1e-3
"""Largest difference of a float32 logit from the oracle's."""

KL_FLOAT16 = 1e-4
"""Largest mean KL divergence (nats) of a float16 graph from the oracle: rounding to float16 gives 1e-6 to 2e-5 on the
random models, rounding to bfloat16 would give 64 times that."""

KL_INT4 = 1e-4
"""Largest mean KL divergence (nats) of the INT4 graph from its dequantised reference."""


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """||found - expected|| / ||expected|| in float64; infinite when a value is not finite."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    scale = float(np.linalg.norm(b))
    return float(np.linalg.norm(a - b)) / (scale or 1.0)
