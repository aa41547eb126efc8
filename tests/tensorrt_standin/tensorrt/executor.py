# SPDX-License-Identifier: Apache-2.0
"""A deploy graph computed by ONNX Runtime over memory of the stand-in for CUDA; `gpu.py` has it by kernels."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from cuda.bindings import runtime as rt
from numpy.typing import NDArray

from orinkit import int4
from orinkit.engines.base import Profile, StepInputs
from orinkit.engines.deploy import PACKED
from orinkit.engines.ort import OrtCaches, OrtContext
from orinkit.errors import EngineError
from orinkit_export import bodies

STEP_INPUTS = ("input_ids", "cu_seqlens", "past_lens", "slots", "logit_rows")
STATES = ("kv_", "conv_", "rec_")
PLUGIN_ATTRIBUTES = ("plugin_namespace", "plugin_version")
_SESSIONS: dict[str, onnxruntime.InferenceSession] = {}
"""By what they are made of."""
_PARTS = {"OrinInt4Gemm": slice(1, 4), "OrinEmbedding": slice(1, 3)}
"""Inputs that are in the kernel layout where an op has INT4 groups: weight, scales, zeros."""


class Executor:
    """One graph. Its weights are read from the bound addresses at the first step, and kept."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._session: onnxruntime.InferenceSession | None = None

    def run(self, _: int, addresses: Mapping[str, int], sizes: Mapping[str, int], __: Mapping[str, int]) -> None:
        """One step; it runs at once, whatever its stream and the largest sizes of its profile.

        Raises FaultError: memory that is not there, or a step that no kernel could run.
        """
        if self._session is None:
            self._session = self._make(addresses)
        values = self._model.graph.inputs
        states = {str(v.name): _array(addresses[str(v.name)], v) for v in values if str(v.name).startswith(STATES)}
        for name in states:
            if addresses[f"{name}_out"] != addresses[name]:
                raise AssertionError(f"{name}: expected its output at the address of its input")
        inputs = {
            str(value.name): _array(addresses[str(value.name)], value, (sizes[str(value.name)],)).copy()
            for value in values
            if value.name in STEP_INPUTS
        }
        capacity = max((array.shape[3] for name, array in states.items() if name.startswith("kv_")), default=1 << 20)
        caches = OrtCaches(states, len(next(iter(states.values()))), capacity, capacity)
        profile = Profile("any", sizes["input_ids"], sizes["slots"])
        try:
            logits = OrtContext(self._session, profile, caches).run(StepInputs(**inputs))
        except EngineError as error:
            raise rt.FaultError(rt.cudaError_t.cudaErrorIllegalAddress) from error
        rt.DEVICE.check(addresses["logits"], logits.nbytes)
        ctypes.memmove(addresses["logits"], np.ascontiguousarray(logits).ctypes.data, logits.nbytes)

    def _make(self, addresses: Mapping[str, int]) -> onnxruntime.InferenceSession:
        """The graph with function bodies, weights inside, slots of states open again; made once in a process."""
        model = self._model.clone()
        graph = model.graph
        weights = [v for v in graph.inputs if v.name not in STEP_INPUTS and not str(v.name).startswith(STATES)]
        arrays = {str(value.name): _array(addresses[str(value.name)], value).copy() for value in weights}
        content = b"".join(array.tobytes() for array in arrays.values())
        key = hashlib.sha256(content + ir.to_proto(model).SerializeToString()).hexdigest()
        if key not in _SESSIONS:
            _SESSIONS[key] = self._finish(model, arrays, weights)
        return _SESSIONS[key]

    def _finish(
        self, model: ir.Model, arrays: dict[str, NDArray[Any]], weights: list[ir.Value]
    ) -> onnxruntime.InferenceSession:
        graph = model.graph
        for node in graph:
            if node.op_type in _PARTS and node.attributes["group_size"].value:
                _unpack(node, arrays)
        for value in weights:
            graph.inputs.remove(value)
            value.const_value = ir.tensor(arrays[str(value.name)], name=value.name)
            graph.register_initializer(value)
        for value in (*graph.inputs, *graph.outputs):
            if str(value.name).startswith(STATES) and value.shape is not None:
                value.shape = ir.Shape(["S", *list(value.shape)[1:]])
        for index, node in enumerate(graph):
            attributes = {k: a.value for k, a in node.attributes.items() if k not in PLUGIN_ATTRIBUTES}
            node.overload = f"v{index}"
            present = [value is not None for value in node.inputs]
            function = bodies.function(node.op_type, node.overload, attributes, present)
            model.functions[function.identifier()] = function
        model.opset_imports[bodies.MICROSOFT] = 1
        model.ir_version = 10
        return _session(ir.to_proto(model).SerializeToString())


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _unpack(node: ir.Node, arrays: dict[str, NDArray[Any]]) -> None:
    """The canonical layout of one node's INT4 matrix, unless another node has had it unpacked."""
    names = [str(value.name) if value is not None else None for value in node.inputs[_PARTS[node.op_type]]]
    weight, scales, zeros = (*names, None, None)[:3]
    key = f"{weight} is canonical"
    if key in arrays or weight is None or scales is None:
        return
    if not weight.endswith(PACKED):
        raise AssertionError(f"{weight}: expected a name that tells of the kernel layout")
    found = int4.from_kernel_layout(arrays[weight], arrays[scales], arrays[zeros] if zeros else None)
    arrays[key] = found[0]
    for name, array in zip((weight, scales, zeros), found, strict=True):
        if name is not None and array is not None:
            arrays[name] = array


def _array(address: int, value: ir.Value, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """The memory at an address as an array, which writes through."""
    sizes = shape or tuple(int(size) for size in value.shape or ())  # type: ignore[arg-type]
    dtype = value.dtype.numpy() if value.dtype else np.dtype(np.int8)
    nbytes = int(np.prod(sizes)) * dtype.itemsize
    rt.DEVICE.check(address, nbytes)
    raw: Any = (ctypes.c_byte * nbytes).from_address(address)
    return np.frombuffer(raw, dtype).reshape(sizes)
