# SPDX-License-Identifier: Apache-2.0
"""The gated delta kernels against the reference: shapes, lengths, ragged batches, padding, states of every token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gated_delta_cases import QWEN_LARGE, QWEN_MIDDLE, QWEN_SMALL, Array, Heads, Launch, Row, step
from op_cases import Case, named
from orinkit.engines.kernels import KernelLibrary
from orinkit.errors import EngineError
from orinkit.ops import OPS
from tolerances import RELATIVE_ERROR, relative_error

pytestmark = pytest.mark.gpu
ONE = Heads(1, 1)


def expected(case: Case) -> tuple[Array, Array, Array]:
    y, conv, rec = OPS[case.op_type].compute(case.inputs, case.attributes)
    return y, conv, rec


def assert_equal(found: tuple[Array, Array, Array], case: Case) -> None:
    """y and the states of the step's sequences within the tolerance; every other slot bit for bit as it was."""
    y, conv, rec = expected(case)
    assert relative_error(found[0], y) < RELATIVE_ERROR["float16"]
    inputs = named(case)
    lengths = np.diff(inputs["cu_seqlens"])
    live = [slot for slot, tokens in zip(inputs["slots"], lengths, strict=True) if slot >= 0 and tokens]
    for slot in range(len(rec)):
        if slot in live:
            assert np.array_equal(found[1][slot], conv[slot])
            assert relative_error(found[2][slot], rec[slot]) < RELATIVE_ERROR["float16"]
        else:
            assert found[1][slot].tobytes() == inputs["conv"][slot].tobytes()
            assert found[2][slot].tobytes() == inputs["rec"][slot].tobytes()


def first_tokens(case: Case, sequence: int, tokens: int) -> tuple[Array, ...]:
    """The inputs of a step of one sequence's first tokens alone."""
    inputs = named(case)
    begin = inputs["cu_seqlens"][sequence]
    kept = inputs | {name: inputs[name][begin : begin + tokens] for name in ("qkvz", "ba")}
    kept |= {"cu_seqlens": np.array([0, tokens], np.int32)}
    kept |= {name: inputs[name][sequence : sequence + 1] for name in ("past_lens", "slots")}
    return tuple(kept.values())


def check(case: Case, kernels: KernelLibrary, stream: Any) -> None:
    launch = Launch(case, kernels, stream)
    assert_equal(launch.run(), case)
    assert not launch.semaphores.read().any()


@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 8, 12, 16, 17, 24, 25, 63, 64, 65, 127, 128, 129, 192, 193, 300])
def test_lengths_around_every_edge(tokens: int, past: int, kernels: KernelLibrary, stream: Any) -> None:
    check(step(tokens, Heads(1, 2), [Row(tokens, past, 1)]), kernels, stream)


@pytest.mark.parametrize("tokens", [1, 5, 100])
@pytest.mark.parametrize("heads", [QWEN_SMALL, QWEN_MIDDLE, QWEN_LARGE], ids=lambda heads: f"{heads.key}-{heads.value}")
def test_shapes_of_models(heads: Heads, tokens: int, kernels: KernelLibrary, stream: Any) -> None:
    check(step(tokens, heads, [Row(tokens, 9, 2)]), kernels, stream)


@pytest.mark.parametrize("tokens", [1, 7, 90])
@pytest.mark.parametrize(
    "heads", [Heads(2, 2, 64), Heads(1, 3, 64), Heads(2, 4, 32), Heads(3, 9), Heads(5, 5)], ids=str
)
def test_odd_shapes(heads: Heads, tokens: int, kernels: KernelLibrary, stream: Any) -> None:
    check(step(tokens, heads, [Row(tokens, 3, 0)]), kernels, stream)


ROUNDS = {
    "split": Heads(1, 2),
    "whole": Heads(1, 17),
    "split-64": Heads(1, 2, 64),
    "whole-64": Heads(1, 34, 64),
    "whole-32": Heads(2, 4, 32),
}
"""One head over several blocks on a large GPU, or too many heads for that in a step of three sequences."""


@pytest.mark.parametrize("keep_steps", [False, True])
@pytest.mark.parametrize("tokens", [7, 8, 9, 15, 16, 17, 25, 33])
@pytest.mark.parametrize("heads", ROUNDS.values(), ids=ROUNDS)
def test_rounds_of_tokens(heads: Heads, tokens: int, keep_steps: bool, kernels: KernelLibrary, stream: Any) -> None:
    """Token by token around one, two and four rounds, beside shorter sequences; the state after every token."""
    rows = [Row(tokens, 5, 2), Row(1, 0, 0), Row(2, 4, 1)]  # 36 tokens at most: 12 for each, never by chunks
    case = step(17, heads, rows)
    launch = Launch(case, kernels, stream, keep_steps=keep_steps)
    assert_equal(launch.run(), case)
    assert not launch.semaphores.read().any()
    if not keep_steps:
        return
    rec_steps, conv_steps = launch.device["rec_steps"].read(), launch.device["conv_steps"].read()
    for done in range(1, tokens + 1):
        _, conv, rec = OPS[case.op_type].compute(first_tokens(case, 0, done), case.attributes)
        assert np.array_equal(conv_steps[done - 1], conv[2])
        assert relative_error(rec_steps[done - 1], rec[2]) < RELATIVE_ERROR["float16"]


