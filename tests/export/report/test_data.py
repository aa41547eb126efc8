# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from orinkit.errors import ArtefactError
from orinkit_export.report import data
from orinkit_export.report.data import Matrix, Report, decode, encode


def test_a_report_survives_encode_and_decode(report: Report) -> None:
    assert decode(encode(report), "here") == report


def test_floats_have_four_digits(report: Report) -> None:
    long = replace(report, quality=replace(report.quality, kl_mean=0.0123456789, positions=1234567))
    text = encode(long)
    assert '"kl_mean": 0.01235,' in text
    assert '"positions": 1234567,' in text


def test_what_is_no_number_is_not_written(report: Report) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(replace(report, quality=replace(report.quality, kl_mean=math.nan)))


def test_kind_and_layer_are_in_the_name() -> None:
    inside, outside = Matrix("layers.12.gate_up", "int4", 1, 1), Matrix("head", "int8", 1, 1)
    assert (inside.kind, inside.layer) == ("gate_up", 12)
    assert (outside.kind, outside.layer) == ("head", None)


def test_sizes_add_up(report: Report) -> None:
    matrices = (
        Matrix("layers.0.o", "int4", 8, 5),
        Matrix("layers.1.o", "int4", 8, 5),
        Matrix("layers.1.o", "int8", 8, 9),
    )
    small = replace(report, matrices=matrices, data_bytes=30, model=replace(report.model, parameters=48))
    assert small.sizes == {"o int4": 10, "o int8": 9, "rest": 11}
    assert small.bits_per_weight == 5


WRONG = {
    "no JSON": ("{", "expected JSON, found"),
    "a list": ("[]", "expected a report of format 1, found another"),
    "another format": ('{"format": 2}', "expected a report of format 1, found another"),
    "too little": ('{"format": 1}', "the key 'name' is missing"),
}


@pytest.mark.parametrize(("text", "says"), WRONG.values(), ids=WRONG)
def test_what_is_no_report_is_refused(text: str, says: str) -> None:
    with pytest.raises(ArtefactError, match=rf"^here: .*{says}.*; build the export again"):
        decode(text, "here")


def test_a_key_too_many_is_refused(report: Report) -> None:
    with pytest.raises(ArtefactError, match="unknown key 'more'"):
        decode(json.dumps(json.loads(encode(report)) | {"more": 1}), "here")


def test_a_report_is_found_by_its_bundle_and_by_its_folder(calibrated: Path, tmp_path: Path) -> None:
    path = calibrated / "out.report/report.json"
    assert data.find(calibrated / "out") == data.find(calibrated / "out.report") == path
    with pytest.raises(ArtefactError, match=r"none: expected a bundle with its report in none\.report, found none"):
        data.find(tmp_path / "none")
