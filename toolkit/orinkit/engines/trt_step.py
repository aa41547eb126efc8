# SPDX-License-Identifier: Apache-2.0
"""A step of a plan with every address fixed, and the context that gives its logits to the host.

An execution context of TensorRT is made for one profile, gets its scratch memory from the engine, and is never switched
to another profile. Sizes inside of the profile may vary from step to step until a capture is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import tensorrt as trt

from orinkit.engines.base import Float32, Profile, StepInputs
from orinkit.engines.bound import StepArrays, shape_of
from orinkit.engines.launches import StepShape
from orinkit.engines.trt_library import exceptions_told, new_streams
from orinkit.errors import DeviceError, EngineError

if TYPE_CHECKING:
    from orinkit.engines.trt import TrtCaches, TrtEngine

LOGITS = "logits"


class TrtStep:
    """One execution context, bound to all its addresses for life."""

    def __init__(self, engine: TrtEngine, profile: Profile, addresses: Mapping[str, int]) -> None:
        """`addresses` of every input and output. Raises EngineError: TensorRT refuses one."""
        self._engine, self._stream = engine, engine.gpu.stream
        self._sizes: dict[str, int] = {}
        index = engine.profile_index(profile)
        plan: trt.ICudaEngine = engine.engine
        context: trt.IExecutionContext = plan.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        engine.check(context is not None, "making a context")
        context.error_recorder = engine.errors
        context.set_device_memory(engine.arena.address, engine.arena.nbytes)
        with exceptions_told(engine.log, f"taking profile {index}"):
            context.set_optimization_profile_async(index, self._stream)
        engine.gpu.synchronise()
        if plan.num_aux_streams:
            context.set_aux_streams(new_streams(plan.num_aux_streams))
        for name, address in addresses.items():
            engine.check(context.set_tensor_address(name, address), f"binding {name}")
        self._context: trt.IExecutionContext = context

    def enqueue(self, shape: StepShape) -> None:
        """Enqueue a step whose inputs lie in device memory. Raises EngineError; the engine may be lost by it."""
        self._engine.check_sound()
        if shape.max_step > 1 and shape.tokens <= shape.sequences:
            raise EngineError(
                f"expected at most one token of each sequence in a step of {shape.tokens} tokens and {shape.sequences} "
                f"sequences, by which the plugins go, found {shape.max_step}; pad the tokens too"
            )
        self._resize(shape)
        self._engine.check(self._context.execute_async_v3(self._stream), "a step")

    def _resize(self, shape: StepShape) -> None:
        """Tell TensorRT the sizes if they are others than before; after a capture it would refuse them."""
        sequences = shape.sequences
        sizes = {"input_ids": shape.tokens, "cu_seqlens": sequences + 1, "logit_rows": shape.logit_rows}
        sizes |= {"past_lens": sequences, "slots": sequences}
        if sizes == self._sizes:
            return
        for name, size in sizes.items():
            self._engine.check(self._context.set_input_shape(name, (size,)), f"setting {name} to {size}")
        with exceptions_told(self._engine.log, f"inferring shapes for {sizes}"):
            missing = self._context.infer_shapes()
        self._engine.check(not missing, f"inferring shapes without {', '.join(missing)}")
        self._sizes = sizes


class TrtContext:
    """One profile and one set of caches, whose logits go to the host."""

    def __init__(self, engine: TrtEngine, profile: Profile, caches: TrtCaches) -> None:
        self._engine, self._gpu, self._profile, self._caches = engine, engine.gpu, profile, caches
        rows = profile.logit_rows or profile.sequences
        self._inputs = StepArrays(engine.gpu, profile)
        self._logits = engine.gpu.allocate(4 * rows * engine.vocab)
        self._received = engine.gpu.pinned((rows, engine.vocab), "float32")
        self._step = engine.bind(profile, caches, self._inputs.addresses | {LOGITS: self._logits.address})

    @property
    def profile(self) -> Profile:
        return self._profile

    def run(self, inputs: StepInputs) -> Float32:
        """One step, enqueued by TensorRT."""
        shape = shape_of(inputs)
        self._check(shape, inputs)
        try:
            self._inputs.send(inputs)
            self._step.enqueue(shape)
            nbytes = 4 * shape.logit_rows * self._engine.vocab
            self._gpu.receive(self._received, self._logits.address, nbytes)
            self._gpu.synchronise()
        except DeviceError:
            self._engine.is_faulted = True
            raise
        self._engine.check(True, "a step")
        logits: Float32 = self._received.array[: shape.logit_rows]
        return logits

    def _check(self, shape: StepShape, inputs: StepInputs) -> None:
        """Refuse what is beyond the profile or the caches before any state has changed."""
        self._engine.check_sound()
        profile, caches = self._profile, self._caches
        tokens, sequences, rows = shape.tokens, shape.sequences, shape.logit_rows
        if tokens > profile.tokens or sequences > profile.sequences or rows > len(self._received.array):
            raise EngineError(f"expected a step within {profile}, found {tokens} tokens of {sequences} sequences")
        if not tokens or not sequences or not rows:
            raise EngineError(f"expected no empty input, found {tokens} tokens, {sequences} sequences, {rows} rows")
        if shape.max_length > caches.capacity or int(inputs.slots.max()) >= caches.slots:
            raise EngineError(
                f"expected slots below {caches.slots} of at most {caches.capacity} tokens, found {shape.max_length} "
                f"tokens in slot {inputs.slots.max()}"
            )
