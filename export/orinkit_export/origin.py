# SPDX-License-Identifier: Apache-2.0
"""What a bundle is made of, by digests."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from orinkit.bundle import FileEntry, Provenance
from orinkit_export.plan import Plan
from orinkit_export.progress import Advance, progress


def provenance(plan: Plan) -> Provenance:
    """The checkpoint's files and the texts that are read. Raises ConfigError: a text that cannot be read."""
    texts = _texts(plan)
    paths = plan.checkpoint.files()
    entries = []
    with progress("hash", sum(path.stat().st_size for path in paths), "MB", 1e6) as advance:
        for path in paths:
            entries.append(FileEntry(path.name, path.stat().st_size, digest(path, advance)))
    source = plan.recipe.checkpoint
    tool = f"orinkit {metadata.version('orinkit')}"
    return Provenance(tool, tuple(entries), source.repository, source.revision, texts)


def digest(path: Path, advance: Advance = lambda _: None) -> str:
    """SHA-256 of a file in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            total.update(chunk)
            advance(len(chunk))
    return total.hexdigest()


def _texts(plan: Plan) -> dict[str, str]:
    """Digests of the texts that the recipe has use for."""
    used = {"evaluation": plan.evaluation_ids}
    if plan.is_calibrated:
        used["calibration"] = plan.calibration_ids
    return {section: hashlib.sha256(ids.tobytes()).hexdigest() for section, ids in used.items()}
