# SPDX-License-Identifier: Apache-2.0
"""Every recipe and target that is shipped, and every example of docs/recipes.md and docs/targets.md."""

from __future__ import annotations

import dataclasses
import itertools
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from orinkit import config, recipe, target
from orinkit.recipe import Recipe, Source
from orinkit.target import Board, Stack, TargetFile

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/*.yaml"))
TARGETS = sorted(ROOT.glob("targets/*.yaml"))
BOARDS = sorted(ROOT.glob("targets/boards/*.yaml"))
STACKS = sorted(ROOT.glob("targets/stacks/*.yaml"))


def name(path: Path) -> str:
    return path.stem


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def stacks() -> list[Stack]:
    return [config.read(path, Stack) for path in STACKS]


def yaml_blocks(document: str) -> list[dict[str, Any]]:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def test_every_jetson_has_a_target_with_either_jetpack() -> None:
    boards = [path.stem for path in BOARDS if path.stem.startswith(("agx-orin", "orin"))]
    assert len(boards) == 6
    assert {f"{board}-jetpack-{release}" for board in boards for release in ("6.2", "7.2")} < {t.stem for t in TARGETS}


def test_there_are_recipes() -> None:
    assert len(RECIPES) > 10


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_named_as_its_file_and_survives_dump_and_parse(path: Path) -> None:
    read = recipe.read(path)
    assert read.name == path.stem
    assert config.parse(config.dump(read), Recipe, "dumped") == read


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "demo"], ids=name)
def test_a_recipe_says_where_its_checkpoint_comes_from(path: Path) -> None:
    source = recipe.read(path).checkpoint
    assert source.repository is not None
    assert source.path == f"../checkpoints/{source.repository.split('/')[1]}"


def test_the_checkpoint_of_the_demo_is_here() -> None:
    path = ROOT / "recipes/demo.yaml"
    checkpoint = path.parent / recipe.read(path).checkpoint.path
    assert (checkpoint / "config.json").is_file()


def test_no_two_recipes_are_of_one_checkpoint() -> None:
    paths = [recipe.read(path).checkpoint.path for path in RECIPES]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("path", TARGETS, ids=name)
def test_a_target_is_named_as_its_file_and_survives_dump_and_parse(path: Path) -> None:
    read = target.read(path)
    assert read.id == path.stem
    assert config.parse(config.dump(read), target.Target, "dumped") == read


@pytest.mark.parametrize("path", [path for path in TARGETS if path.stem != "host"], ids=name)
def test_a_target_is_named_after_its_board_and_stack(path: Path) -> None:
    read = target.read(path)
    assert read.id == f"{read.board.id}-{read.stack.id}"


@pytest.mark.parametrize("path", BOARDS, ids=name)
def test_a_board_is_named_as_its_file_and_every_one_but_the_host_is_an_orin(path: Path) -> None:
    board = config.read(path, Board)
    assert board.id == path.stem
    assert (board.machine, board.gpu and board.gpu.sm) == (("any", None) if board.id == "host" else ("aarch64", 87))


@pytest.mark.parametrize("path", STACKS, ids=name)
def test_a_stack_is_named_as_its_file(path: Path) -> None:
    assert config.read(path, Stack).id == path.stem


@pytest.mark.parametrize("stack", [stack for stack in stacks() if stack.id != "host"], ids=lambda stack: stack.id)
def test_the_facts_of_a_stack_are_consistent(stack: Stack) -> None:
    assert stack.cuda is not None
    assert stack.tensorrt is not None
    assert stack.sysroot is not None
    assert stack.cuda.target_dir == ("sbsa-linux" if version(stack.cuda.version) >= (13,) else "aarch64-linux")
    glibc = {"ubuntu-20.04": "2.31", "ubuntu-22.04": "2.35", "ubuntu-24.04": "2.39"}
    assert stack.sysroot.glibc_max == glibc[stack.sysroot.os]
    assert stack.tensorrt.headers == "10.3"
    assert version(stack.tensorrt.version) >= (10,)
    assert stack.sysroot.python is None or version(stack.sysroot.python) >= (3, 10)
    assert stack.note if stack.status == "experimental" else stack.l4t


def test_the_cross_package_is_of_the_release_of_cuda() -> None:
    for cuda in (stack.cuda for stack in stacks() if stack.cuda and stack.cuda.cross_package):
        assert str(cuda.cross_package).endswith("-" + cuda.version.replace(".", "-"))


def test_every_stack_reads_the_operator_set_that_graphs_are_written_in() -> None:
    assert min(stack.onnx_opset_max for stack in stacks()) == 20


def test_release_and_tensorrt_tell_two_stacks_apart() -> None:
    for one, other in itertools.combinations(stacks(), 2):
        shared = {
            (first, second)
            for first in one.l4t
            for second in other.l4t
            if version(first)[: len(version(second))] == version(second)[: len(version(first))]
        }
        assert not shared or one.tensorrt != other.tensorrt, (one.id, other.id, shared)


def keys(cls: type) -> dict[str, Any]:
    """The keys of a dataclass: name -> the keys inside, or nothing."""
    hints = typing.get_type_hints(cls)
    return {field.name: inner(hints[field.name]) for field in dataclasses.fields(cls)}


def inner(kind: Any) -> dict[str, Any]:
    arms = [arm for arm in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(arm)]
    return keys(typing.cast(type, arms[0])) if arms else {}


def keys_of_data(data: Any) -> dict[str, Any]:
    return {key: keys_of_data(value) for key, value in data.items()} if isinstance(data, dict) else {}


def test_the_example_of_the_docs_has_every_key_of_a_recipe_with_its_default() -> None:
    example, *_ = yaml_blocks("recipes.md")
    assert keys_of_data(example) == keys(Recipe)
    read = config.parse(example, Recipe, "docs/recipes.md")
    source = example["checkpoint"]
    needed = {"name": read.name, "checkpoint": source, "shapes": {"capacity": read.shapes.capacity}}
    assert read == config.parse(needed, Recipe, "needed")
    assert dataclasses.replace(read.checkpoint, repository=None, revision=None) == Source(source["path"])


def test_the_examples_of_the_docs_have_every_key_of_a_target() -> None:
    shipped, board, stack, _ = yaml_blocks("targets.md")
    assert keys_of_data(shipped) == keys(TargetFile)
    assert keys_of_data(board) == keys(Board)
    assert keys_of_data(stack) == keys(Stack)


def test_the_examples_of_the_docs_say_what_the_shipped_files_say() -> None:
    shipped, board, stack, _ = yaml_blocks("targets.md")
    del stack["note"]
    resolved = target.read(ROOT / "targets" / f"{shipped['id']}.yaml")
    assert config.parse(board, Board, "docs/targets.md") == resolved.board
    assert config.parse(stack, Stack, "docs/targets.md") == resolved.stack


def test_the_own_target_of_the_docs_names_shipped_files() -> None:
    own = config.parse(yaml_blocks("targets.md")[-1], TargetFile, "docs/targets.md")
    assert config.read(ROOT / "targets" / own.stack, Stack).id == "jetpack-6.2-trt10.7"
    assert config.read(ROOT / "targets" / own.board, Board).id == "agx-orin-64gb"
