# SPDX-License-Identifier: Apache-2.0
"""A plan is found only where everything is as it was when it was built."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from orinkit.engines import plans
from orinkit.engines.machine import Machine, System
from orinkit.engines.plans import BuildOptions, Origin, PlanRecord
from orinkit.errors import ConfigError, PlanError

MACHINE = Machine(System("aarch64", "tegra234", "36.4.3"), 87, "12.6", "12.6", "10.3.0")
ORIGIN = Origin("b" * 64, "a" * 64, "c" * 64, MACHINE)
CONTENT = b"a plan" * 100
KEY = bytes(range(32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the plan of `ORIGIN`."""
    folder = plans.folder_of(tmp_path / "demo")
    assert folder == tmp_path / "demo.plans"
    folder.mkdir(mode=0o755)
    (folder / f"{ORIGIN.fingerprint}.plan").write_bytes(CONTENT)
    (folder / f"{ORIGIN.fingerprint}.plan").chmod(0o644)
    record = PlanRecord(ORIGIN, BuildOptions(), sha256(CONTENT).hexdigest(), len(CONTENT), seconds=1.5)
    plans.write_record(folder, record.coded(KEY))
    return folder


def test_a_plan_is_found_by_its_origin(folder: Path) -> None:
    assert plans.find(folder, ORIGIN, KEY).read_bytes() == CONTENT
    assert [record.origin for record in plans.records(folder)] == [ORIGIN]
    assert {path.suffix for path in folder.iterdir()} == {".plan", ".json"}


OTHERS = {
    "SoC": replace(MACHINE, system=replace(MACHINE.system, soc="tegra239")),
    "Jetson Linux": replace(MACHINE, system=replace(MACHINE.system, l4t="36.4.4")),
    "compute capability": replace(MACHINE, sm=86),
    "CUDA of the driver": replace(MACHINE, driver="12.9"),
    "CUDA ": replace(MACHINE, cuda="12.2"),
    "TensorRT": replace(MACHINE, tensorrt="10.7.0"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_plan_of_another_machine_is_refused_by_name(what: str, folder: Path) -> None:
    """Cases F19 and B21: both values are named, and nothing is deserialised."""
    with pytest.raises(PlanError, match=f"one built with {what}.*, here it is .*orin-run build"):
        plans.find(folder, replace(ORIGIN, machine=OTHERS[what]), KEY)


@pytest.mark.parametrize(("field", "label"), [("bundle", "bundle"), ("graph", "graph"), ("plugins", "plugin library")])
def test_a_plan_of_something_else_is_refused(field: str, label: str, folder: Path) -> None:
    with pytest.raises(PlanError, match=f"one built with {label}"):
        plans.find(folder, replace(ORIGIN, **{field: "d" * 64}), KEY)  # type: ignore[arg-type]


def test_no_plan_at_all(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="expected a plan for this machine, found none; build it with: orin-run build"):
        plans.find(tmp_path / "demo.plans", ORIGIN, KEY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1], f"expected {len(CONTENT)} bytes, found {len(CONTENT) - 1}"),
        (b"", "found 0"),
        (CONTENT[:-1] + b"?", "expected SHA-256"),
        (None, "No such file"),
    ],
)
def test_a_damaged_plan_is_refused(content: bytes | None, message: str, folder: Path) -> None:
    """Case F18."""
    path = folder / f"{ORIGIN.fingerprint}.plan"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(PlanError, match=f"{message}.*build it with: orin-run build"):
        plans.find(folder, ORIGIN, KEY)


def test_a_plan_that_others_can_change_is_refused(folder: Path) -> None:
    """Case B20: a plan is code."""
    path = folder / f"{ORIGIN.fingerprint}.plan"
    path.chmod(0o666)
    with pytest.raises(PlanError, match="only its owner can write"):
        plans.find(folder, ORIGIN, KEY)
    path.chmod(0o644)
    folder.chmod(0o777)
    with pytest.raises(PlanError, match="only its owner can write"):
        plans.find(folder, ORIGIN, KEY)


def test_a_link_in_the_place_of_a_plan_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / f"{ORIGIN.fingerprint}.plan"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlanError):
        plans.find(folder, ORIGIN, KEY)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[" * 5000, b"\xff", bytes(2 << 20)])
def test_a_damaged_record_is_no_record(raw: bytes, folder: Path) -> None:
    (folder / f"{ORIGIN.fingerprint}.json").write_bytes(raw)
    assert plans.records(folder) == []
    with pytest.raises(PlanError, match="found none"):
        plans.find(folder, ORIGIN, KEY)


def test_a_plan_that_was_swapped_with_its_record_is_refused(folder: Path) -> None:
    """Case B20: size and digest are right, and who swapped it did not have the key."""
    (folder / f"{ORIGIN.fingerprint}.plan").write_bytes(b"other code")
    (record,) = plans.records(folder)
    swapped = replace(record, sha256=sha256(b"other code").hexdigest(), size=10)
    for forged in (swapped, swapped.coded(bytes(32)), replace(swapped, code=""), replace(swapped, code="\u00e9")):
        plans.write_record(folder, forged)
        with pytest.raises(PlanError, match=r"the code of this board's key, found another.*orin-run build"):
            plans.find(folder, ORIGIN, KEY)
    plans.write_record(folder, swapped.coded(KEY))
    assert plans.find(folder, ORIGIN, KEY).read_bytes() == b"other code"


def test_the_record_of_another_plan_is_refused(folder: Path) -> None:
    other = replace(ORIGIN, bundle="e" * 64)
    (folder / f"{ORIGIN.fingerprint}.json").rename(folder / f"{other.fingerprint}.json")
    with pytest.raises(PlanError, match="expected the record of this plan"):
        plans.find(folder, other, KEY)


@pytest.mark.parametrize("options", [BuildOptions(-1), BuildOptions(6), BuildOptions(3, -1), BuildOptions(3, 8)])
def test_options_out_of_range(options: BuildOptions) -> None:
    with pytest.raises(ConfigError, match="expected 0 to"):
        options.validate()
