# SPDX-License-Identifier: Apache-2.0
"""The table plugins/kernels/int4_gemm/tuned_table.h: a section for each GPU, which says where its choices come from.

A section is a comment `// == NAME: ORIGIN` and one line of braces for each entry, in the order of the struct `Tuned`
in tuned.h. The library takes an entry for exactly its GPU, matrix and range of tokens, and select.h's costs elsewhere.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "plugins/kernels/int4_gemm/tuned_table.h"
HEAD = """\
// SPDX-License-Identifier: Apache-2.0
// Written by `make tune` (the GPU of the machine) and `make tune-orin` (by reasoning); read by tuned.h.
// clang-format off
"""
TOKENS = (32, 64, 128, 256, 512, 1024, 2048)
"""Last tokens of the ranges that are measured; a range begins behind the one before, or at 17."""
MOST_SPLITS = 16


class Tile(NamedTuple):
    """What names one of kTiles."""

    tokens: int
    rows: int
    shares: int


@dataclass(frozen=True)
class Tuned:
    """One entry."""

    sm_count: int
    max_shared_bytes: int
    n: int
    k: int
    group_size: int
    first_tokens: int
    last_tokens: int
    tile_tokens: int
    tile_rows: int
    tile_shares: int
    splits: int
    group_m: int

    @property
    def choice(self) -> Choice:
        return Choice(self.tile_tokens, self.tile_rows, self.tile_shares, self.splits, self.group_m)


@dataclass(frozen=True)
class Choice:
    """A tile, parts of the columns, and how many tiles along the tokens run together."""

    tile_tokens: int
    tile_rows: int
    tile_shares: int
    splits: int
    group_m: int


def first_of(last: int) -> int:
    """First tokens of the range that ends at `last`."""
    return max((tokens + 1 for tokens in TOKENS if tokens < last), default=17)


def sections(text: str) -> dict[str, str]:
    """The lines of each GPU's section by its name."""
    parts = text.split("// == ")[1:]
    return {part.split(":")[0]: "// == " + part for part in parts}


def entries(section: str) -> list[Tuned]:
    lines = [line for line in section.splitlines() if line.startswith("{")]
    return [Tuned(*map(int, line.strip("{},").split(","))) for line in lines]


def write(name: str, origin: str, found: Iterable[Tuned], table: Path = TABLE) -> None:
    """Put a GPU's section in the place of the one it had."""
    lines = [f"// == {name}: {origin}", *("{" + ", ".join(map(str, astuple(entry))) + "}," for entry in found)]
    old = sections(table.read_text(encoding="utf-8")) if table.exists() else {}
    parts = old | {name: "\n".join(lines) + "\n"}
    table.write_text(HEAD + "".join(parts[key] for key in sorted(parts)), encoding="utf-8")


def ask(
    folder: Path, sm_count: int, shared_bytes: int, cases: Sequence[tuple[int, int, int]]
) -> tuple[list[Tile], list[Choice]]:
    """The tiles of select.h, and what it chooses for each (tokens, n, k). Compiles a program in `folder` by g++."""
    program = folder / "int4_gemm_choices"
    source = Path(__file__).parent / "int4_gemm_choices.cpp"
    subprocess.run(["g++", "-std=c++17", f"-I{ROOT / 'plugins'}", "-o", str(program), str(source)], check=True)
    lines = "".join(f"{tokens} {n} {k}\n" for tokens, n, k in cases)
    command = [str(program), str(sm_count), str(shared_bytes)]
    said = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout.split("\n")
    count = int(said[0])
    tiles = [Tile(*map(int, line.split())) for line in said[1 : 1 + count]]
    return tiles, [Choice(*map(int, line.split())) for line in said[1 + count :] if line]


def candidates(tokens: int, n: int, k: int, tiles: Sequence[Tile], sm_count: int) -> list[Choice]:
    """Legal choices: splits only up to two blocks per multiprocessor, which is what workspaces are planned for."""
    found = []
    for tile in tiles:
        along = -(-tokens // tile.tokens)
        blocks, chunks = along * -(-n // tile.rows), -(-k // 128)
        splits = [s for s in (1, 2, 3, 4, 6, 8, 12, MOST_SPLITS) if s <= chunks]
        for count in (s for s in splits if s == 1 or blocks * s <= 2 * sm_count):
            groups = {min(along, deep) for deep in (4, 8, 16)} if count == 1 else {min(along, 8)}
            found += [Choice(*tile, count, deep) for deep in sorted(groups)]
    return found
