# SPDX-License-Identifier: Apache-2.0
"""The `tensorrt` engine: the plan that `orin-run build` made on this board, TensorRT 10.3 to 11.x.

One context per profile, made once and never switched: switching after a capture is what breaks other runners. Contexts
never run at the same time, so they share one arena (their scratch memory is ours, not TensorRT's). Weights and states
are network inputs: every context reads the same weights, and a state is updated where it lies, because its input and
its output are bound to one address.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorrt as trt

from orinkit.bundle import Bundle
from orinkit.bundle.manifest import DATA, DEPLOY_WEIGHTS, KERNELS
from orinkit.engines import deploy, plan_key, plans
from orinkit.engines.base import Caches, Context, Limits, Pipeline, Profile
from orinkit.engines.bound import STEP_INPUTS
from orinkit.engines.cuda_pipeline import CudaPipeline
from orinkit.engines.gpu import Gpu
from orinkit.engines.kernels import KernelLibrary
from orinkit.engines.slabs import Slabs
from orinkit.engines.spare import DeviceSpare, SlotState, state_sizes
from orinkit.engines.trt_library import ErrorRecorder, Log, load_plugins, read_machine
from orinkit.engines.trt_plan import PlanFile
from orinkit.engines.trt_step import LOGITS, TrtContext, TrtStep
from orinkit.engines.weights import LoadedWeights
from orinkit.errors import EngineError, PlanError

PREFILL = 0
"""The plan's profile of chunks of prompts; the others are of decode steps."""
OUT = "_out"
_STATES = ("kv_", "conv_", "rec_")
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32"}
"""NumPy's names of TensorRT's types, by the names that those have in every release."""


class TrtCaches:
    """Every state as one array [S, ...] in device memory; contents mean nothing where no sequence has been."""

    def __init__(
        self, gpu: Gpu, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], capacity: int
    ) -> None:
        self.sizes = state_sizes(shapes, dtypes)
        """Bytes of each state of all slots."""
        self._memory = Slabs(gpu, self.sizes.values())
        self._gpu, self._capacity = gpu, capacity
        self._slots = next(iter(shapes.values()))[0]
        self.addresses = {name: self._memory.take(size) for name, size in self.sizes.items()}
        self._states = {n: SlotState.of(self.addresses[n], shape, dtypes[n]) for n, shape in shapes.items()}

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def spare(self, count: int) -> DeviceSpare:
        return DeviceSpare(self._gpu, self._states, count, self._capacity)


