# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from orinkit.errors import ResourceError
from orinkit_export.disk import check_space, writing


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_without_space_the_advice_is_to_make_some(number: int, tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == (
        f"{tmp_path}: writing failed ({os.strerror(number)}); free some space or choose another output, and run again"
    )


def test_a_place_that_cannot_be_written_is_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "file/x"
    folder.parent.touch()
    expected = r"file/x: writing failed \(Not a directory\); check the path and who may"
    with pytest.raises(ResourceError, match=expected), writing(folder):
        folder.mkdir()


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError


def test_space_is_enough_or_both_numbers_are_told(tmp_path: Path) -> None:
    check_space(tmp_path, 0)
    with pytest.raises(
        ResourceError, match=rf"{tmp_path}: expected 1000000000.00 GB free for .*, found [\d.]+ GB; free"
    ):
        check_space(tmp_path, 10**18)


def test_what_lies_there_already_needs_no_space(tmp_path: Path) -> None:
    """A run that goes on has written some of what it needs; here a terabyte, in a file of holes."""
    total = shutil.disk_usage(tmp_path).free + (1 << 39)
    with pytest.raises(ResourceError):
        check_space(tmp_path, total)
    (tmp_path / "stage").mkdir()
    with (tmp_path / "stage/model.data").open("wb") as file:
        file.truncate(1 << 40)
    check_space(tmp_path, total)
