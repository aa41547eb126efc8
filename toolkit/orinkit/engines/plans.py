# SPDX-License-Identifier: Apache-2.0
"""Plans on disk: `<bundle>.plans/` beside the bundle, never in it.

    <fingerprint>.plan    TensorRT's serialized engine
    <fingerprint>.json    its record: what it was built from and on, size and SHA-256 of the plan, a code of all that

The fingerprint is that of bundle, graph, plugins and machine, so a plan of another board or release is never found, let
alone deserialised. A plan is code: folder and files must belong to root or to the user who runs, and the code is one
that only the holder of this board's key could make (`plan_key`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from orinkit import config
from orinkit.bundle import Bundle, files
from orinkit.bundle.manifest import DEPLOY, PLUGINS
from orinkit.engines import plan_key
from orinkit.engines.machine import Machine
from orinkit.errors import BundleError, ConfigError, OrinError, PlanError

_RECORD_BYTES = 1 << 20
_LABELS = {
    "machine.system.machine": "machine",
    "machine.system.soc": "SoC",
    "machine.system.l4t": "Jetson Linux",
    "machine.sm": "compute capability times ten",
    "machine.driver": "CUDA of the driver",
    "machine.cuda": "CUDA",
    "machine.tensorrt": "TensorRT",
    "bundle": "bundle",
    "graph": "graph",
    "plugins": "plugin library",
}


@dataclass(frozen=True)
class BuildOptions:
    """What a plan is built with, beside its bundle."""

    optimization_level: int = 3
    """TensorRT's builder_optimization_level, 0 to 5."""
    aux_streams: int = 0
    """Most streams beside the main one."""

    def validate(self) -> None:
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimization_level: expected 0 to 5, found {self.optimization_level}")
        if not 0 <= self.aux_streams <= 7:
            raise ConfigError(f"aux_streams: expected 0 to 7, found {self.aux_streams}")


@dataclass(frozen=True)
class Origin:
    """Everything that decides what a plan is; digests are SHA-256 in hexadecimal."""

    bundle: str
    graph: str
    plugins: str
    machine: Machine

    @property
    def fingerprint(self) -> str:
        """24 hexadecimal digits."""
        return hashlib.sha256(_canonical(config.dump(self))).hexdigest()[:24]


@dataclass(frozen=True)
class PlanRecord:
    """One plan: what it is made of, and its bytes."""

    origin: Origin
    options: BuildOptions
    sha256: str
    size: int
    seconds: float
    """How long the build took."""
    code: str = ""
    """HMAC-SHA256 of the rest by the key of the board that built it, in hexadecimal."""

    def coded(self, key: bytes) -> PlanRecord:
        """The same with its code."""
        plain = replace(self, code="")
        return replace(plain, code=plan_key.code(key, _canonical(config.dump(plain))).hex())


def origin_of(bundle: Bundle, machine: Machine) -> Origin:
    """The origin of a plan built from `bundle` here. Raises BundleError: no deploy graph or no plugins in it."""
    digests = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    for path, advice in ((DEPLOY, "export it again"), (PLUGINS, "export it with --target of this board")):
        if path not in digests:
            raise BundleError(f"{bundle.folder}: expected {path} in the bundle, found none; {advice}")
    return Origin(bundle.digest, digests[DEPLOY], digests[PLUGINS], machine)


def folder_of(bundle: Path) -> Path:
    """Where the plans of the bundle in this folder lie."""
    return bundle.with_name(f"{bundle.name}.plans")


def write_record(folder: Path, record: PlanRecord) -> None:
    """Write the record beside its plan. Raises LockedError, ResourceError."""
    path = folder / f"{record.origin.fingerprint}.json"
    with files.os_errors(f"writing {path}"), files.replacing(path, files.part_of(path)) as out:
        out.write(_canonical(config.dump(record)))


def find(folder: Path, origin: Origin, key: bytes) -> Path:
    """The verified plan of `origin`, built here by who has `key`.

    Raises PlanError: there is none, or it is not what its record says.
    """
    record = read_record(folder, origin.fingerprint)
    if record is None:
        raise PlanError(f"{folder}: expected a plan for this machine, found {_others(folder, origin)}; {_ADVICE}")
    if record.origin != origin:
        raise PlanError(f"{folder}: expected the record of this plan, found that of another; {_ADVICE}")
    if not hmac.compare_digest(record.code.encode(), record.coded(key).code.encode()):
        raise PlanError(
            f"{folder}: expected a record with the code of this board's key, found another: the plan was built with "
            f"another key, or somebody has changed it; {_ADVICE}"
        )
    plan = folder / f"{origin.fingerprint}.plan"
    try:
        with files.opened_folder(folder) as root:
            files.check_owner(str(folder), os.fstat(root))
            with files.open_beneath(root, plan.name) as file:
                info = os.fstat(file.fileno())
                files.check_owner(plan.name, info)
                size = info.st_size
                digest = files.digest(file, size) if size == record.size else ""
    except (OSError, BundleError) as error:
        raise PlanError(f"{plan}: {error}; {_ADVICE}") from None
    if size != record.size:
        raise PlanError(f"{plan}: expected {record.size} bytes, found {size}; {_ADVICE}")
    if digest != record.sha256:
        raise PlanError(f"{plan}: expected SHA-256 {record.sha256}, found {digest}; {_ADVICE}")
    return plan


def read_record(folder: Path, fingerprint: str) -> PlanRecord | None:
    """The record of this fingerprint, if it is there and whole."""
    try:
        with files.opened_folder(folder) as root:
            raw = files.read_small(root, f"{fingerprint}.json", _RECORD_BYTES)
        return config.parse(json.loads(raw), PlanRecord, fingerprint)
    except (OSError, ValueError, RecursionError, OrinError):
        return None


def records(folder: Path) -> list[PlanRecord]:
    """All whole records of a folder, by fingerprint."""
    found = (read_record(folder, path.stem) for path in sorted(folder.glob("*.json")))
    return [record for record in found if record is not None]


_ADVICE = "build it with: orin-run build BUNDLE"


def _others(folder: Path, origin: Origin) -> str:
    """What the nearest plan of the folder differs in, for messages."""
    differences = [_differences(record.origin, origin) for record in records(folder)]
    return min(differences, key=len, default=["none"])[0] if differences else "none"


def _differences(built: Origin, here: Origin) -> list[str]:
    theirs, ours = _flat(config.dump(built)), _flat(config.dump(here))
    names = [name for name in ours if theirs.get(name) != ours[name]]
    return [
        f"one built with {_LABELS[name]} {str(theirs.get(name))[:16]}, here it is {str(ours[name])[:16]}"
        for name in sorted(names, key=list(_LABELS).index)
    ]


def _flat(data: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(data, dict):
        return {prefix: data}
    flat: dict[str, object] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return flat


def _canonical(data: object) -> bytes:
    return (json.dumps(data, sort_keys=True, indent=1) + "\n").encode()
