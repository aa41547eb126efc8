# SPDX-License-Identifier: Apache-2.0
"""The `tensorrt` engine on the stand-in for TensorRT: the same tokens as ONNX Runtime, by the rules that TensorRT has.

The stand-in is ours. What these tests show is that the engine keeps the documented rules, not that TensorRT does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import standin
from orinkit.bundle import Bundle
from orinkit.engines import open_engine
from orinkit.engines.base import Profile
from orinkit.errors import EngineError, PlanError
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Row
from orinkit.runtime.steps import Stepper

SHAPES = Shapes(capacity=1024, slots=4, chunk=32)


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with standin.installed():
        yield standin.built_bundle(demo_bundle, tmp_path_factory.mktemp("trt") / "demo", SHAPES)


@pytest.fixture
def engine(bundle: Bundle) -> Any:
    return standin.opened(bundle)


def prompts(count: int) -> list[tuple[int, ...]]:
    return [tuple((7 * i + 13 * j) % 4000 + 1 for j in range(3 + 29 * i % 90)) for i in range(count)]


def prefill(stepper: Stepper, slot: int, ids: tuple[int, ...]) -> int:
    chunk = stepper.shapes.chunk
    for start in range(0, len(ids), chunk):
        logits = stepper.prefill([Row(slot, start, ids[start : start + chunk])])
    return int(logits[0].argmax())


def alone(stepper: Stepper, ids: tuple[int, ...], count: int) -> list[int]:
    tokens = [prefill(stepper, 0, ids)]
    while len(tokens) < count:
        tokens.append(int(stepper.decode([Row(0, len(ids) + len(tokens) - 1, (tokens[-1],))])[0].argmax()))
    return tokens


def test_the_tokens_of_onnxruntime_alone_and_side_by_side(bundle: Bundle, engine: Any) -> None:
    reference = Stepper(open_engine("onnxruntime", bundle.graph, bundle.manifest.model), SHAPES)
    stepper = Stepper(engine, SHAPES)
    asked = prompts(6)
    expected = [alone(reference, ids, 8) for ids in asked]
    assert [alone(stepper, ids, 8) for ids in asked] == expected
    found = [[prefill(stepper, slot, ids)] for slot, ids in enumerate(asked[: SHAPES.slots])]
    while len(found[0]) < 8:
        rows = [Row(slot, len(asked[slot]) + len(tokens) - 1, (tokens[-1],)) for slot, tokens in enumerate(found)]
        for tokens, logits in zip(found, stepper.decode(rows), strict=True):
            tokens.append(int(logits.argmax()))
    assert found == expected[: SHAPES.slots]


def test_nothing_is_allocated_after_the_contexts_are_made(engine: Any) -> None:
    stepper = Stepper(engine, SHAPES)
    before = engine.gpu.num_allocations, len(standin.device().memory)
    alone(stepper, prompts(3)[2], 6)
    assert (engine.gpu.num_allocations, len(standin.device().memory)) == before


def test_a_context_has_one_profile_for_life(engine: Any) -> None:
    caches = engine.caches(SHAPES.slots, SHAPES.capacity, SHAPES.chunk)
    wanted = [Profile("prefill", SHAPES.chunk, 4), Profile("decode", 4, 4), Profile("decode 1", 1, 1)]
    wanted.append(Profile("as many tokens as a decode step", 4, 1))
    contexts = [engine.context(profile, caches) for profile in wanted]
    assert [engine.profile_index(context.profile) for context in contexts] == [0, 1, 1, 0]
    assert [name for name in dir(contexts[0]) if "profile" in name.lower()] == ["_profile", "profile"]


def test_a_plan_with_auxiliary_streams_works(
    demo_bundle: Path, tmp_path: Path, bundle: Bundle, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(Stepper(engine, SHAPES), prompts(2)[1], 4)
    with standin.installed(aux=2):
        made = standin.built_bundle(demo_bundle, tmp_path / "demo", SHAPES, aux_streams=3)
        with_streams = standin.opened(made)
        assert with_streams.engine.num_aux_streams == 2
        assert alone(Stepper(with_streams, SHAPES), prompts(2)[1], 4) == expected


@pytest.mark.parametrize("version", ["10.3.0", "11.4.1"])
def test_the_same_code_serves_every_release(
    version: str, demo_bundle: Path, tmp_path: Path, bundle: Bundle, engine: Any
) -> None:
    """10.3 has no stream reader; 11 has other numbers in its enums."""
    expected = alone(Stepper(engine, SHAPES), prompts(1)[0], 3)
    with standin.installed(version=version):
        target = standin.this_target(version)
        made = standin.built_bundle(demo_bundle, tmp_path / "demo", SHAPES, target)
        assert alone(Stepper(standin.opened(made), SHAPES), prompts(1)[0], 3) == expected


# What is refused


@pytest.mark.parametrize(("slots", "chunk"), [(3, 32), (4, 64)])
def test_other_shapes_than_those_of_the_plan(slots: int, chunk: int, engine: Any) -> None:
    with pytest.raises(EngineError, match=f"4 slots and chunks of 32 tokens.*found {slots} and {chunk}"):
        engine.caches(slots, 1024, chunk)


def test_a_profile_that_the_plan_has_not(engine: Any) -> None:
    with pytest.raises(EngineError, match="expected a profile of the plan that holds"):
        engine.context(Profile("long", 33, 1), engine.caches(4, 1024, 32))


def test_caches_of_another_engine(engine: Any) -> None:
    class Foreign:
        slots, capacity, nbytes = 1, 1, 0

    with pytest.raises(EngineError, match="caches made by this engine"):
        engine.context(Profile("decode", 1, 1), Foreign())


# Plans


def test_without_a_plan_there_is_advice(demo_bundle: Path, tmp_path: Path, bundle: Bundle) -> None:
    made = standin.board_bundle(demo_bundle, tmp_path / "demo")
    with pytest.raises(PlanError, match="expected a plan for this machine, found none; build it with: orin-run build"):
        standin.opened(made)


def test_a_plan_of_another_tensorrt_is_not_deserialised(bundle: Bundle, tmp_path: Path) -> None:
    """Case F19: the record is looked at first, and tells both releases."""
    with standin.installed(version="10.16.3.1"), pytest.raises(PlanError) as caught:
        standin.opened(bundle)
    assert f"one built with TensorRT {standin.VERSION}, here it is 10.16.3.1" in str(caught.value)


def test_a_damaged_plan_with_a_good_record_is_refused_by_tensorrt(
    demo_bundle: Path, tmp_path: Path, bundle: Bundle
) -> None:
    """Case F18: what the record vouches for and TensorRT cannot read, such as a plan of a build that went wrong."""
    from hashlib import sha256

    from orinkit.engines import plan_key, plans

    made = standin.built_bundle(demo_bundle, tmp_path / "demo")
    folder = plans.folder_of(made.folder)
    (record,) = plans.records(folder)
    content = b"random bytes" * 100
    (folder / f"{record.origin.fingerprint}.plan").write_bytes(content)
    plans.write_record(
        folder, replace(record, sha256=sha256(content).hexdigest(), size=len(content)).coded(plan_key.read())
    )
    with pytest.raises(PlanError, match=r"TensorRT refuses the plan: .*Magic tag does not match; build it again"):
        standin.opened(made)


def test_without_tensorrt_there_is_advice(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "orinkit.engines.trt", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delitem(sys.modules, "orinkit.engines.trt_library", raising=False)
    with pytest.raises(EngineError, match="needs TensorRT's Python bindings, which come with JetPack"):
        open_engine("tensorrt", bundle.graph, bundle.manifest.model)


def test_a_board_needs_no_onnx() -> None:
    """Neither the reader of graphs nor ONNX Runtime is there on JetPack 6."""
    code = """
import sys
for name in ("onnx", "onnx_ir", "onnxruntime", "ml_dtypes"):
    sys.modules[name] = None
import orinkit.device.build, orinkit.device.builder, orinkit.engines.trt, orinkit.runtime.start
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=standin.environment(), capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
