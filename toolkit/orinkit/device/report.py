# SPDX-License-Identifier: Apache-2.0
"""`orin-run board-report`: what a first run on a board has shown, as one file to send back.

It holds no prompt, no text of a model, no environment, no name of a user or a host, and no folder: paths are reduced to
their last parts. What it holds is listed in docs/on-the-board.md, and it is plain JSON to be read before it is sent.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from orinkit import config
from orinkit.bundle import Bundle, files
from orinkit.device.doctor import examine
from orinkit.device.facts import Facts, read_facts
from orinkit.engines import plans
from orinkit.engines.machine import system_glibc
from orinkit.errors import ConfigError, OrinError
from orinkit.runtime import selftest
from orinkit.runtime.start import start

PACKAGES = ("orinkit", "numpy", "onnxruntime", "onnx-ir", "cuda-python", "cuda-bindings", "tensorrt")
LOG_LINES = 60
MAX_BENCH = 4 << 20
_FOLDERS = re.compile(r"(?:/[^\s/:'\",]+)+/")


def collect(
    bundle: Bundle, engines: Sequence[str] = (), benches: Iterable[Path] = (), root: Path = Path("/")
) -> dict[str, Any]:
    """The report: machine, versions, bundle, plans, a self-test with each of `engines`, results of `orin-run bench`.

    Raises ConfigError: a bench that is no JSON.
    """
    facts = read_facts(root, disk=bundle.folder)
    folder = plans.folder_of(bundle.folder)
    return {
        "report": 1,
        "machine": _facts(facts),
        "findings": [asdict(finding) for finding in examine(facts)],
        "versions": _versions(),
        "bundle": _bundle(bundle),
        "plans": [config.dump(record) for record in plans.records(folder)],
        "build_log": _log(folder / "build.log"),
        "selftests": [_selftest(bundle, engine) for engine in engines],
        "benches": [_bench(path) for path in benches],
    }


def write(report: dict[str, Any], path: Path) -> None:
    """The report as JSON. Raises BundleError, ResourceError, LockedError."""
    with files.os_errors(f"writing {path}"), files.replacing(path, files.part_of(path)) as out:
        out.write((json.dumps(report, indent=1, sort_keys=True) + "\n").encode())


def without_folders(text: str) -> str:
    """`text` with every absolute path reduced to its last part: folders have names of people."""
    return _FOLDERS.sub("", text)


def _facts(facts: Facts) -> dict[str, Any]:
    """Facts but for the groups of whoever runs this."""
    return {name: value for name, value in asdict(facts).items() if name not in ("groups", "is_root")}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "glibc": system_glibc(), "kernel": platform.release()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _bundle(bundle: Bundle) -> dict[str, Any]:
    """What a bundle is, without its golden prompts and its origin."""
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": bundle.digest,
        "target": manifest.target.id,
        "model": config.dump(manifest.model),
        "shapes": config.dump(manifest.recipe.shapes),
        "quantise": config.dump(manifest.settled.quantise),
        "ops": manifest.ops,
        "files": [config.dump(entry) for entry in manifest.files],
    }


def _log(path: Path) -> list[str]:
    """The end of what TensorRT wrote when it built."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [without_folders(line[:500]) for line in lines[-LOG_LINES:]]


def _selftest(bundle: Bundle, engine: str) -> dict[str, Any]:
    """Whether the golden tokens come out of an engine, and how long it took with the start."""
    cases, started = bundle.manifest.golden, time.monotonic()
    found: dict[str, Any] = {"engine": engine, "cases": len(cases)}
    try:
        found["tokens"] = selftest.selftest(start(bundle, engine), cases)
        found["passed"] = True
    except OrinError as error:
        text = str(error)
        for index, case in enumerate(cases):
            text = text.replace(repr(case.prompt), str(index)).replace(case.prompt, str(index))
        found |= {"passed": False, "error": type(error).__name__, "text": without_folders(text)}
    return found | {"seconds": round(time.monotonic() - started, 2)}


def _bench(path: Path) -> Any:
    """What `orin-run bench --json` has written. Raises ConfigError."""
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_BENCH:
            raise ConfigError(f"{path}: expected at most {MAX_BENCH} bytes, found {len(raw)}; give the file of a bench")
        return json.loads(without_folders(raw.decode("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected what orin-run bench --json wrote, found: {str(error)[:200]}") from None
