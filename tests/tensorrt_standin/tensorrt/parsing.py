# SPDX-License-Identifier: Apache-2.0
"""The parser: only nodes that a plugin of the registry takes, in the form in which every release takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .building import INetworkDefinition, ITensor
from .enums import DataType
from .interfaces import ILogger, IPluginRegistry
from .settings import opset_max

if TYPE_CHECKING:
    import onnx_ir as ir

_DTYPES = {"FLOAT": DataType.FLOAT, "FLOAT16": DataType.HALF, "INT8": DataType.INT8, "INT32": DataType.INT32}


class ParserError:
    def __init__(self, description: str, node: ir.Node | None = None) -> None:
        self._description, self._node = description, node

    def desc(self) -> str:
        return self._description

    def node_name(self) -> str:
        return str(self._node.name) if self._node else ""

    def node_operator(self) -> str:
        return self._node.op_type if self._node else ""


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._registry = network, IPluginRegistry(logger)
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:  # noqa: ARG002
        try:
            parsed = load(bytes(model))
        except Exception as error:  # noqa: BLE001  (whatever protobuf raises)
            self._errors.append(ParserError(f"Failed to parse ONNX model: {error}"))
            return False
        self._errors += self._problems(parsed)
        if self._errors:
            return False
        self._network.graph = bytes(model)
        self._network.inputs = [_tensor(value) for value in parsed.graph.inputs]
        self._network.outputs = [_tensor(value) for value in parsed.graph.outputs]
        return True

    def _problems(self, model: ir.Model) -> Iterator[ParserError]:
        opset = model.opset_imports.get("", 0)
        if opset > opset_max():
            yield ParserError(f"opset {opset} is newer than {opset_max()}")
        if model.functions:
            yield ParserError("local functions shadow plugins in some releases and not in others")
        if model.graph.initializers:
            yield ParserError("the plan would hold weights")
        for node in model.graph:
            wanted = [node.attributes.get(name) for name in ("plugin_version", "plugin_namespace")]
            version, namespace = (attribute.value if attribute else "" for attribute in wanted)
            if self._registry.get_creator(node.op_type, version or "1", namespace) is None:
                yield ParserError(f"no importer registered for op: {node.op_type}", node)


def load(model: bytes) -> ir.Model:
    """The model of these bytes."""
    import onnx  # here, because the builder's process also starts only to tell what machine this is
    import onnx_ir as ir

    return ir.serde.deserialize_model(onnx.ModelProto.FromString(model))


def sizes(value: ir.Value) -> tuple[int, ...]:
    """The shape as TensorRT tells it: -1 = varies."""
    return tuple(size if isinstance(size, int) else -1 for size in value.shape or ())


def dtype(value: ir.Value) -> DataType:
    return _DTYPES[value.dtype.name if value.dtype else ""]


def _tensor(value: ir.Value) -> ITensor:
    return ITensor(str(value.name), sizes(value), dtype(value))
