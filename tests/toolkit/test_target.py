# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from orinkit import config, target
from orinkit.errors import ConfigError
from orinkit.target import Board, Cuda, Gpu, Stack, Target, TargetFile

DATA = Path(__file__).parents[1] / "data"
READERS = {"file": TargetFile, "board": Board, "stack": Stack}
INVALID = [(path, cls) for kind, cls in READERS.items() for path in sorted(DATA.glob(f"invalid_target_{kind}_*.yaml"))]

BOARD = "id: big\nname: Big board\nmachine: aarch64\n"
GPU = "gpu: {sm: 87, sm_count: 16, l2_mib: 4, memory_gib: 64, bandwidth_gbs: 204.8}\n"
STACK = 'id: new\nname: New stack\nstatus: "yes"\nonnx_opset_max: 20\n'
CUDA = 'cuda: {version: "12.6", target_dir: aarch64-linux}\n'
TARGET = "id: big-new\nboard: boards/big.yaml\nstack: stacks/new.yaml\n"


def lay(folder: Path, board: str = BOARD + GPU, stack: str = STACK + CUDA, names: str = TARGET) -> Path:
    """A folder of targets with one board, one stack and the target file, whose path is returned."""
    for name, text in (("boards/big.yaml", board), ("stacks/new.yaml", stack), ("big-new.yaml", names)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder / "big-new.yaml"


@pytest.mark.parametrize(("path", "cls"), INVALID, ids=lambda value: getattr(value, "stem", None))
def test_an_invalid_file_is_refused(path: Path, cls: type) -> None:
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    with pytest.raises(ConfigError) as caught:
        config.read(path, cls)
    assert str(caught.value).startswith(f"{path}: ")
    assert first_line.removeprefix("# expect: ") in str(caught.value)


def test_every_invalid_file_is_read() -> None:
    assert len(INVALID) > 50
    assert [path for path, _ in sorted(INVALID)] == sorted(DATA.glob("invalid_target_*.yaml"))


def test_a_target_is_read_with_its_board_and_stack(tmp_path: Path) -> None:
    assert target.read(lay(tmp_path)) == Target(
        id="big-new",
        board=Board("big", "Big board", "aarch64", Gpu(87, 16, 4.0, 64.0, 204.8)),
        stack=Stack("new", "New stack", "yes", 20, cuda=Cuda("12.6", "aarch64-linux")),
    )


def test_a_resolved_target_survives_dump_and_parse(tmp_path: Path) -> None:
    resolved = target.read(lay(tmp_path))
    assert config.parse(config.dump(resolved), Target, "manifest") == resolved


def test_a_stack_with_cuda_needs_a_board_with_a_gpu(tmp_path: Path) -> None:
    path = lay(tmp_path, board=BOARD)
    with pytest.raises(ConfigError) as caught:
        target.read(path)
    assert str(caught.value) == f"{path}: stack: new has CUDA, but the board big states no gpu; add gpu"


def test_a_board_without_gpu_is_good_with_a_stack_without_cuda(tmp_path: Path) -> None:
    assert target.read(lay(tmp_path, board=BOARD, stack=STACK)).board.gpu is None


def test_an_error_in_the_board_names_both_files(tmp_path: Path) -> None:
    path = lay(tmp_path, board=BOARD + GPU.replace("l2_mib", "l2_mb"))
    with pytest.raises(ConfigError) as caught:
        target.read(path)
    assert str(caught.value) == f"{path}: {tmp_path}/boards/big.yaml: gpu: unknown key 'l2_mb'; did you mean 'l2_mib'?"


def test_a_missing_stack_names_both_files(tmp_path: Path) -> None:
    path = lay(tmp_path)
    (tmp_path / "stacks/new.yaml").unlink()
    with pytest.raises(ConfigError) as caught:
        target.read(path)
    assert str(caught.value) == f"{path}: {tmp_path}/stacks/new.yaml: no such file; give the path of a YAML file"
