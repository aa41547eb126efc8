# SPDX-License-Identifier: Apache-2.0
"""liborin_kernels by ctypes; the only module that loads it.

Each launcher takes one struct and a stream. The library itself says what the struct holds (`orin_<op>_fields`), so no
field is written down twice.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orinkit.errors import EngineError

_KINDS = {
    "P": ctypes.c_void_p,
    "I": ctypes.c_int32,
    "U": ctypes.c_uint64,
    "F": ctypes.c_float,
    "D": ctypes.c_double,
}


@dataclass(frozen=True)
class Device:
    """What the kernel library knows of the GPU."""

    arch: int
    """Compute capability times ten."""
    sm_count: int
    l2_bytes: int
    shared_bytes: int
    """Most shared memory of one block."""


class KernelLibrary:
    """The launchers of one library, for the device of the CUDA context that is current when it is loaded."""

    def __init__(self, path: Path) -> None:
        """Load the library and its device code. Raises EngineError."""
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise EngineError(f"{path}: cannot be loaded ({error}); build it with: make kernels") from None
        self._library.orin_error.restype = ctypes.c_char_p
        self._structs: dict[str, type[ctypes.Structure]] = {}
        self._check("orin_init", self._library.orin_init())

    @property
    def device(self) -> Device:
        values = (ctypes.c_int * 4)()
        self._library.orin_device(values)
        return Device(*values)

    def fields(self, launcher: str) -> dict[str, str]:
        """Names of a launcher's struct with their kinds, the keys of `_KINDS`. Raises EngineError."""
        describe = getattr(self._library, f"orin_{launcher}_fields", None)
        if describe is None:
            raise EngineError(f"the kernel library has no launcher {launcher!r}; build it again with: make kernels")
        describe.restype = ctypes.c_char_p
        return {name: kind for kind, name in (line.split() for line in describe().decode().splitlines())}

    def arguments(self, launcher: str, **values: int | float | None) -> ctypes.Structure:
        """The struct of a launcher: addresses (None = absent), integers and floats by name; all must be given."""
        struct = self._struct(launcher)
        names = {name for name, *_ in struct._fields_}
        if names != set(values):
            raise EngineError(f"{launcher}: expected the fields {sorted(names)}, found {sorted(values)}")
        return struct(**values)

    def launch(self, launcher: str, arguments: ctypes.Structure, stream: int) -> None:
        """Enqueue on `stream` (a CUstream as an integer). Raises EngineError."""
        self.bound(launcher, arguments)(stream)

    def bound(self, launcher: str, arguments: ctypes.Structure) -> Callable[[int], None]:
        """`launch` of these arguments, whatever they hold by then, as a function of the stream."""
        call, at = getattr(self._library, f"orin_{launcher}"), ctypes.byref(arguments)

        def enqueue(stream: int) -> None:
            code = call(at, ctypes.c_void_p(stream))
            if code:
                self._check(launcher, code)

        return enqueue

    def query(self, function: str, arguments: ctypes.Structure) -> int:
        """A size that `orin_<function>(struct)` computes on the host, such as workspace bytes."""
        return self.bound_query(function, arguments)()

    def bound_query(self, function: str, arguments: ctypes.Structure) -> Callable[[], int]:
        """`query` of these arguments, whatever they hold by then, as a function."""
        call = getattr(self._library, f"orin_{function}")
        call.restype = ctypes.c_int64
        return partial(call, ctypes.byref(arguments))

    def _struct(self, launcher: str) -> type[ctypes.Structure]:
        if launcher not in self._structs:
            fields = [(name, _KINDS[kind]) for name, kind in self.fields(launcher).items()]
            self._structs[launcher] = type(launcher, (ctypes.Structure,), {"_fields_": fields})
        return self._structs[launcher]

    def _check(self, what: str, code: int) -> None:
        if code:
            raise EngineError(f"{what} failed: {self._library.orin_error(code).decode()}")
