# SPDX-License-Identifier: Apache-2.0
"""Runtime, engine and context, with the rules that TensorRT documents:

    profile before shapes, shapes within it, every input shaped, every input and output bound before a step
    with USER_MANAGED memory: given by the caller, aligned to 256 bytes, as large as the engine says
    auxiliary streams, where the plan wants them: as many, none twice, none the main one
    a step before the first capture, so that nothing is initialised under it
    after a capture a context keeps its profile and its shapes

The last is where others broke (NVIDIA/TensorRT-Edge-LLM issue 50): a context that was captured on one profile and is
then switched ends with CUDA error 700 in `shapeChangeHelper`, and so does everything after it.
"""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

from .building import MAGIC, Shape
from .enums import DataType, ErrorCodeTRT, ExecutionContextAllocationStrategy, SeekPosition
from .interfaces import IErrorRecorder, ILogger, IPluginRegistry
from .parsing import dtype, load, sizes
from .settings import SETTINGS, VERSION

if TYPE_CHECKING:
    import onnx_ir as ir

device: Any = importlib.import_module(f"{__package__}.{'gpu' if SETTINGS.get('execute') == 'cuda' else 'host'}")
ARENA_BYTES = 65536
ALIGNMENT = 256
_OLDEST_STREAM = 1


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self.error_recorder: IErrorRecorder | None = None

    def get_plugin_registry(self) -> IPluginRegistry:
        return IPluginRegistry(self.logger)

    def deserialize_cuda_engine(self, source: Any) -> ICudaEngine | None:
        content = _read(source) if hasattr(source, "seek") and not hasattr(source, "find") else bytes(source[:])
        try:
            if not content.startswith(MAGIC):
                raise ValueError("Magic tag does not match")
            header, graph = content[len(MAGIC) :].split(b"\n", 1)
            found = json.loads(header)
            if (found["version"], found["sm"]) != (VERSION, int(SETTINGS.get("sm", 87))):
                raise ValueError(f"The engine plan file is for TensorRT {found['version']}, this is {VERSION}")
            return ICudaEngine(self, found, load(graph))
        except Exception as error:  # noqa: BLE001  (whatever a damaged plan brings about)
            self.logger.log(ILogger.ERROR, f"deserializeCudaEngine: {error}")
            return None


class ICudaEngine:
    def __init__(self, runtime: Runtime, header: dict[str, Any], model: ir.Model) -> None:
        self.error_recorder = runtime.error_recorder
        self.executor = device.executor(model)
        self.num_aux_streams: int = header["aux"]
        self.device_memory_size_v2 = ARENA_BYTES
        self.profiles = [
            {name: [tuple(shape) for shape in shapes] for name, shapes in profile.items()}
            for profile in header["profiles"]
        ]
        self._values = {str(value.name): value for value in (*model.graph.inputs, *model.graph.outputs)}
        self.inputs = [str(value.name) for value in model.graph.inputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._values)[index]

    def get_tensor_shape(self, name: str) -> Shape:
        return sizes(self._values[name])

    def get_tensor_dtype(self, name: str) -> DataType:
        return dtype(self._values[name])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        return self.profiles[profile_index][name]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        return None if device.lost() else IExecutionContext(self, strategy)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self.engine = engine
        self.error_recorder = engine.error_recorder
        self._is_user_managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._memory = (0, 0)
        self._profile = 0
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._aux: tuple[int, ...] = ()
        self._warm: set[tuple[tuple[str, Shape], ...]] = set()
        self._captured_profile: int | None = None

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = memory, size

    def set_aux_streams(self, aux_streams: list[int]) -> None:
        self._aux = tuple(aux_streams)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:  # noqa: ARG002
        if profile_index >= len(self.engine.profiles):
            raise RuntimeError("Error in set optimization profile async.")
        if profile_index != self._profile:
            self._profile, self._shapes = profile_index, {}
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        if self._captured_profile is not None and self._captured_profile == self._profile:
            return self._fail(ErrorCodeTRT.INVALID_STATE, f"{name}: the context was captured with other shapes")
        least, _, most = self.engine.profiles[self._profile][name]
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            return self._fail(ErrorCodeTRT.INVALID_ARGUMENT, f"{name}: {shape} is outside of profile {self._profile}")
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % ALIGNMENT:
            return self._fail(ErrorCodeTRT.INVALID_ARGUMENT, f"{name}: the address is not aligned")
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return sorted(set(self.engine.profiles[self._profile]) - set(self._shapes))

    def execute_async_v3(self, stream_handle: int) -> bool:
        if device.lost():
            return self._fail(ErrorCodeTRT.FAILED_EXECUTION, f"Cuda Runtime ({device.lost()})")
        problem = self._problem(stream_handle)
        if problem is not None:
            return self._fail(ErrorCodeTRT.INVALID_STATE, problem)
        sizes = {name: shape[0] for name, shape in self._shapes.items()}
        if device.is_capturing(stream_handle):
            if tuple(sorted(self._shapes.items())) not in self._warm:
                device.spoil_capture(stream_handle)
                return self._fail(ErrorCodeTRT.FAILED_EXECUTION, "operation not permitted when stream is capturing")
            self._captured_profile = self._profile
        elif self._captured_profile not in (None, self._profile):
            device.lose()
            return self._fail(
                ErrorCodeTRT.FAILED_EXECUTION,
                "[checkMacros.cpp::catchCudaError::278] Error Code 1: Cuda Runtime (an illegal memory access was "
                "encountered) in shapeChangeHelper",
            )
        else:
            self._warm.add(tuple(sorted(self._shapes.items())))
        return self._enqueue(stream_handle, dict(self._addresses), sizes, self._memory)

    def _enqueue(self, stream: int, addresses: dict[str, int], sizes: dict[str, int], memory: tuple[int, int]) -> bool:
        most = {name: largest[0] for name, (_, _, largest) in self.engine.profiles[self._profile].items()}

        def work() -> None:
            device.scratch(*memory, stream)
            self.engine.executor.run(stream, addresses, sizes, most)

        return bool(device.enqueue(stream, work))

    def _problem(self, stream: int) -> str | None:
        unbound = {self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)}
        unbound -= set(self._addresses)
        address, size = self._memory
        if unbound:
            return f"Address is not set for {min(unbound)}"
        if self.infer_shapes():
            return f"the shape of {self.infer_shapes()[0]} is not set"
        if self._is_user_managed and (not address or address % ALIGNMENT or size < self.engine.device_memory_size_v2):
            return f"device memory: expected {self.engine.device_memory_size_v2} bytes, aligned to {ALIGNMENT}"
        streams = (stream, *self._aux)
        if len(self._aux) != self.engine.num_aux_streams or len(set(streams)) != len(streams):
            return f"expected {self.engine.num_aux_streams} auxiliary streams of their own, found {self._aux}"
        if min(streams) < _OLDEST_STREAM:
            return "the default stream synchronises the device"
        return None

    def _fail(self, code: ErrorCodeTRT, text: str) -> bool:
        if self.error_recorder is not None:
            self.error_recorder.report_error(code, text)
        return False


def _read(reader: Any) -> bytes:
    """All that a stream reader gives, as TensorRT asks for it: a head, then the rest."""
    reader.seek(0, SeekPosition.SET)
    parts = [bytes(reader.read(len(MAGIC), 0))]
    while part := bytes(reader.read(1 << 16, 0)):
        parts.append(part)
    return b"".join(parts)
