# SPDX-License-Identifier: Apache-2.0
"""Make the oracle's fixtures: what `transformers` computes for the random models and for the demo model.

Run: python tests/oracle/make_fixtures.py [--check]
Needs torch and transformers (requirements.txt), and orinkit installed. Says for every model by how much the live logits
differ from the committed ones, then writes them; with --check it writes nothing and fails where they differ.

tests/data/oracle/<model>.npz holds
  digest       sha256 of the checkpoint's config.json and model.safetensors
  made_with    versions of torch and transformers
  tokens_<i>   int32 [T], one prompt
  logits_<i>   float32 [R, V] of its last R positions, all of them (R = T) for the random models
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from random_models import MODELS, digest
from tokenizers import Tokenizer

DATA = Path(__file__).resolve().parents[1] / "data"
TOLERANCE = 1e-4
"""Largest difference of live from committed logits: another CPU or release sums in another order, no more."""

DEMO_PROMPT = (
    "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n"
    "Arise, fair sun, and kill the envious moon,\nWho is already sick and pale with grief,\n"
)
DEMO_ROWS = 12
"""Positions of which the demo model's logits are kept."""

Fixture = dict[str, NDArray[Any]]


def logits_of(folder: Path, prompts: list[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
    """float32 logits [T, V] of every prompt, each computed by itself in one pass."""
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    if any(loading.values()):
        raise SystemExit(f"{folder.name}: expected transformers to read every tensor, found {loading}")
    with torch.no_grad():
        return [model(torch.from_numpy(ids[None].astype(np.int64))).logits[0].numpy() for ids in prompts]


def fixture(folder: Path, prompts: list[NDArray[np.int32]], rows: int | None = None) -> Fixture:
    """The fixture of the checkpoint in `folder`, with the logits of the last `rows` positions (None: of all)."""
    made = {
        "digest": np.array(digest(folder)),
        "made_with": np.array(f"torch {torch.__version__}, transformers {transformers.__version__}"),
    }
    for index, (ids, logits) in enumerate(zip(prompts, logits_of(folder, prompts), strict=True)):
        made |= {f"tokens_{index}": ids, f"logits_{index}": logits[-(rows or len(ids)) :]}
    return made


def live() -> dict[str, Fixture]:
    """Every fixture by name, computed now."""
    made = {}
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            model.write(Path(folder))
            made[model.name] = fixture(Path(folder), model.token_ids())
    demo = DATA / "demo-model"
    ids = Tokenizer.from_file(str(demo / "tokenizer.json")).encode(DEMO_PROMPT, add_special_tokens=False).ids
    made[demo.name] = fixture(demo, [np.array(ids, np.int32)], DEMO_ROWS)
    return made


def difference(made: Fixture, path: Path) -> float:
    """Largest difference from the logits committed at `path`; infinite when they are not of the same inputs."""
    if not path.exists():
        return float("inf")
    with np.load(path) as found:
        if set(found) != set(made):
            return float("inf")
        same = all(np.array_equal(found[name], made[name]) for name in found if not name.startswith(("logits", "made")))
        return max(
            float(np.abs(found[name] - made[name]).max()) if same else float("inf")
            for name in found
            if name.startswith("logits")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    check = parser.parse_args().check
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    largest = 0.0
    for name, made in live().items():
        path = DATA / "oracle" / f"{name}.npz"
        found = difference(made, path)
        largest = max(largest, found)
        print(f"{name:12} live against committed: {found:.1e}")
        if not check:
            np.savez_compressed(path, **made)
    if check and largest > TOLERANCE:
        sys.exit(f"expected differences of at most {TOLERANCE}, found {largest:.1e}; run `make oracle` and look why")


if __name__ == "__main__":
    main()
