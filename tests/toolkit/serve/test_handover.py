# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from orinkit.errors import ConfigError
from orinkit.serve.handover import Handover


@pytest.mark.parametrize("keys", [None, Path("keys")])
def test_the_command_line_carries_everything(keys: Path | None) -> None:
    made = Handover(Path("bundle"), "onnxruntime", keys, 7, 42)
    assert Handover.of(made.arguments()) == made


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c", "x", "1"], ["a"] * 6])
def test_a_worker_started_by_hand_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="orin-run serve"):
        Handover.of(arguments)
