# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orinkit.cli import main
from toolkit.device.trees import ORIN, write


def test_the_verb_on_a_tree(tmp_path: Path) -> None:
    root = ["--root", str(write(tmp_path, ORIN))]
    told = CliRunner().invoke(main, ["doctor", *root])
    assert "ok   machine: NVIDIA Jetson AGX Orin Developer Kit\n" in told.output
    assert "warn TensorRT: 10.3.0.30\n     results of several profiles" in told.output
    data = json.loads(CliRunner().invoke(main, ["doctor", "--json", *root]).output)
    assert data[0] == {
        "name": "machine",
        "level": "ok",
        "found": "NVIDIA Jetson AGX Orin Developer Kit",
        "advice": "",
    }


@pytest.mark.parametrize(("release", "code"), [("R36", 0), ("R35", 1)])
def test_the_exit_code_tells_of_something_bad(release: str, code: int, tmp_path: Path) -> None:
    root = write(tmp_path, ORIN, {"etc/nv_tegra_release": ORIN["etc/nv_tegra_release"].replace("R36", release)})
    assert CliRunner().invoke(main, ["doctor", "--root", str(root)]).exit_code == code


def test_the_verb_on_this_machine() -> None:
    told = CliRunner().invoke(main, ["doctor"])
    assert told.exit_code in (0, 1)
    assert told.output.startswith("ok   machine: ")
