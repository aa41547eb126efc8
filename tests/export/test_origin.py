# SPDX-License-Identifier: Apache-2.0
"""What a bundle says that it is made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orinkit_export import origin, plan
from programs import SMALL, small_desk, write_recipe


def test_a_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", list[int]()
    content = bytes(range(256)) * 40_000  # more than is read at a time
    path.write_bytes(content)
    assert origin.digest(path, seen.append) == hashlib.sha256(content).hexdigest()
    assert sum(seen) == len(content)
    assert len(seen) > 1


def test_every_file_of_the_checkpoint_is_named_with_size_and_digest(tmp_path: Path) -> None:
    planned = plan.read(small_desk(tmp_path) / "recipe.yaml")
    found = origin.provenance(planned)
    wanted = {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in planned.checkpoint.files()
    }
    assert {entry.path: (entry.size, entry.sha256) for entry in found.files} == wanted
    assert found.tool.startswith("orinkit ")


@pytest.mark.parametrize(("method", "sections"), [("rtn", {"evaluation"}), ("awq+gptq", {"evaluation", "calibration"})])
def test_texts_are_named_where_they_are_used(method: str, sections: set[str], tmp_path: Path) -> None:
    folder = small_desk(tmp_path)
    write_recipe(folder / "recipe.yaml", SMALL | {"quantise": {"method": method, "group_size": 32}})
    assert set(origin.provenance(plan.read(folder / "recipe.yaml")).texts) == sections
