# SPDX-License-Identifier: Apache-2.0
"""Random nodes of every op: the one generator for tests that compare an implementation with the references in `ops`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit import int4
from orinkit.ops import OPS

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One node: inputs by position (None where left out) and attribute values."""

    name: str
    op_type: str
    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any]

    @property
    def dtype(self) -> str:
        """Type of the activations."""
        return (
            "float32"
            if any(a is not None and a.dtype == np.float32 and a.ndim == 2 for a in self.inputs[:1])
            else "float16"
        )


def named(case: Case) -> dict[str, Array]:
    """The inputs that the case has, by the names of the op's description."""
    pairs = zip(OPS[case.op_type].inputs, case.inputs, strict=False)
    return {tensor.name: array for tensor, array in pairs if array is not None}


def _normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32, scale: float = 1.0) -> Array:
    return (rng.standard_normal(shape) * scale).astype(dtype)


def one_sequence(tokens: int, past: int, slot: int) -> tuple[Array, Array, Array]:
    """cu_seqlens, past_lens and slots of a step of one sequence."""
    return np.array([0, tokens], np.int32), np.array([past], np.int32), np.array([slot], np.int32)


def embedding(seed: int, kind: str, dtype: Any = np.float16, hidden: int = 128) -> Case:
    """`kind`: wide, int8 or int4; ids include -1 and one beyond the table."""
    rng = np.random.default_rng(seed)
    vocab, group = 50, 32
    ids = np.array([0, 49, -1, 50, 7, 7], np.int32)
    wide = dtype == np.float32
    table: Array = _normal(rng, vocab, hidden, dtype=dtype)
    scale: Array | None = None
    if kind == "int8":
        table, scale = rng.integers(-128, 128, (vocab, hidden)).astype(np.int8), _normal(rng, vocab, dtype=np.float16)
    if kind == "int4":
        table = int4.pack(rng.integers(0, 16, (vocab, hidden)).astype(np.uint8))
        scale = _normal(rng, vocab, hidden // group, dtype=np.float16)
    attributes = {"hidden": hidden, "group_size": group if kind == "int4" else 0, "float32_output": int(wide)}
    return Case(f"embedding-{kind}", "OrinEmbedding", (ids, table, scale), attributes)


def projection(
    seed: int,
    kind: str,
    dtype: Any = np.float16,
    tokens: int = 5,
    n: int = 66,
    k: int = 128,
    group: int = 32,
    options: str = "",
    float32_output: int = 0,
) -> Case:
    """`kind`: int4, wide or int8; `options`: letters of zeros, norm, bias, residual, rows (picked), swiglu, columns."""
    rng = np.random.default_rng(seed)
    swiglu = "s" in options
    picked = np.array([tokens - 1, 0], np.int32) if "p" in options else None
    out_rows, width = (tokens if picked is None else len(picked)), (n // 2 if swiglu else n)
    tail = (
        _normal(rng, k) if "n" in options else None,
        _normal(rng, n, dtype=dtype) if "b" in options else None,
        _normal(rng, out_rows, width, dtype=dtype) if "r" in options else None,
        picked,
    )
    attributes = {
        "n": n,
        "k": k,
        "activation": "swiglu" if swiglu else "none",
        "norm_eps": 1e-6,
        "float32_output": float32_output,
    }
    x = _normal(rng, tokens, k, dtype=dtype)
    name = f"{kind}-{tokens}x{n}x{k}-{options}"
    if kind == "int4":
        packed = int4.pack(rng.integers(0, 16, (n, k)).astype(np.uint8))
        scales = _normal(rng, n, k // group, dtype=np.float16, scale=0.1)
        zeros = int4.pack(rng.integers(0, 16, (n, k // group)).astype(np.uint8)) if "z" in options else None
        columns = (rng.permutation(k).astype(np.int32),) if "c" in options else ()
        inputs = (x, packed, scales, zeros, *tail, *columns)
        return Case(name, "OrinInt4Gemm", inputs, attributes | {"group_size": group})
    if kind == "int8":
        weight, scale = rng.integers(-128, 128, (n, k)).astype(np.int8), _normal(rng, n, dtype=np.float16, scale=0.01)
        return Case(name, "OrinLinear", (x, weight, scale, *tail), attributes)
    return Case(name, "OrinLinear", (x, _normal(rng, n, k, dtype=dtype, scale=0.1), None, *tail), attributes)


def attention(
    seed: int,
    tokens: int,
    past: int,
    dtype: Any = np.float16,
    rows: int = 40,
    window: int = 0,
    gate: int = 0,
    qk_norm: bool = True,
    rotary_dim: int = 16,
    softcap: float = 0.0,
    heads: int = 4,
    kv_heads: int = 2,
) -> Case:
    """A step of one sequence in slot 1 of 3; the other slots hold NaN."""
    rng = np.random.default_rng(seed)
    dim, positions = 32, 128
    qkv = _normal(rng, tokens, (heads * (1 + gate) + 2 * kv_heads) * dim, dtype=dtype)
    kv = np.full((3, 2, kv_heads, rows, dim), np.nan, dtype)
    kv[1, :, :, : min(past, rows)] = _normal(rng, 2, kv_heads, min(past, rows), dim, dtype=dtype)
    angles = np.arange(positions)[:, None] * 0.3 ** np.arange(rotary_dim // 2)[None]
    norms = (1 + _normal(rng, dim, scale=0.1), 1 + _normal(rng, dim, scale=0.1)) if qk_norm else (None, None)
    inputs = (
        qkv,
        kv,
        *one_sequence(tokens, past, 1),
        *norms,
        np.cos(angles).astype(np.float32),
        np.sin(angles).astype(np.float32),
    )
    attributes = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": dim,
        "rotary_dim": rotary_dim,
        "window": window,
        "scale": dim**-0.5,
        "softcap": softcap,
        "gate": gate,
        "norm_eps": 1e-6,
    }
    return Case(f"attention-{tokens}+{past}-w{window}", "OrinAttention", inputs, attributes)


def gated_delta(
    seed: int, tokens: int, past: int, dtype: Any = np.float16, key_heads: int = 2, value_heads: int = 4
) -> Case:
    """A step of one sequence in slot 1 of 3; the other slots, and slot 1 of a sequence that begins, hold NaN."""
    rng = np.random.default_rng(seed)
    dim, width = 32, 4
    channels = (2 * key_heads + value_heads) * dim
    conv = np.full((3, channels, width - 1), np.nan, dtype)
    rec = np.full((3, value_heads, dim, dim), np.nan, np.float32)
    if past:
        conv[1], rec[1] = _normal(rng, channels, width - 1, dtype=dtype), _normal(rng, value_heads, dim, dim)
    inputs = (
        _normal(rng, tokens, channels + value_heads * dim, dtype=dtype),
        _normal(rng, tokens, 2 * value_heads, dtype=dtype),
        _normal(rng, channels, width, dtype=dtype, scale=0.5),
        np.log(rng.uniform(1, 16, value_heads)).astype(np.float32),
        _normal(rng, value_heads) - 3,
        1 + _normal(rng, dim, scale=0.1),
        conv,
        rec,
        *one_sequence(tokens, past, 1),
    )
    attributes = {
        "key_heads": key_heads,
        "value_heads": value_heads,
        "key_dim": dim,
        "value_dim": dim,
        "conv_width": width,
        "norm_eps": 1e-6,
    }
    return Case(f"gated_delta-{tokens}+{past}", "OrinGatedDelta", inputs, attributes)


def all_cases() -> Iterator[Case]:
    """Every op in every variant that a graph may hold, small, in float16 and float32."""
    for dtype in (np.float16, np.float32):
        for kind in ("wide", "int8", "int4"):
            yield embedding(1, kind, dtype)
            for seed, options in enumerate(("", "n", "br", "nsr", "np", "p")):
                yield projection(seed, kind, dtype, options=options, float32_output=int("p" in options))
        yield projection(7, "int4", dtype, options="znb", group=64, k=192)
        yield projection(8, "int4", dtype, options="z", group=128, k=128, n=33, tokens=1)
        yield projection(9, "int4", dtype, options="nc")
        yield projection(10, "int4", dtype, options="zc", group=64, k=192, tokens=1)
        for tokens, past in ((1, 0), (1, 7), (9, 0), (8, 31)):
            yield attention(3, tokens, past, dtype)
            yield gated_delta(4, tokens, past, dtype)
        for past in (11, 12, 13, 39, 40, 41, 60):
            yield attention(5, 6, past, dtype, rows=20, window=12, gate=1, qk_norm=False, rotary_dim=32)
        yield attention(6, 3, 5, dtype, softcap=5.0, heads=6, kv_heads=1)
        yield gated_delta(9, 70, 3, dtype, key_heads=2, value_heads=6)
