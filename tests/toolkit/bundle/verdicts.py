# SPDX-License-Identifier: Apache-2.0
"""Prints the verdict on every attack as JSON, so that those of a Python without assertions can be compared."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from toolkit.bundle import test_archive, test_folder, test_manifest
from toolkit.bundle.samples import judged, judged_archive


def verdicts(parent: Path) -> dict[str, str]:
    """Table and name of each attack, and what was said to it."""
    found = {}
    for table, attacks in (("manifest", test_manifest.ATTACKS), ("folder", test_folder.ATTACKS)):
        for number, (name, (attack, says)) in enumerate(attacks.items()):
            found[f"{table}: {name}"] = judged(attack, says, parent / table / str(number) / "bundle")
    for number, (name, (make, says)) in enumerate(test_archive.ATTACKS.items()):
        found[f"archive: {name}"] = judged_archive(make, says, parent / "archive" / str(number) / "bundle")
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        json.dump({"optimised": sys.flags.optimize, "verdicts": verdicts(Path(temporary))}, sys.stdout)
