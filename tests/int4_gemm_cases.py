# SPDX-License-Identifier: Apache-2.0
"""Random OrinInt4Gemm nodes and what it takes to run one on the kernels."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from op_cases import Case, named
from orinkit import int4
from orinkit.engines.kernels import KernelLibrary
from orinkit.ops import OPS

MODEL_SHAPES = {
    "qwen3.5-0.8b": ((7168, 1024), (1024, 3584), (8192, 1024), (1024, 2048)),
    "qwen3.5-2b": ((12288, 2048), (2048, 6144), (8192, 2048), (2048, 2048)),
    "qwen3.5-4b": ((18432, 2560), (2560, 9216), (12288, 2560), (2560, 4096)),
    "qwen3.5-9b": ((24576, 4096), (4096, 12288), (12288, 4096), (4096, 4096)),
    "qwen3-8b": ((24576, 4096), (6144, 4096)),
    "llama-3.1-8b": ((28672, 4096), (4096, 14336)),
}
"""N x K of the matrices of a layer."""

WISHES = ("tile", "splits", "warps_n", "warps_k", "stripes", "blocks")


def gemm(
    tokens: int,
    n: int,
    k: int,
    group: int = 128,
    options: str = "",
    rows: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Case:
    """`options`: letters of zeros, norm, bias, residual, swiglu, columns and float32 output (f); `rows` picks rows."""
    rng = np.random.default_rng((seed, tokens, n, k))
    width = n // 2 if "s" in options else n
    out_rows = tokens if rows is None else len(rows)

    def normal(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return (rng.standard_normal(shape, np.float32) * np.float32(scale)).astype(np.float32)

    inputs = (
        normal(tokens, k).astype(np.float16),
        rng.integers(-128, 128, (n, k // 2)).astype(np.int8),
        normal(n, k // group, scale=0.3 * k**-0.5).astype(np.float16),
        int4.pack(rng.integers(0, 16, (n, k // group)).astype(np.uint8)) if "z" in options else None,
        1 + normal(k, scale=0.1) if "n" in options else None,
        normal(n).astype(np.float16) if "b" in options else None,
        normal(out_rows, width).astype(np.float16) if "r" in options else None,
        None if rows is None else np.array(rows, np.int32),
        rng.permutation(k).astype(np.int32) if "c" in options else None,
    )
    attributes = {
        "n": n,
        "k": k,
        "group_size": group,
        "activation": "swiglu" if "s" in options else "none",
        "norm_eps": 1e-6,
        "float32_output": int("f" in options),
    }
    return Case(f"{tokens}x{n}x{k}-g{group}-{options}", "OrinInt4Gemm", inputs, attributes)


def expected(case: Case) -> NDArray[Any]:
    """What the reference gives."""
    (y,) = OPS[case.op_type].compute(case.inputs, case.attributes)
    return np.asarray(y)


class OnDevice:
    """A node with its arrays in device memory; what it may not read before writing holds 0xFF."""

    def __init__(self, case: Case, kernels: KernelLibrary, out: NDArray[Any], **wishes: int) -> None:
        import gpu

        arrays = named(case)
        weight, scales, zeros = int4.to_kernel_layout(arrays["weight"], arrays["scales"], arrays.get("zeros"))
        arrays.update(weight=weight, scales=scales)
        if zeros is not None:
            arrays["zeros"] = zeros
        self._poison = np.full(out.nbytes, 0xFF, np.uint8).view(out.dtype).reshape(out.shape)
        self._kernels = kernels
        self._arrays = {name: gpu.Array(array) for name, array in arrays.items()}
        self.y = gpu.Array(self._poison)
        self._arguments = self._fill(case, len(out), wishes)
        self._workspace = gpu.Array(np.full(kernels.query("int4_gemm_workspace", self._arguments), 0xFF, np.uint8))
        self.semaphores = gpu.Array(np.zeros(kernels.query("int4_gemm_semaphores", self._arguments) // 4, np.int32))
        self._arguments.workspace = self._workspace.pointer
        self._arguments.semaphores = self.semaphores.pointer

    def _fill(self, case: Case, tokens: int, wishes: dict[str, int]) -> ctypes.Structure:
        names = ("x", "weight", "scales", "zeros", "norm", "bias", "residual", "rows", "columns")
        pointers = {name: self._arrays[name].pointer if name in self._arrays else None for name in names}
        attributes = {name: case.attributes[name] for name in ("n", "k", "group_size", "float32_output", "norm_eps")}
        return self._kernels.arguments(
            "int4_gemm",
            **pointers,
            **attributes,
            y=self.y.pointer,
            workspace=None,
            semaphores=None,
            beside=None,
            tokens=tokens,
            swiglu=int(case.attributes["activation"] == "swiglu"),
            **{wish: wishes.get(wish, 0) for wish in WISHES},
        )

    def put_beside(self, weight: NDArray[Any]) -> None:
        """A product with `weight`, float16 [n, k], of the same normed token in the same launch."""
        import gpu

        a = self._arguments
        fields = {name: None if kind == "P" else 0 for name, kind in self._kernels.fields("linear").items()}
        self.beside_y = gpu.Array(np.full((1, len(weight)), np.nan, np.float16))
        self._arrays["beside"] = gpu.Array(weight)
        fields |= {"x": a.x, "norm": a.norm, "norm_eps": a.norm_eps, "k": a.k, "n": len(weight), "bits": 16}
        fields |= {"tokens": 1, "outputs": 1, "weight": self._arrays["beside"].pointer, "y": self.beside_y.pointer}
        self._beside = self._kernels.arguments("linear", **fields)
        a.beside = ctypes.addressof(self._beside)

    @property
    def takes_beside(self) -> bool:
        return bool(self._kernels.query("int4_gemm_takes_beside", self._arguments))

    def launch(self, stream: Any) -> None:
        self._kernels.launch("int4_gemm", self._arguments, stream.handle)

    def read_from(self, other: OnDevice) -> None:
        """Take what another product computes for x."""
        self._arguments.x = other.y.pointer

    def poison(self) -> None:
        """An output that no launch has written."""
        self.y.write(self._poison)

    def result(self, stream: Any) -> NDArray[Any]:
        """One launch into a poisoned output."""
        self.poison()
        self.launch(stream)
        stream.sync()
        return np.asarray(self.y.read())

    def replayed(self, stream: Any) -> NDArray[Any]:
        """The same by a capture that is launched twice."""
        self.poison()
        replay = stream.capture(lambda: self.launch(stream))
        replay()
        replay()
        stream.sync()
        return np.asarray(self.y.read())
