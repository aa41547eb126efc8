# SPDX-License-Identifier: Apache-2.0
"""The parent's side of the builder's process; how builds end is tested in test_build.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import standin
from orinkit.device.child import running
from orinkit.errors import EngineError


def test_the_child_tells_of_the_machine_and_is_gone_afterwards(tmp_path: Path) -> None:
    with standin.installed(sm=87), running(tmp_path, Path("/"), 60) as child:
        found = child.machine()
        process = child.pid
        os.kill(process, 0)
    assert (found.sm, found.tensorrt) == (87, standin.VERSION)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_child_that_says_nothing_is_told_with_its_log(tmp_path: Path) -> None:
    message = rf"exit code 1 .*ValueError: .*the whole log is {tmp_path}/build\.log"
    with (
        standin.installed(version="no version"),
        running(tmp_path, Path("/"), 60) as child,
        pytest.raises(EngineError, match=message),
    ):
        child.machine()
    assert "Traceback" in (tmp_path / "build.log").read_text(encoding="utf-8")


def test_the_deadline_counts_from_the_start(tmp_path: Path) -> None:
    with (
        standin.installed(),
        running(tmp_path, Path("/"), -1) as child,
        pytest.raises(EngineError, match="took longer than -1 s, in the phase 'starting'"),
    ):
        child.machine()
