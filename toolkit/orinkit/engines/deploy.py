# SPDX-License-Identifier: Apache-2.0
"""The deploy graph's weights: network inputs of the plan, filled from model.data when an engine starts.

A plan is built from `deploy.onnx`, in which no weight is left; `deploy.json` says where the bytes of each lie. INT4
matrices are wanted in the kernel layout, whoever reads them, so that an embedding and a head that is tied to it have
one input; it is called `<name>.packed`, because `model.data` holds the canonical layout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from orinkit import config
from orinkit.errors import BundleError, ConfigError

PACKED = ".packed"
"""What the name of an input in the kernel layout ends with."""


@dataclass(frozen=True)
class WeightInput:
    """One weight: name of the network input, NumPy dtype, shape, and its bytes in model.data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class PackedMatrix:
    """The inputs of one INT4 matrix in the kernel layout, by name."""

    weight: str
    scales: str
    zeros: str | None = None


@dataclass(frozen=True)
class DeployWeights:
    """What `deploy.json` holds."""

    weights: tuple[WeightInput, ...]
    packed: tuple[PackedMatrix, ...]

    def validate(self) -> None:
        names = [weight.name for weight in self.weights]
        if len(set(names)) != len(names):
            raise ConfigError("weights: expected each name once, found one twice")
        for matrix in self.packed:
            missing = {matrix.weight, matrix.scales, matrix.zeros or matrix.weight} - set(names)
            if missing:
                raise ConfigError(f"packed: expected names of weights, found {min(missing)!r}")


def encode(weights: DeployWeights) -> bytes:
    """The bytes of `deploy.json`."""
    return (json.dumps(config.dump(weights), sort_keys=True) + "\n").encode()


def decode(raw: bytes) -> DeployWeights:
    """What `raw` says. Raises BundleError."""
    try:
        return config.parse(json.loads(raw), DeployWeights, "deploy.json")
    except (ConfigError, ValueError, RecursionError) as error:
        raise BundleError(f"deploy.json: {str(error)[:300]}; export the bundle again") from None
