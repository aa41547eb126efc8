# SPDX-License-Identifier: Apache-2.0
"""The table of choices of the INT4 GEMM: legal on the devices that it names, and what it says of its origin."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path

import pytest
import tune_orin
import tuned_table
from tuned_table import Choice, Tile, Tuned

ROOT = Path(__file__).parents[2]

PROGRAM = """
#include <cstdio>
#include "kernels/int4_gemm/tuned.h"
using namespace orin;
using namespace orin::int4_gemm;
// Each entry at both ends: what it is, whether it is found, its blocks and splits, its shared memory.
int main() {
  for (const Tuned& entry : kTuned) {
    for (int tokens : {entry.first_tokens, entry.last_tokens}) {
      const Shape s{tokens, entry.n, entry.k, entry.group_size, true, false, false};
      Device d;
      d.sm_count = entry.sm_count, d.max_shared_bytes = entry.max_shared_bytes;
      const Choice c = tuned_or_chosen(s, d);
      const Tile& t = kTiles[c.tile];
      std::printf("%d %d %d %d %d %d %d\\n", find_tuned(s, d) == &entry, tile_of(entry) == c.tile,
                  c.blocks == ceil_div(tokens, t.tokens) * ceil_div(s.n, t.rows), c.blocks * c.splits <= 3 * d.sm_count,
                  c.splits, many_shared(s, t) <= d.max_shared_bytes, c.normalises_first);
      d.sm_count += 1;  // another device, and zero points, are left to the costs
      Shape zeros = s;
      zeros.has_zeros = true;
      if (find_tuned(s, d) || find_tuned(zeros, d)) return 1;
    }
  }
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return tmp_path_factory.mktemp("tuned")


def test_every_entry_is_found_and_can_be_launched(folder: Path) -> None:
    source = folder / "tuned.cpp"
    source.write_text(PROGRAM, encoding="utf-8")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'plugins'}"]
    subprocess.run(["g++", *flags, "-o", str(folder / "tuned"), str(source)], check=True)
    said = subprocess.run([folder / "tuned"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) > 0
    for line in said:
        found, is_tile, is_whole, is_even, splits, fits, norm_first = map(int, line.split())
        assert (found, is_tile, is_whole, fits, norm_first) == (1, 1, 1, 1, 1)
        assert splits == 1 or (is_even and splits <= tuned_table.MOST_SPLITS)


def test_entries_are_of_whole_ranges_that_do_not_overlap() -> None:
    for section in tuned_table.sections(tuned_table.TABLE.read_text(encoding="utf-8")).values():
        entries = tuned_table.entries(section)
        assert entries
        assert all(17 <= entry.first_tokens <= entry.last_tokens for entry in entries)
        for entry, following in pairwise(entries):
            assert (entry.n, entry.k) != (following.n, following.k) or entry.last_tokens < following.first_tokens


@pytest.mark.parametrize("sm_count", tune_orin.ORINS)
def test_orins_entries_are_what_the_costs_say_and_are_labelled_so(folder: Path, sm_count: int) -> None:
    """Otherwise: make tune-orin."""
    section = tuned_table.sections(tuned_table.TABLE.read_text(encoding="utf-8"))[tune_orin.name(sm_count)]
    assert "not measured on this GPU" in section.splitlines()[0]
    assert tuned_table.entries(section) == tune_orin.projected(folder, sm_count)


def test_a_section_is_replaced_and_others_stay(tmp_path: Path) -> None:
    table = tmp_path / "tuned_table.h"
    first = Tuned(132, 232448, 1024, 3584, 128, 33, 64, 32, 64, 2, 4, 2)
    tuned_table.write("One", "measured", [first], table)
    tuned_table.write("Two", "by reasoning", [], table)
    tuned_table.write("One", "measured again", [], table)
    found = tuned_table.sections(table.read_text(encoding="utf-8"))
    assert {name: tuned_table.entries(section) for name, section in found.items()} == {"One": [], "Two": []}
    assert "measured again" in found["One"]
    tuned_table.write("One", "measured", [first], table)
    assert tuned_table.entries(tuned_table.sections(table.read_text(encoding="utf-8"))["One"]) == [first]


@pytest.mark.parametrize("tokens", [17, 64, 2048])
def test_candidates_keep_to_the_workspace_that_is_planned_for(tokens: int) -> None:
    tiles = [Tile(32, 64, 2), Tile(64, 256, 1)]
    found = tuned_table.candidates(tokens, 1024, 3584, tiles, 132)
    assert len(set(map(astuple, found))) == len(found)
    assert {(choice.tile_tokens, choice.tile_rows, choice.tile_shares) for choice in found} == set(tiles)
    assert Choice(64, 256, 1, 1, min(4, -(-tokens // 64))) in found
    for choice in found:
        blocks = -(-tokens // choice.tile_tokens) * -(-1024 // choice.tile_rows)
        assert choice.splits == 1 or blocks * choice.splits <= 2 * 132
