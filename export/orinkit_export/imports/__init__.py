# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are quantised already: their integers, scales and zero points as they are (docs/recipes.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orinkit.errors import CheckpointError, ConfigError
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


def stored_format(checkpoint: Checkpoint, is_tied: bool) -> Format | None:
    """How the modules of `checkpoint` are quantised according to its config.json; None if it is a float checkpoint.

    Raises CheckpointError: a format that orinkit does not read, or one that the ops cannot represent exactly; a
    quantised embedding, or a quantised head that is tied to a wide one.
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
    found = _PARSERS[method](settings)
    if not any(name.endswith(f".{found.marker}") for name in checkpoint.names):
        raise CheckpointError(
            f"{checkpoint.folder}: expected modules with {found.marker}, as config.json says {method}, found none; if "
            "the weights are float, remove quantization_config from config.json"
        )
    for name in ("model.embed_tokens", *(("lm_head",) if is_tied else ())):
        if f"{name}.{found.marker}" in checkpoint:
            refuse(name, "expected the embedding, and a head that is tied to it, to be wide, found it quantised")
    return found


def check_method(method: str, checkpoint: Checkpoint, recipe: Path) -> None:
    """Raises ConfigError: the method `import` for a float checkpoint, or another one for a quantised checkpoint."""
    is_quantised = bool(section(checkpoint.text_config, "quantization_config"))
    where = f"{recipe}: quantise: method: expected"
    if is_quantised and method != "import":
        raise ConfigError(
            f"{where} import, as {checkpoint.folder} is quantised already, found {method}; write quantise: "
            f"{{method: import}}, or {INSTEAD}"
        )
    if method == "import" and not is_quantised:
        raise ConfigError(
            f"{where} another method than import, as {checkpoint.folder} is not quantised (config.json has no "
            "quantization_config); write quantise: {method: awq+gptq}"
        )


__all__ = ["Array", "Format", "Fuse", "Integers", "Part", "check_method", "integers", "stored_format"]
