# SPDX-License-Identifier: Apache-2.0
"""Two models side by side through a layer: what is seen at each point, and what goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import float_models
from float_models import FloatModel
from orinkit.ops.description import rms_norm
from orinkit_export import streams
from orinkit_export.calibrate import Hidden
from orinkit_export.folds import Arrays
from orinkit_export.streams import ORDER, Seen, Streams
from tolerances import RELATIVE_ERROR, relative_error

Float32 = streams.Float32
MATRICES: dict[str, tuple[str, ...]] = {"norm1": ("qkv.weight", "qkvz.weight"), "mixer": ("o.weight", "out.weight")}
MATRICES |= {"norm2": ("gate_up.weight",), "inner": ("down.weight",)}
SEQUENCES, TOKENS = 2, 24


@pytest.fixture(scope="module", params=("qwen3_5-2-2", "llama3"))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    return float_models.small(request.param, tmp_path_factory.mktemp(request.param))


class Watched(Hidden):
    """Keeps the most bytes that lie there."""

    most = 0

    def write(self, shape: tuple[int, ...], rows: Iterator[Float32], name: str = "next.npy") -> None:
        super().write(shape, rows, name)
        self.most = max(self.most, sum(path.stat().st_size for path in self._folder.iterdir()))


class Layer:
    """Layer 0 of a model with rounded matrices, on rows in which the two models differ already."""

    def __init__(self, model: FloatModel, folder: Path) -> None:
        self.model, self.arrays, self.shared = model, model.layer(0), {}
        if model.spec.layers[0].attention:
            self.shared = {name: array for name, array in model.weights.items() if name.startswith("rope.")}
        shape = (SEQUENCES, TOKENS, model.spec.hidden)
        self.expected = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        noise = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        self.found = np.asarray(self.expected + np.float32(0.1) * noise)
        self.hidden = Watched(folder)
        pairs = (np.concatenate(pair, axis=1) for pair in zip(self.expected, self.found, strict=True))
        self.hidden.write((*shape[:2], 2 * shape[2]), pairs)
        self.hidden.commit(0)
        self.rounded = self.arrays | {
            name: np.round(array, 1) for name, array in self.arrays.items() if name in sum(MATRICES.values(), ())
        }

    def run(self, arrays: Arrays, rows: Float32) -> dict[str, Float32]:
        """What all sequences become at the parts of the layer, put together."""
        parts = [self.model.runner.layer(0, arrays, self.shared, sequence) for sequence in rows]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def through(self) -> dict[str, Seen]:
        """What is seen at each point while matrix after matrix is replaced."""
        spec, seen = self.model.spec, {}
        passing = Streams(self.model.runner, spec, 0, self.arrays, self.shared, self.hidden)
        for point in ORDER:
            seen[point] = passing.see(point, lambda _: None)
            name = next(name for name in MATRICES[point] if name in self.arrays)
            passing.quantised[name] = self.rounded[name]
        passing.finish(lambda _: None)
        return seen


@pytest.fixture
def layer(model: FloatModel, tmp_path: Path) -> Layer:
    return Layer(model, tmp_path)


def test_either_model_goes_on_as_if_it_ran_alone(layer: Layer) -> None:
    layer.through()
    layer.hidden.commit(1)
    expected, found = np.split(layer.hidden.read(1), 2, axis=2)
    for rows, arrays, start in ((expected, layer.arrays, layer.expected), (found, layer.rounded, layer.found)):
        alone = layer.run(arrays, start)["out"]
        assert relative_error(rows.reshape(alone.shape), alone) < RELATIVE_ERROR["float32"]


def test_inputs_are_those_of_the_quantised_model_and_lacking_is_what_its_float_matrix_does_not_make(
    layer: Layer,
) -> None:
    seen, eps = layer.through(), layer.model.spec.norm_eps
    float_run, run = layer.run(layer.arrays, layer.expected), layer.run(layer.rounded, layer.found)
    o = next(layer.arrays[name] for name in MATRICES["mixer"] if name in layer.arrays)
    flat = layer.found.reshape(-1, layer.found.shape[2])
    x = {
        "norm1": rms_norm(flat, layer.arrays["norm1"], eps),
        "mixer": run["mixer"],
        "norm2": rms_norm(run["middle"], layer.arrays["norm2"], eps),
        "inner": run["inner"],
    }
    lacking = {
        "norm1": rms_norm(layer.expected.reshape(flat.shape), layer.arrays["norm1"], eps) - x["norm1"],
        "mixer": float_run["middle"] - (flat + x["mixer"] @ o.T),
        "norm2": rms_norm(float_run["middle"], layer.arrays["norm2"], eps) - x["norm2"],
        "inner": float_run["out"] - (run["middle"] + x["inner"] @ layer.arrays["down.weight"].T),
    }
    for point in ORDER:
        count = len(x[point])
        assert seen[point].inputs.tokens == count == SEQUENCES * TOKENS
        products = lacking[point].T @ x[point] / count
        assert relative_error(seen[point].inputs.gram, x[point].T @ x[point] / count) < RELATIVE_ERROR["float32"]
        assert relative_error(seen[point].lacking, products) < RELATIVE_ERROR["float16"]
        assert seen[point].lacking.shape[0] == layer.model.spec.hidden


def test_no_more_rows_lie_there_than_were_counted(layer: Layer) -> None:
    layer.through()
    counted = 4 * SEQUENCES * TOKENS * streams.most_columns(layer.model.spec)
    headers = 4 * 128
    assert 0.9 * counted < layer.hidden.most <= counted + headers
    layer.hidden.commit(1)
    assert [path.name for path in layer.hidden._folder.iterdir()] == ["hidden-1.npy"]
