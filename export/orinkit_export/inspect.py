# SPDX-License-Identifier: Apache-2.0
"""What a recipe makes of its checkpoint, in lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from orinkit_export import quantise
from orinkit_export.plan import Plan


def describe(plan: Plan) -> Iterator[str]:
    """Architecture, stored tensors by role with format and size, and the checkpoint's tensors that are not used."""
    spec, recipe = plan.spec, plan.recipe
    attention = [layer.attention for layer in spec.layers if layer.attention]
    yield f"recipe: {recipe.name}, {recipe.quantise.method}, group size {recipe.quantise.group_size}"
    yield f"model: {spec.architecture}, hidden {spec.hidden}"
    yield f"layers: {len(spec.layers)}, {len(attention)} with attention"
    yield f"vocabulary: {spec.vocab}, {'tied' if spec.tied else 'untied'} head, end tokens {list(spec.eos)}"
    yield f"positions: {spec.max_positions}, capacity {recipe.shapes.capacity}"
    sizes: Counter[tuple[str, str]] = Counter()
    undecided = {weight.name for weight in plan.undecided()}
    for weight in plan.stored():
        chosen = quantise.chosen_format(weight, recipe)
        shown = chosen.kind if weight.integers else str(chosen)  # integers bring groups of their own
        shown = "undecided" if weight.name in undecided else shown
        sizes[weight.role, shown] += quantise.stored_bytes(weight, recipe)
    for (role, kind), size in sorted(sizes.items()):
        yield f"  {role:<12} {kind:<9} {size / 1e6:10.2f} MB"
    yield f"  {'total':<22} {plan.data_bytes() / 1e6:10.2f} MB"
    for prefix, count in sorted(plan.unused().items()):
        yield f"not used: {prefix}.* ({count} tensors)"
