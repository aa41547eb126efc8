# SPDX-License-Identifier: Apache-2.0
"""`orin-run build`: from a verified bundle to the plan of this machine, beside the bundle.

refuse      system, plugin library, disk: before any CUDA or TensorRT is loaded
ask         a child tells what machine this is; a plan that is there already is kept
build       the child builds, and may be killed at any moment without harm: its output has no name yet
record      the plan gets its name, then its record; only both together are a plan
"""

from __future__ import annotations

import base64
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orinkit import config
from orinkit.bundle import Bundle, files
from orinkit.bundle.manifest import DEPLOY, PLUGINS
from orinkit.device.child import Progress, running
from orinkit.engines import machine as machines
from orinkit.engines import plan_key, plans
from orinkit.engines.plans import BuildOptions, Origin, PlanRecord
from orinkit.errors import BundleError, PlanError, ResourceError
from orinkit.memory import system
from orinkit.recipe import Shapes

TIMEOUT_S = 3600.0
"""A build of ours takes minutes: the weights are not part of it."""
_FREE_BYTES = 256 << 20
_MIB = 1 << 20
_WORKSPACE = 1 << 30


@dataclass(frozen=True)
class Built:
    """A plan and its record."""

    path: Path
    record: PlanRecord
    is_new: bool


def build(
    bundle: Bundle,
    options: BuildOptions | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    progress: Progress = lambda *_: None,
    root: Path = Path("/"),
) -> Built:
    """Build the plan of `bundle` for this machine, or find it. `root` is that of the file system.

    Raises BundleError, GraphError, EngineError, PlanError, ResourceError, LockedError.
    """
    options = options or BuildOptions()
    check(bundle, root)
    folder = plans.folder_of(bundle.folder)
    with files.os_errors(f"making {folder}"):
        folder.mkdir(mode=0o755, exist_ok=True)
        _check_space(folder)
    key = plan_key.read_or_make()
    with running(folder, root, timeout_s) as child:
        origin = plans.origin_of(bundle, child.machine())
        machines.check_machine(origin.machine, bundle.manifest.target)
        path = folder / f"{origin.fingerprint}.plan"
        known = _known(folder, origin, options, key)
        if known is not None:
            return Built(path, known, is_new=False)
        started = time.monotonic()
        with files.os_errors(f"writing {path}"), files.replacing(path, files.part_of(path)) as out:
            child.build(_job(bundle, options, Path(out.name), folder, root, key), progress)
        record = _record(path, origin, options, time.monotonic() - started).coded(key)
    plans.write_record(folder, record)
    return Built(path, record, is_new=True)


def check(bundle: Bundle, root: Path = Path("/")) -> None:
    """Refuse a bundle that is not for this system, before CUDA or TensorRT is loaded. Raises BundleError."""
    machines.check_system(machines.read_system(root), bundle.manifest.target)
    if bundle.plugins is None:
        raise BundleError(
            f"{bundle.folder}: expected {PLUGINS} in the bundle, found none; export it with --target of this board"
        )
    machines.check_library(bundle.read(PLUGINS), machines.system_glibc())


def ranges(shapes: Shapes) -> list[list[dict[str, Any]]]:
    """The profiles of a plan, prefill first: least, typical and largest sizes of what varies; none is ever 0."""
    sequences = min(shapes.slots, shapes.chunk)
    return [_ranges(shapes.chunk, sequences, shapes.chunk), _ranges(shapes.slots, shapes.slots, 1)]


def _ranges(tokens: int, sequences: int, typical: int) -> list[dict[str, Any]]:
    sizes = {
        "input_ids": (1, typical, tokens),
        "cu_seqlens": (2, 2, sequences + 1),
        "past_lens": (1, 1, sequences),
        "slots": (1, 1, sequences),
        "logit_rows": (1, 1, sequences),
    }
    return [
        dict(zip(("name", "least", "typical", "largest"), (name, *size), strict=True)) for name, size in sizes.items()
    ]


def _job(bundle: Bundle, options: BuildOptions, output: Path, folder: Path, root: Path, key: bytes) -> dict[str, Any]:
    """The builder's `Job` as plain data. Limits follow what the system can give: GPU and CPU share one memory."""
    free = system.available(system.read(root)) or 0
    return {
        "graph": base64.b64encode(bundle.read(DEPLOY)).decode("ascii"),
        "plugins": str(bundle.path(PLUGINS)),
        "output": str(output),
        "timing_cache": str(folder / "timing.cache"),
        "key": key.hex(),
        "options": config.dump(options),
        "profiles": ranges(bundle.manifest.recipe.shapes),
        "workspace_bytes": min(_WORKSPACE, max(free // 8, 64 * _MIB)),
        "tactic_bytes": max(free // 2, 256 * _MIB),
    }


def _known(folder: Path, origin: Origin, options: BuildOptions, key: bytes) -> PlanRecord | None:
    """The record of an intact plan of the same origin and options."""
    record = plans.read_record(folder, origin.fingerprint)
    if record is None or record.options != options:
        return None
    with suppress(PlanError):
        plans.find(folder, origin, key)
        return record
    return None


def _record(path: Path, origin: Origin, options: BuildOptions, seconds: float) -> PlanRecord:
    with (
        files.os_errors(f"reading {path}"),
        files.opened_folder(path.parent) as root,
        files.open_beneath(root, path.name) as file,
    ):
        size = os.fstat(file.fileno()).st_size
        return PlanRecord(origin, options, files.digest(file, size), size, round(seconds, 1))


def _check_space(folder: Path) -> None:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < _FREE_BYTES:
        raise ResourceError(
            f"{folder}: expected {_FREE_BYTES // _MIB} MiB free for plan and timing cache, found {free // _MIB} MiB; "
            "free some space and try again"
        )