@pytest.mark.parametrize("keep_steps", [False, True])
@pytest.mark.parametrize(
    ("heads", "tokens"), [(Heads(1, 2), 3), (Heads(1, 2), 16), (ONE, 33), (Heads(1, 2, 64), 33), (Heads(1, 17), 16)]
)
def test_several_tokens_beside_empty_sequences(
    heads: Heads, tokens: int, keep_steps: bool, kernels: KernelLibrary, stream: Any
) -> None:
    """No more tokens than sequences, as in a decode step, but not one of each; all but the last split columns."""
    rows = [Row(tokens, 5, 2), Row(0, 7, 0), Row(0, 0, 1), *[Row(0, 0, -1)] * (tokens - 3)]
    case = step(19, heads, rows)
    launch = Launch(case, kernels, stream, keep_steps=keep_steps)
    assert_equal(launch.run(), case)
    assert not launch.semaphores.read().any()


@pytest.mark.parametrize("tokens", [2, 16, 17, 40])
def test_tokens_give_the_same_one_by_one(tokens: int, kernels: KernelLibrary, stream: Any) -> None:
    """A step of several tokens is bit for bit what steps of one token are."""
    case = step(18, Heads(1, 2), [Row(tokens, 3, 1)])
    whole = Launch(case, kernels, stream, keep_steps=True)
    y, conv, rec = whole.run()
    inputs = named(case)
    for token in range(tokens):
        part = inputs | {name: inputs[name][token : token + 1] for name in ("qkvz", "ba")}
        part |= {"cu_seqlens": np.array([0, 1], np.int32)}
        launch = Launch(Case(case.name, case.op_type, tuple(part.values()), case.attributes), kernels, stream)
        launch.enqueue()
        out, inputs["conv"], inputs["rec"] = launch.read()
        assert out[0].tobytes() == y[token].tobytes()
    assert inputs["conv"].tobytes() == conv.tobytes()
    assert inputs["rec"].tobytes() == rec.tobytes()


@pytest.mark.parametrize("decay", [-12.0, -6.0, 0.0, 4.0, 60.0])
@pytest.mark.parametrize("tokens", [1, 200])
def test_decays_from_none_to_total(tokens: int, decay: float, kernels: KernelLibrary, stream: Any) -> None:
    check(step(1, Heads(2, 2), [Row(tokens, 4, 3)], decay=decay), kernels, stream)


RAGGED = {
    "decode": [Row(1, 9, 2), Row(1, 0, 0), Row(1, 70, 3)],
    "decode-padded": [Row(1, 9, 2), Row(1, 0, 1), Row(0, 0, -1), Row(0, 0, -1)],
    "decode-rows-of-padding": [Row(1, 0, -1), Row(1, 8, 1), Row(1, 5, -1)],
    "few": [Row(3, 9, 2), Row(1, 4, 0), Row(0, 4, 1), Row(8, 0, 3)],
    "prefill": [Row(65, 0, 2), Row(64, 0, 0), Row(130, 64, 1), Row(1, 5, 3)],
    "prefill-and-decode": [Row(1, 3, 0), Row(200, 0, 2), Row(1, 1, 3), Row(2, 2, 1)],
    "prefill-padded": [Row(70, 0, -1), Row(100, 3, 1), Row(0, 0, -1), Row(30, 0, 3), Row(64, 9, -1)],
    "all-padded": [Row(40, 0, -1), Row(0, 0, -1)],
    "prefill-empty": [Row(0, 5, 1), Row(64, 0, 2), Row(0, 0, 3), Row(63, 1, 0)],
}


@pytest.mark.parametrize("heads", [Heads(2, 4), Heads(8, 16)], ids=str)
@pytest.mark.parametrize("tail", [0, 1, 67])
@pytest.mark.parametrize("rows", RAGGED.values(), ids=RAGGED)
def test_ragged_batches(rows: list[Row], tail: int, heads: Heads, kernels: KernelLibrary, stream: Any) -> None:
    """Few heads, which a large GPU splits token by token, and more."""
    check(step(11, heads, rows, tail=tail), kernels, stream)


