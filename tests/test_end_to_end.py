# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to answers with nothing in between replaced: the demo model, its bundle, ONNX Runtime."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import pytest

from orinkit import target
from orinkit.bundle import Bundle
from orinkit.ops import VERSIONS
from orinkit_export import plan
from orinkit_export.build import build
from programs import CHECKPOINT, DEMO, TARGET, content, refused, run, succeed, write_recipe
from tolerances import KL_INT4

MATRIX = tuple(
    {"method": "rtn", "head": head, "embedding": embedding, "gated_delta": gated_delta, "group_size": group_size}
    for head, embedding, gated_delta, group_size in (
        ("int4", "int4", "int4", 32),
        ("int4", "int8", "int8", 64),
        ("int4", "float16", "float16", 128),
        ("int8", "int4", "int8", 128),
        ("int8", "int8", "float16", 32),
        ("int8", "float16", "int4", 64),
        ("float16", "int4", "float16", 64),
        ("float16", "int8", "int4", 128),
        ("float16", "float16", "int8", 32),
    )
)
"""Nine recipes in which every two settings meet in all their combinations."""
MIXED = {
    "layers.0.qkvz": "int8",
    "layers.0.out": "int4-g32",
    "layers.0.gate_up": "int8",
    "layers.0.down": "int8",
    "layers.1.gate_up": "int4-g64",
    "layers.2.down": "int4-g32",
    "layers.2.gate_up": "float16",
    "layers.3.qkv": "int8",
    "layers.3.o": "int8",
    "head": "int4-g64",
    "embedding": "int4-g32",
}
"""Matrices that differ, int8 behind a norm, with swiglu and before a residual among them."""


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle.open(demo_bundle, keys=None, supported=VERSIONS)


def test_the_self_test_passes(demo_bundle: Path) -> None:
    assert re.fullmatch(
        r"self-test passed: 3 golden prompts, \d+ tokens, engine onnxruntime\n",
        succeed("orin-run", "selftest", demo_bundle),
    )


@pytest.mark.parametrize("options", [(), ("--temperature", "0.8", "--seed", "7")], ids=["greedy", "seed"])
def test_the_same_question_has_the_same_answer(options: tuple[str, ...], demo_bundle: Path) -> None:
    one, two = (
        succeed("orin-run", "generate", demo_bundle, "ROMEO:", "--max-tokens", "24", *options) for _ in range(2)
    )
    assert one == two
    assert len(one) > 24


def test_a_chat_of_two_turns_remembers_the_first(demo_bundle: Path) -> None:
    questions = ("Tom has 3 apples and buys 4 more. How many apples does he have?", "And now?")
    say = itertools.chain.from_iterable(("--say", question) for question in questions)
    done = run("orin-run", "chat", demo_bundle, "--max-tokens", "24", *say)
    assert re.fullmatch(r"> Tom .*\?\n.+\n> And now\?\n.+\n", done.stdout, re.DOTALL)
    (first, answer), (second, _) = re.findall(r"^(\d+) prompt tokens, (\d+) generated", done.stderr, re.MULTILINE)
    assert int(second) > int(first) + int(answer)


def test_both_programs_inspect(demo_bundle: Path, bundle: Bundle) -> None:
    board, host = succeed("orin-run", "inspect", demo_bundle), succeed("orin-export", "inspect", DEMO)
    assert f"digest: sha256 {bundle.digest}\n" in board
    for line in ("model: qwen3.5, 4 layers (1 with attention), hidden 256\n", "signature: none\n"):
        assert line in board
    for line in ("model: qwen3.5, hidden 256\n", "layers: 4, 1 with attention\n", "positions: 2048, capacity 1024\n"):
        assert line in host


def test_verify_prints_numbers_and_passes(demo_bundle: Path, bundle: Bundle) -> None:
    lines = succeed("orin-export", "verify", demo_bundle).splitlines()
    found = {name: float(value) for name, value in (line.split(": ") for line in lines)}
    assert found.items() <= bundle.manifest.report.items()
    assert 0 < found["kl_mean"] < KL_INT4
    assert found["kl_mean"] <= found["kl_max"]
    assert found["positions"] == sum(len(case.prompt_tokens + case.tokens) for case in bundle.manifest.golden)


def test_a_signed_bundle_on_its_way_to_a_board(tmp_path: Path) -> None:
    for name in ("trusted", "others"):
        (tmp_path / name).mkdir(mode=0o755)
        assert "key" in succeed("orin-export", "keygen", f"{name}.pem", "--comment", name, cwd=tmp_path)
        (tmp_path / f"{name}.pem.pub").rename(tmp_path / name / "key.pub")
    arguments = ("--target", TARGET, "--checkpoint", CHECKPOINT, "-o", "signed", "--sign", "trusted.pem")
    succeed("orin-export", "build", write_recipe(tmp_path / "recipe.yaml"), *arguments, cwd=tmp_path)
    succeed("orin-export", "pack", "signed", "signed.tar", cwd=tmp_path)
    refused(
        run("orin-run", "unpack", "signed.tar", "board", "--keys", "others", cwd=tmp_path),
        ("expected one of the trusted keys", "found key"),
        78,
    )
    assert not (tmp_path / "board").exists()
    assert (
        succeed("orin-run", "unpack", "signed.tar", "board", "--keys", "trusted", cwd=tmp_path) == "board: unpacked\n"
    )
    assert content(tmp_path / "board") == content(tmp_path / "signed")
    assert "passed" in succeed("orin-run", "selftest", "board", "--keys", "trusted", cwd=tmp_path)
    refused(run("orin-run", "selftest", "board", "--keys", "others", cwd=tmp_path), ("trusted keys",), 78)


def test_a_bundle_is_signed_after_it_was_built(demo_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_bundle, tmp_path / "demo")
    (tmp_path / "keys").mkdir(mode=0o755)
    succeed("orin-export", "keygen", "keys/key", cwd=tmp_path)
    refused(run("orin-run", "inspect", "demo", "--keys", "keys", cwd=tmp_path), ("expected a signature",), 78)
    assert "signed with key" in succeed("orin-export", "sign", "demo", "--key", "keys/key", cwd=tmp_path)
    assert "good, by a trusted key" in succeed("orin-run", "inspect", "demo", "--keys", "keys", cwd=tmp_path)


@pytest.mark.parametrize(
    "quantise",
    [*MATRIX, {"method": "rtn", "zeros": True, "formats": MIXED}],
    ids=lambda settings: "mixed" if "formats" in settings else "-".join(map(str, list(settings.values())[1:])),
)
def test_every_format_is_exported_and_verified(quantise: dict[str, object], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", quantise=quantise)
    made = build(plan.read(recipe, CHECKPOINT), target.read(TARGET), tmp_path / "out")
    assert made.manifest.report["kl_mean"] < KL_INT4
    assert made.manifest.golden


@pytest.mark.parametrize("activations", ["float16", "float32"])
def test_nothing_quantised_is_exported_and_verified(activations: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", quantise={"method": "none"}, activations=activations)
    made = build(plan.read(recipe, CHECKPOINT), target.read(TARGET), tmp_path / "out")
    assert made.manifest.report["kl_mean"] < KL_INT4