class TrtEngine:
    """A deserialised plan with its weights in device memory."""

    name = "tensorrt"
    can_capture = True

    def __init__(self, bundle: Bundle, root: Path = Path("/")) -> None:
        """Find the plan of `bundle` for this machine, load plugins, plan and weights. `root` is the file system's.

        Raises BundleError, PlanError, EngineError.
        """
        self.gpu = Gpu()
        self.log, self.errors = Log(), ErrorRecorder()
        origin = plans.origin_of(bundle, read_machine(root))
        path = plans.find(plans.folder_of(bundle.folder), origin, plan_key.read())
        stored = deploy.decode(bundle.read(DEPLOY_WEIGHTS))
        self._runtime: trt.Runtime = trt.Runtime(self.log)
        self._runtime.error_recorder = self.errors
        if bundle.plugins is not None:
            load_plugins(self._runtime.get_plugin_registry(), bundle.plugins, self.log)
        self._plan = PlanFile(path)
        self.engine: trt.ICudaEngine = self._plan.deserialise(self._runtime, self.log)
        self._check_inputs(stored, path)
        self._weights = LoadedWeights(self.gpu, stored, bundle.path(DATA))
        self.arena = self.gpu.allocate(max(1, self.engine.device_memory_size_v2))
        self.is_faulted = False

    @property
    def weight_bytes(self) -> int:
        return self._weights.nbytes

    @property
    def vocab(self) -> int:
        """Width of the logits."""
        return int(tuple(self.engine.get_tensor_shape(LOGITS))[1])

    def caches(self, slots: int, capacity: int, chunk: int) -> TrtCaches:
        """Allocate the states, whose sizes the plan fixes. Raises EngineError: another size is asked for."""
        shapes = {name: self.shape(name) for name in self._states()}
        found = next(iter(shapes.values()))[0]
        longest = self.limits(PREFILL).tokens
        if (slots, chunk) != (found, longest):
            raise EngineError(
                f"expected {found} slots and chunks of {longest} tokens, for which the plan was built, found {slots} "
                f"and {chunk}; set them in the recipe and export again"
            )
        return TrtCaches(self.gpu, shapes, {name: self.dtype(name) for name in shapes}, capacity)

    def context(self, profile: Profile, caches: Caches) -> Context:
        if not isinstance(caches, TrtCaches):
            raise EngineError("expected caches made by this engine; call caches() first")
        return TrtContext(self, profile, caches)

    def bind(self, profile: Profile, caches: TrtCaches, addresses: Mapping[str, int]) -> TrtStep:
        """The step of a profile with inputs and logits at `addresses`. Raises EngineError."""
        return TrtStep(self, profile, {**self.addresses(caches), **addresses})

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of an input or output; -1 = varies."""
        return tuple(self.engine.get_tensor_shape(name))

    def dtype(self, name: str) -> str:
        """NumPy's name of an input's or output's type. Raises PlanError: a type that orinkit never uses."""
        found = self.engine.get_tensor_dtype(name).name
        if found not in _DTYPES:
            raise PlanError(f"{name}: expected one of {sorted(_DTYPES)}, found {found}; build the plan again")
        return _DTYPES[found]

    def limits(self, index: int) -> Profile:
        """The largest step of a profile of the plan."""
        most = {}
        for name in STEP_INPUTS:
            _, _, (size,) = self.engine.get_tensor_profile_shape(name, index)
            most[name] = int(size)
        return Profile(str(index), most["input_ids"], most["slots"], most["logit_rows"])

    def profile_index(self, profile: Profile) -> int:
        """The smallest profile of the plan that holds `profile`; one of decode steps, which have no more tokens than
        sequences, holds nothing else. Raises EngineError: none does."""
        rows, is_prefill = profile.logit_rows or profile.sequences, profile.tokens > profile.sequences
        fitting = []
        for index in range(self.engine.num_optimization_profiles):
            most = self.limits(index)
            is_large = most.tokens >= profile.tokens and most.sequences >= profile.sequences and most.logit_rows >= rows
            if is_large and not (is_prefill and index != PREFILL):
                fitting.append((most.tokens, index))
        if not fitting:
            raise EngineError(f"expected a profile of the plan that holds {profile}, found none; build the plan again")
        return min(fitting)[1]

    def addresses(self, caches: TrtCaches) -> dict[str, int]:
        """What every context binds: weights, and each state as input and as output."""
        outputs = {f"{name}{OUT}": address for name, address in caches.addresses.items()}
        return self._weights.addresses | caches.addresses | outputs

    def check_sound(self) -> None:
        """Raises EngineError: a fault has ended the engine."""
        if self.is_faulted:
            raise EngineError("step refused: the engine was lost by an earlier fault; start again")

    def check(self, succeeded: bool, doing: str) -> None:
        """Raises EngineError where TensorRT refused or reported an error; a fatal one ends the engine."""
        reported = self.errors.describe()
        if succeeded and not reported:
            return
        self.is_faulted = self.is_faulted or self.errors.is_fatal
        self.errors.clear()
        advice = "; the engine is lost: start again" if self.is_faulted else ""
        raise EngineError(f"{doing} failed: {reported or self.log.reason()}{advice}")

    def _names(self) -> list[str]:
        return [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]

    def _states(self) -> list[str]:
        return [name for name in self._names() if name.startswith(_STATES) and not name.endswith(OUT)]

    def _check_inputs(self, stored: deploy.DeployWeights, path: Path) -> None:
        """The plan's inputs and outputs are those of the contract. Raises PlanError."""
        states = self._states()
        weights = {weight.name: weight for weight in stored.weights}
        expected = {*STEP_INPUTS, *states, *(f"{name}{OUT}" for name in states), *weights, LOGITS}
        different = expected ^ set(self._names())
        if different:
            raise PlanError(
                f"{path}: expected the inputs and outputs of the bundle, found {min(different)!r} to differ"
            )
        for name, weight in weights.items():
            found = f"{self.dtype(name)} {self.shape(name)}"
            if found != f"{weight.dtype} {weight.shape}":
                raise PlanError(f"{path}: {name}: expected {weight.dtype} {weight.shape}, found {found}")


class CapturingTrtEngine(TrtEngine):
    """The same with the bundle's kernel library, by which tokens are chosen on the device in captured steps."""

    def __init__(self, bundle: Bundle, root: Path = Path("/")) -> None:
        """As TrtEngine. Raises EngineError too: the kernel library cannot be loaded."""
        super().__init__(bundle, root)
        self.library = KernelLibrary(bundle.path(KERNELS))

    def pipeline(self, slots: int, capacity: int, chunk: int, limits: Limits) -> Pipeline:
        """Caches, contexts and captures, in this order. Raises EngineError."""
        return CudaPipeline(self, self.caches(slots, capacity, chunk), chunk, limits)


def open_plan(bundle: Bundle, root: Path = Path("/")) -> TrtEngine:
    """The engine of a bundle's plan, with captures where the bundle brings the kernels for them.

    Raises BundleError, PlanError, EngineError.
    """
    has_kernels = any(entry.path == KERNELS for entry in bundle.manifest.files)
    return (CapturingTrtEngine if has_kernels else TrtEngine)(bundle, root)
