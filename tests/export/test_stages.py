# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orinkit.errors import BundleError, CheckpointError, ConfigError, LockedError, ResourceError, VerificationError
from orinkit_export import stages


def number(folder: Path) -> int:
    return int((folder / "number").read_text())


def count_up(folder: Path) -> None:
    """A stage that shows how often it began in the same folder."""
    path = folder / "number"
    path.write_text(str(number(folder) + 1 if path.exists() else 1))


def failing(error: BaseException) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        count_up(folder)
        raise error

    return make


def never(folder: Path) -> None:
    raise AssertionError(f"{folder} is made again")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_stage_is_made_once_and_records_its_inputs(tmp_path: Path) -> None:
    done = stages.run(tmp_path, "model", {"b": [1, "x"], "a": None}, count_up)
    assert (done, number(done), names(tmp_path)) == (tmp_path / "model", 1, ["model"])
    assert json.loads((done / stages.RECORD).read_text()) == {"a": None, "b": [1, "x"]}
    assert stages.run(tmp_path, "model", {"a": None, "b": [1, "x"]}, never) == done


def test_other_inputs_start_afresh(tmp_path: Path) -> None:
    stages.run(tmp_path, "model", {"a": 1}, count_up)
    done = stages.run(tmp_path, "model", {"a": 2}, count_up)
    assert (number(done), json.loads((done / stages.RECORD).read_text())) == (1, {"a": 2})


def test_what_is_done_stays_until_the_new_one_is(tmp_path: Path) -> None:
    stages.run(tmp_path, "model", {"a": 1}, count_up)
    with pytest.raises(ResourceError):
        stages.run(tmp_path, "model", {"a": 2}, failing(ResourceError("full")))
    stages.run(tmp_path, "model", {"a": 1}, never)


@pytest.mark.parametrize("error", [ResourceError("full"), VerificationError("differs"), KeyboardInterrupt()])
def test_what_was_cut_off_is_gone_on_with(error: BaseException, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(type(error)):
            stages.run(tmp_path, "model", {"a": 1}, failing(error))
    assert names(tmp_path) == ["model.partial"]
    assert number(stages.run(tmp_path, "model", {"a": 1}, count_up)) == 3
    assert names(tmp_path) == ["model"]


def test_what_was_cut_off_is_not_mixed_with_other_inputs(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stages.run(tmp_path, "model", {"a": 1}, failing(KeyboardInterrupt()))
    assert number(stages.run(tmp_path, "model", {"a": 2}, count_up)) == 1


@pytest.mark.parametrize("error", [CheckpointError("NaN"), ConfigError("does not fit")])
def test_what_is_refused_leaves_nothing(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        stages.run(tmp_path, "model", {"a": 1}, failing(error))
    assert names(tmp_path) == []


def test_stages_do_not_touch_each_other(tmp_path: Path) -> None:
    stages.run(tmp_path, "model", {"a": 1}, count_up)
    stages.run(tmp_path, "verify", {"a": 1}, count_up)
    stages.run(tmp_path, "verify", {"a": 2}, count_up)
    stages.run(tmp_path, "model", {"a": 1}, never)
    stages.clear(tmp_path)
    assert names(tmp_path) == []


def test_a_record_that_was_cut_off_is_started_afresh(tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / stages.RECORD).write_text('{\n "a"')
    (tmp_path / "model.partial/number").write_text("7")
    assert number(stages.run(tmp_path, "model", {"a": 1}, count_up)) == 1


def test_a_locked_folder_is_there_for_one(tmp_path: Path) -> None:
    work = tmp_path / "some/where/out.work"
    with stages.locked(work):
        with pytest.raises(LockedError, match=r"out\.work: another export is working here; wait"), stages.locked(work):
            pass
        assert names(work) == [stages.LOCK]
    assert names(work.parent) == []


def test_a_folder_stays_locked_for_the_first_when_a_second_was_refused(tmp_path: Path) -> None:
    with stages.locked(tmp_path / "work"):
        for _ in range(2):
            with pytest.raises(LockedError), stages.locked(tmp_path / "work"):
                pass


def test_a_folder_with_a_stage_stays(tmp_path: Path) -> None:
    stage = failing(ResourceError("full"))
    with pytest.raises(ResourceError), stages.locked(tmp_path / "work"):
        stages.run(tmp_path / "work", "model", {}, stage)
    assert names(tmp_path / "work") == [stages.LOCK, "model.partial"]
    with stages.locked(tmp_path / "work"):
        stages.clear(tmp_path / "work")
    assert names(tmp_path) == []


def test_a_lock_that_the_run_before_removes_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run before ends between our opening of its lock file and our locking of it."""
    lock = fcntl.flock

    def late(file: Any, operation: int) -> None:
        shutil.rmtree(tmp_path / "work")
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(LockedError, match="wait for it"), stages.locked(tmp_path / "work"):
        pass


def test_a_folder_of_others_is_not_worked_in(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    expected = r"expected to work here, found 'thesis\.txt'; choose another output"
    with pytest.raises(BundleError, match=expected), stages.locked(tmp_path):
        pass
    assert names(tmp_path) == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "work").touch()
    expected = r"work: writing failed \(File exists\); check the path"
    with pytest.raises(ResourceError, match=expected), stages.locked(tmp_path / "work"):
        pass
