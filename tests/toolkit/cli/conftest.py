# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orinkit.cli import main
from orinkit.engines import ENGINES
from toolkit.runtime.fake_program import make_bundle, open_fake


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a verb of orin-run with the fake engine."""
    monkeypatch.setitem(ENGINES, "fake", open_fake)

    def invoke(verb: str, *arguments: str | Path) -> Result:
        engine = ["--engine", "fake"] if verb != "inspect" else []
        return CliRunner().invoke(main, [verb, *map(str, arguments), *engine])

    return invoke
