# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from orinkit_export.report import data
from orinkit_export.report.data import Report


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A desk with a small calibrated model that was built: `out` and `out.report`."""
    from programs import finish, small_desk

    folder = small_desk(tmp_path_factory.mktemp("calibrated"))
    finish(folder)
    return folder


@pytest.fixture(scope="session")
def report(calibrated: Path) -> Report:
    """Its report."""
    return data.read(calibrated / "out")
