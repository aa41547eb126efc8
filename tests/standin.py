# SPDX-License-Identifier: Apache-2.0
"""The stand-ins for TensorRT and CUDA, put in place of the real ones; bundles and machines for them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from host_kernels import HostKernels
from orinkit import bundle, target
from orinkit.bundle import Bundle
from orinkit.bundle.manifest import KERNELS, MANIFEST, PLUGINS, decode
from orinkit.engines import open_engine
from orinkit.ops import DOMAIN, VERSIONS
from orinkit.recipe import Shapes
from orinkit.target import Target

FOLDER, CUDA = Path(__file__).parent / "tensorrt_standin", Path(__file__).parent / "cuda_standin"
ROOT = Path(__file__).parents[1]
VARIABLE = "TENSORRT_STANDIN"
VERSION = "10.16.2.10"
HOST_KERNELS = b"\x7fELF: host_kernels.py stands for it"
"""In the place of liborin_kernels.so."""
_KEPT = {"base", "deploy", "kernels", "launches", "machine", "ort", "plans", "program", "room"}
"""Modules of engines that know neither CUDA nor TensorRT; the others are imported afresh."""


def environment(**settings: Any) -> dict[str, str]:
    """For a child process: the stand-ins in front of everything."""
    path = os.pathsep.join((*_folders(settings), *sys.path))
    return {**os.environ, "PYTHONPATH": path, VARIABLE: json.dumps(settings)}


def _folders(settings: Mapping[str, Any]) -> list[str]:
    """Where what is stood in for lies: CUDA is the real one where plans run on a GPU."""
    return [str(FOLDER)] if settings.get("execute") == "cuda" else [str(FOLDER), str(CUDA)]


@contextmanager
def installed(**settings: Any) -> Iterator[None]:
    """Within, `tensorrt` and `cuda` are the stand-ins, here and in child processes, with fresh state.

    With `execute="cuda"` and `kernels` (a path), `cuda` is the real one; not while another stand-in is installed.
    """
    fresh = {"tensorrt"} | ({"cuda"} if str(CUDA) in _folders(settings) else set())
    before = {name: module for name, module in sys.modules.items() if _is_ours(name, fresh)}
    saved, path = os.environ.copy(), list(sys.path)
    _forget(fresh)
    os.environ.update(environment(**settings))
    sys.path[:0] = _folders(settings)
    try:
        yield
    finally:
        _forget(fresh)
        for name, module in before.items():
            sys.modules[name] = module
            package, _, last = name.rpartition(".")
            if package in sys.modules:
                setattr(sys.modules[package], last, module)
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(saved)


def _is_ours(name: str, fresh: Collection[str]) -> bool:
    package, _, last = name.rpartition(".")
    uses_them = package == "orinkit.engines" and last not in _KEPT
    return name.split(".")[0] in fresh or uses_them or name == "orinkit.device.builder"


def _forget(fresh: Collection[str]) -> None:
    """Take modules away, and the attributes by which their packages know them."""
    for name in [name for name in sys.modules if _is_ours(name, fresh)]:
        del sys.modules[name]
        package, _, last = name.rpartition(".")
        if package in sys.modules:
            vars(sys.modules[package]).pop(last, None)


def this_target(version: str = VERSION, sm: int = 87) -> Target:
    """A target that fits the stand-in on the machine of the tests, and a GPU of that compute capability."""
    jetson = target.read(ROOT / "targets/agx-orin-64gb-jetpack-7.2.yaml")
    gpu = replace(jetson.board.gpu, sm=sm) if jetson.board.gpu else None
    board = replace(jetson.board, machine="any", gpu=gpu)
    found = jetson.stack.tensorrt
    soname = f"libnvinfer.so.{version.split('.')[0]}"
    tensorrt = replace(found, version=version, soname=soname) if found else None
    return replace(jetson, board=board, stack=replace(jetson.stack, l4t=(), tensorrt=tensorrt))


def plugin_library(creators: dict[str, str] = VERSIONS, extra: bytes = b"") -> bytes:
    """What the stand-in loads as a plugin library: ELF's first bytes and a list of creators."""
    listed = [[name, version, DOMAIN] for name, version in sorted(creators.items())]
    return b"\x7fELF" + extra + b"\nstandin-creators: " + json.dumps(listed).encode()


def board_bundle(
    source: Path,
    folder: Path,
    wanted: Target | None = None,
    library: bytes | None = None,
    shapes: Shapes | None = None,
    kernels: bytes | None = None,
) -> Bundle:
    """A copy of the bundle `source` as if it had been exported for `wanted`, with plugins for the stand-in.

    `kernels` are the bytes of liborin_kernels.so; left out: it has none.
    """
    shutil.copytree(source, folder)
    manifest = decode((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).unlink()
    (folder / PLUGINS).parent.mkdir(exist_ok=True)
    (folder / PLUGINS).write_bytes(plugin_library() if library is None else library)
    if kernels is not None:
        (folder / KERNELS).write_bytes(kernels)
    recipe = replace(manifest.recipe, shapes=shapes or manifest.recipe.shapes)
    bundle.write(folder, replace(manifest, target=wanted or this_target(), recipe=recipe, files=()))
    return Bundle.open(folder, keys=None, supported=VERSIONS)


def built_bundle(
    source: Path,
    folder: Path,
    shapes: Shapes | None = None,
    wanted: Target | None = None,
    kernels: bytes | None = None,
    **options: int,
) -> Bundle:
    """A bundle for the stand-in with its plan; only while the stand-in is installed."""
    from orinkit.device.build import build
    from orinkit.engines.plans import BuildOptions

    made = board_bundle(source, folder, wanted, shapes=shapes, kernels=kernels)
    build(made, BuildOptions(**options))
    return made


def put_kernels() -> None:
    """Let the engine find the kernels' stand-in where it would load the bundle's library."""
    from orinkit.engines import trt

    vars(trt)["KernelLibrary"] = HostKernels


def device() -> Any:
    """The device of the stand-in that is installed now."""
    from cuda.bindings import runtime

    return runtime.DEVICE


def opened(bundle: Bundle) -> Any:
    """The engine of a bundle with a plan, on a fresh device, because a fault ends one."""
    device().reset()
    return open_engine("tensorrt", bundle.graph, bundle.manifest.model)
