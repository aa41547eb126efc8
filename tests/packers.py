# SPDX-License-Identifier: Apache-2.0
"""Random linear modules as other tools store them, packed as the descriptions of their formats say, and as floats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from orinkit_export import safetensors
from orinkit_export.checkpoint import CONFIG, WEIGHTS, Checkpoint

Array = NDArray[Any]
Tensors = dict[str, Array]


@dataclass(frozen=True)
class Linear:
    """W[n, k] = (q[n, k] - z[n, g]) * s[n, g] with g = group[k]; q and z are 0..15."""

    q: Array
    z: Array
    s: Array
    group: Array

    def dequantised(self) -> NDArray[np.float32]:
        """W [N, K]; in float32 the product is rounded once."""
        steps = self.q.astype(np.int32) - self.z[:, self.group].astype(np.int32)
        return steps.astype(np.float32) * self.s.astype(np.float32)[:, self.group]


def linear(
    seed: int, n: int, k: int, group_size: int, *, symmetric: bool = False, group: Array | None = None, least: int = 0
) -> Linear:
    """Rows of norm 1 or so; scales of either sign; zero points from `least` on, or 8 where symmetric."""
    rng = np.random.default_rng(seed)
    groups = k // group_size
    magnitude = rng.uniform(0.5, 1.5, (n, groups)) * rng.choice([-1, 1], (n, groups)) / (6.5 * k**0.5)
    scales = magnitude.astype(ml_dtypes.bfloat16).astype(np.float16)  # either type holds them
    zeros = np.full((n, groups), 8) if symmetric else rng.integers(least, 16, (n, groups))
    in_place = np.arange(k) // group_size
    return Linear(rng.integers(0, 16, (n, k)), zeros, scales, (in_place if group is None else group).astype(np.int32))


def shuffled(seed: int, k: int, group_size: int) -> Array:
    """The group of each column after an act-order."""
    return np.random.default_rng(seed).permutation(np.arange(k) // group_size)


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _words(values: Array, order: tuple[int, ...] = tuple(range(8))) -> Array:
    """int32 [A, B] of values 0..15 [A, 8B]: nibble i of word c is column 8c + order[i]."""
    words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for place, column in enumerate(order):
        words |= values[:, column::8].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def _filled(values: Array, columns: int) -> Array:
    return np.pad(values, ((0, 0), (0, columns - values.shape[1])))


def awq_gemm(m: Linear) -> Tensors:
    return {"qweight": _words(m.q.T, AWQ_ORDER), "qzeros": _words(m.z.T, AWQ_ORDER), "scales": m.s.T}


def awq_gemv(m: Linear) -> Tensors:
    """The words of zero points come in multiples of 1, 2 or 4 for groups of 128, 64 or 32."""
    groups = m.z.shape[1]
    multiple = {128: 1, 64: 2, 32: 4}[m.q.shape[1] // groups]
    width = math.ceil(math.ceil(groups / 8) / multiple) * multiple
    return {"qweight": _words(m.q), "qzeros": _words(_filled(m.z, 8 * width)), "scales": _filled(m.s, 8 * width)}


def gptq_v2(m: Linear) -> Tensors:
    return {"qweight": _words(m.q).T, "qzeros": _words(m.z.T), "scales": m.s.T, "g_idx": m.group}


def gptq_v1(m: Linear) -> Tensors:
    return gptq_v2(m) | {"qzeros": _words(m.z.T - 1)}


def compressed(m: Linear) -> Tensors:
    """q and z are the signed numbers plus 8."""
    rows = math.ceil(m.q.shape[0] / 8) * 8
    tensors = {
        "weight_packed": _words(m.q),
        "weight_scale": m.s.astype(ml_dtypes.bfloat16),
        "weight_shape": np.array(m.q.shape, np.int64),
    }
    if (m.z != 8).any():
        tensors["weight_zero_point"] = _words(_filled(m.z.T, rows)).T
    if (np.diff(m.group) < 0).any():
        tensors["weight_g_idx"] = m.group
    return tensors


@dataclass(frozen=True)
class Style:
    """A format with its settings in config.json."""

    pack: Callable[[Linear], Tensors]
    settings: Callable[[int], dict[str, Any]]
    """By group size."""
    symmetric: bool = False
    act_order: bool = False
    least: int = 0
    """Least zero point that the format holds."""


def _awq(version: str) -> Callable[[int], dict[str, Any]]:
    return lambda size: {
        "quant_method": "awq",
        "bits": 4,
        "group_size": size,
        "zero_point": True,
        "version": version,
        "modules_to_not_convert": None,
    }


def _gptq(**settings: Any) -> Callable[[int], dict[str, Any]]:
    return lambda size: {"quant_method": "gptq", "bits": 4, "group_size": size, **settings}


def _compressed(symmetric: bool, actorder: str | None = None) -> Callable[[int], dict[str, Any]]:
    def settings(size: int) -> dict[str, Any]:
        weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": size}
        weights |= {"symmetric": symmetric, "actorder": actorder, "dynamic": False}
        group = {"input_activations": None, "output_activations": None, "targets": ["Linear"], "weights": weights}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
        }

    return settings


STYLES = {
    "awq-gemm": Style(awq_gemm, _awq("gemm")),
    "awq-gemv": Style(awq_gemv, _awq("gemv")),
    "gptq": Style(gptq_v1, _gptq(sym=False, desc_act=False), least=1),
    "gptq-symmetric": Style(gptq_v1, _gptq(sym=True, desc_act=False), symmetric=True),
    "gptq-act-order": Style(gptq_v1, _gptq(sym=True, desc_act=True), symmetric=True, act_order=True),
    "gptq_v2": Style(gptq_v2, _gptq(sym=False, checkpoint_format="gptq_v2")),
    "gptq_v2-act-order": Style(gptq_v2, _gptq(sym=False, desc_act=True, checkpoint_format="gptq_v2"), act_order=True),
    "compressed": Style(compressed, _compressed(False)),
    "compressed-symmetric": Style(compressed, _compressed(True), symmetric=True),
    "compressed-act-order": Style(compressed, _compressed(False, "group"), act_order=True),
}


def alone(folder: Path, modules: Mapping[str, Tensors], settings: Mapping[str, Any] | None = None) -> Checkpoint:
    """A checkpoint of some modules and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"quantization_config": settings}), encoding="utf-8")
    tensors = {f"{name}.{suffix}": array for name, parts in modules.items() for suffix, array in parts.items()}
    safetensors.write(folder / WEIGHTS, tensors)
    return Checkpoint.open(folder)
