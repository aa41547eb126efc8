# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are quantised already: their integers, scales and zero points as they are (docs/recipes.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orinkit.errors import CheckpointError
from orinkit_export.checkpoint import Checkpoint
from orinkit_export.imports import awq, compressed_tensors, gptq
from orinkit_export.imports.integers import Array, Fuse, Integers, Part, integers
from orinkit_export.imports.module import INSTEAD, Format, refuse, section
from orinkit_export.safetensors import brief

_PARSERS: dict[str, Callable[[Mapping[str, Any]], Format]] = {
    "awq": awq.parse,
    "gptq": gptq.parse,
    "compressed-tensors": compressed_tensors.parse,
}
"""By quant_method."""


def stored_format(checkpoint: Checkpoint) -> Format | None:
    """How the modules of `checkpoint` are quantised according to its config.json; None if it is a float checkpoint.

    Raises CheckpointError: a format that orinkit does not read, or one that the ops cannot represent exactly.
    """
    settings = section(checkpoint.text_config, "quantization_config")
    if not settings:
        return None
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _PARSERS:
        raise CheckpointError(
            f"config.json: quantization_config: quant_method: expected one of {', '.join(_PARSERS)}, "
            f"found {brief(method)}; {INSTEAD}"
        )
    return _PARSERS[method](settings)


def check_vocabulary(checkpoint: Checkpoint, stored: Format, is_tied: bool) -> None:
    """Raises CheckpointError: a quantised embedding, or a quantised head where the two are tied."""
    for name in ("model.embed_tokens", *(("lm_head",) if is_tied else ())):
        if f"{name}.{stored.marker}" in checkpoint:
            refuse(name, "expected the embedding, and a head that is tied to it, to be wide, found it quantised")


__all__ = ["Array", "Format", "Fuse", "Integers", "Part", "check_vocabulary", "integers", "stored_format"]
