# SPDX-License-Identifier: Apache-2.0
"""What a model's facts tell of its graph is what the exported graph holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import small_models
from orinkit.engines.launches import output_width
from orinkit.engines.program import Program, read_program
from orinkit.memory import outline
from orinkit.recipe import Recipe
from small_models import INT4, NAMES

MIXED = small_models.recipe(
    "float16",
    group_size=32,
    formats={"layers.0.down": "int8", "layers.1.gate_up": "int8", "layers.1.down": "int4-g64", "head": "int8"},
)
WIDE_HEAD = small_models.recipe("float16", group_size=32, head="int8", embedding="float16")


def stored(program: Program) -> dict[str, int]:
    """Bytes of each weight and its scales."""
    found: Counter[str] = Counter()
    for name, weight in program.weights.items():
        stem, _, suffix = name.rpartition(".")
        found[f"{stem}.weight" if suffix in ("scale", "scales") else name] += weight.nbytes
    return dict(found)


@pytest.mark.parametrize(
    "how", [INT4, WIDE_HEAD, MIXED, small_models.recipe("float32")], ids=["int4", "int8 head", "mixed", "none"]
)
@pytest.mark.parametrize("name", NAMES)
def test_ops_and_tensors_are_those_of_the_graph(name: str, how: Recipe, tmp_path: Path) -> None:
    spec, path = small_models.export(name, tmp_path, how)
    program = read_program(path)
    made_by = {node.outputs[0]: node.name for node in program.nodes}
    expected = [
        (
            node.name,
            node.op_type,
            output_width(node),
            {made_by[value] for value in node.inputs.values() if value in made_by},
            {
                w
                for w in node.inputs.values()
                if w in program.weights and not w.endswith((".scale", ".scales", ".bias"))
            },
        )
        for node in program.nodes
    ]
    found = [(op.name, op.op_type, op.width, set(op.reads), set(op.weights)) for op in outline.ops(spec, how)]
    assert found == expected
    matrices = {node.name: node for node in program.nodes if "n" in node.attributes}
    assert {op.name: (op.n, op.k, op.has_norm) for op in outline.ops(spec, how) if op.n} == {
        name: (node.attributes["n"], node.attributes["k"], "norm" in node.inputs) for name, node in matrices.items()
    }
    sizes = {name: sum(parts) for name, parts in outline.stored_parts(spec, how).items()}
    biases = {name: nbytes for name, nbytes in stored(program).items() if name.endswith(".bias")}
    assert bool(biases) == (name == "qwen2")
    assert sizes | biases == stored(program)
