# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

from toolkit.bundle import test_archive, test_folder, test_manifest
from toolkit.bundle.samples import program


def test_attacks_are_refused_without_assertions_too() -> None:
    found = json.loads(program("toolkit.bundle.verdicts", options=["-O"]))
    assert found["optimised"] == 1
    attacks = len(test_manifest.ATTACKS) + len(test_folder.ATTACKS) + len(test_archive.ATTACKS)
    assert len(found["verdicts"]) == attacks
    assert {name: said for name, said in found["verdicts"].items() if said != "BundleError"} == {}
