# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from orinkit.bundle import Bundle
from orinkit.device.bench import Case
from orinkit.device.measured import machine, memory, predictor, write
from orinkit.device.sensors import Reading, Sensors
from orinkit.errors import ResourceError
from orinkit.ops import VERSIONS
from toolkit.runtime.fake_program import make_bundle


def opened(folder: Path) -> Bundle:
    return Bundle.open(make_bundle(folder), keys=None, supported=VERSIONS)


def test_predictions_are_for_the_target_or_for_the_card_that_is_there(tmp_path: Path) -> None:
    bundle = opened(tmp_path / "bundle")
    nothing = Sensors(tmp_path, nvml="libno-such-library.so")
    on_target = predictor(bundle, "cuda", nothing)
    assert (on_target is None) == (bundle.manifest.target.board.gpu is None)
    assert predictor(bundle, "onnxruntime", nothing) is None


def test_the_record_names_bundle_and_machine(tmp_path: Path) -> None:
    bundle = opened(tmp_path / "bundle")
    sensors = Sensors(tmp_path, nvml="libno-such-library.so")
    record = machine(bundle, "cuda", sensors)
    assert record["digest"] == bundle.digest
    assert record["machine"]
    assert record["gpu"] is None
    found = memory(bundle, "cuda", sensors)
    assert found["planned"] is not None
    assert found["peak of the process"] is not None
    assert found["planned"] > 0 < found["peak of the process"]
    assert memory(bundle, "fake", sensors)["planned"] is None


def test_cases_are_written_with_their_ratio(tmp_path: Path) -> None:
    case = Case("decode", 2, 16, tokens_per_second=50.0, predicted=100.0, reading=Reading(power_w=12.0))
    write(tmp_path / "found.json", {"engine": "cuda"}, [case, Case("prefill", 9, 16, skipped="too many")])
    first, second = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert (first["ratio"], first["reading"]["power_w"]) == (0.5, 12.0)
    assert (second["ratio"], second["skipped"]) == (None, "too many")
    with pytest.raises(ResourceError, match="cannot be written"):
        write(tmp_path, {}, [])
