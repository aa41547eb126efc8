# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from orinkit.engines.room import Room, check_room, find_room
from orinkit.errors import ResourceError
from orinkit.memory.needs import memory_plan
from toolkit.memory.models import HYBRID, recipe


def test_the_engine_on_the_cpu_has_what_is_available(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4000 kB\nMemFree: 10 kB\nMemAvailable: 3000 kB\n")
    assert find_room("onnxruntime", tmp_path) == Room(3000 * 1024, is_shared=True)


def test_what_is_not_known_is_not_refused(tmp_path: Path) -> None:
    assert find_room("onnxruntime", tmp_path) is None
    check_room(HYBRID, recipe(), "onnxruntime", None)


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_plan_fits_up_to_the_last_byte(is_shared: bool) -> None:
    """Pinned memory counts where it is the same memory; what the process has already never does."""
    plan = memory_plan(HYBRID, recipe(), "cuda", sm_count=8)
    need = plan.total("device", "host") if is_shared else plan.total("device")
    check_room(HYBRID, recipe(), "cuda", Room(need, is_shared, sm_count=8))
    with pytest.raises(ResourceError) as caught:
        check_room(HYBRID, recipe(), "cuda", Room(need - 1, is_shared, sm_count=8))
    gigabytes = f"{need / 1e9:.2f} GB"
    assert str(caught.value).startswith(f"engine cuda: expected {gigabytes} of free memory (weights 0.")
    assert str(caught.value).endswith(
        f", found {gigabytes}; stop other programs, or export with fewer slots or less capacity"
    )


@pytest.mark.gpu
def test_a_card_tells_its_free_memory() -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-python", exc_type=ImportError)
    room = find_room("cuda")
    if room is None:
        pytest.skip("needs an NVIDIA GPU")
    assert room.nbytes > 0
    assert room.sm_count is not None