def test_more_sequences_than_lanes(kernels: KernelLibrary, stream: Any) -> None:
    rows = [Row(17 + 7 * (i % 5), i % 3, i) for i in range(40)]
    check(step(12, ONE, rows, slots=41), kernels, stream)
    check(step(13, Heads(1, 3), [Row(1, 2, i) for i in range(40)], slots=40), kernels, stream)


def test_a_long_prompt(kernels: KernelLibrary, stream: Any) -> None:
    check(step(14, QWEN_SMALL, [Row(2048, 0, 1)], slots=2, decay=-6.0), kernels, stream)


def test_no_drift_over_chunks_and_steps(kernels: KernelLibrary, stream: Any) -> None:
    """4,500 tokens in steps of every kind, states on the device all along, against one float32 loop."""
    whole = step(15, Heads(1, 2), [Row(4500, 0, 1)], slots=2, decay=-8.0)
    y, conv, rec = expected(whole)
    inputs = named(whole)
    done, found, states = 0, [], {name: inputs[name] for name in ("conv", "rec")}
    for tokens in (1, 64, 1000, 8, 1500, 1, 1, 77, 16, 1832):
        part = inputs | states
        part |= {name: inputs[name][done : done + tokens] for name in ("qkvz", "ba")}
        part |= {"cu_seqlens": np.array([0, tokens], np.int32), "past_lens": np.array([done], np.int32)}
        launch = Launch(Case(whole.name, whole.op_type, tuple(part.values()), whole.attributes), kernels, stream)
        launch.enqueue()
        out, states["conv"], states["rec"] = launch.read()
        found.append(out)
        done += tokens
    assert done == len(y)
    assert relative_error(np.concatenate(found), y) < RELATIVE_ERROR["float16"]
    assert np.array_equal(states["conv"][1], conv[1])
    assert relative_error(states["rec"][1], rec[1]) < RELATIVE_ERROR["float16"]


@pytest.mark.parametrize("past", [0, 6])
@pytest.mark.parametrize("heads", [Heads(2, 2), Heads(1, 2), Heads(8, 16), Heads(1, 1, 32)], ids=str)
def test_the_state_after_every_token_can_be_restored(
    heads: Heads, past: int, kernels: KernelLibrary, stream: Any
) -> None:
    import gpu

    lengths, accepted = [20, 1, 5, 4, 3], [17, 1, 5, 1, 0]
    rows = [Row(tokens, past, slot) for slot, tokens in enumerate(lengths[:3])] + [Row(4, 0, -1), Row(3, past, 4)]
    case = step(16, heads, rows, slots=5)
    launch = Launch(case, kernels, stream, keep_steps=True)
    assert_equal(launch.run(), case)
    counts = gpu.Array(np.array(accepted, np.int32))
    names = ("rec_steps", "conv_steps", "rec", "conv", "cu_seqlens", "slots")
    shape = {name: value for name, value in case.attributes.items() if name != "norm_eps"}
    arguments = kernels.arguments(
        "gated_delta_restore",
        **{name: launch.device[name].pointer for name in names},
        **shape,
        accepted=counts.pointer,
        sequences=len(rows),
    )
    kernels.launch("gated_delta_restore", arguments, stream.handle)
    restored = launch.read()
    for b, slot in enumerate(named(case)["slots"]):
        if slot < 0:
            continue
        kept = first_tokens(case, b, accepted[b] or lengths[b])
        _, conv, rec = OPS[case.op_type].compute(kept, case.attributes)
        assert np.array_equal(restored[1][slot], conv[slot])
        assert relative_error(restored[2][slot], rec[slot]) < RELATIVE_ERROR["float16"]


WRONG = {
    "key_dim": (96, "expected both 32, 64 or 128, found 96 and 128"),
    "conv_width": (3, "expected 4, found 3"),
    "value_heads": (3, "expected a multiple of 2 key heads, found 3"),
    "sequences": (0, "expected 1 or more, found 0"),
    "rec_steps": (256, "expected both or none"),
}


@pytest.mark.parametrize("field", WRONG)
def test_wrong_arguments_are_explained(field: str, kernels: KernelLibrary, stream: Any) -> None:
    value, message = WRONG[field]
    launch = Launch(step(1, Heads(2, 2), [Row(2)]), kernels, stream)
    setattr(launch.arguments, field, value)
    with pytest.raises(EngineError, match=message):
        launch.enqueue()


@pytest.mark.parametrize(("tokens", "field"), [(2, "semaphores"), (100, "workspace")])
def test_missing_memory_is_explained(tokens: int, field: str, kernels: KernelLibrary, stream: Any) -> None:
    launch = Launch(step(1, Heads(1, 2), [Row(tokens)]), kernels, stream)
    setattr(launch.arguments, field, None)
    with pytest.raises(EngineError, match=f"{field}: expected"):
        launch.enqueue()
