# SPDX-License-Identifier: Apache-2.0
"""A store survives what happens to a process that writes gigabytes: kills, a full disk, lost bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit.errors import ResourceError
from orinkit_export.store import ALIGNMENT, DATA, INDEX, Entry, TensorWriter, read_index

Array = NDArray[Any]
SIZES = ((3, 700), (1, 5), (9000,), (2, 3, 4), (0, 8), (6, 5000), (4096,))
NAMES = [f"layers.{index}.weight" for index in range(len(SIZES))]


def tensor(index: int) -> Array:
    dtype = (np.int8, np.float16, np.float32)[index % 3]
    return (np.random.default_rng(index).standard_normal(SIZES[index]) * 50).astype(dtype)


def blocks(array: Array, rows: int = 2) -> Iterator[Array]:
    for start in range(0, max(len(array), 1), rows):
        yield array[start : start + rows]


def load(folder: Path, entry: Entry) -> Array:
    raw = (folder / DATA).read_bytes()[entry.offset : entry.offset + entry.nbytes]
    return np.frombuffer(raw, entry.dtype).reshape(entry.shape)


def write_all(folder: Path) -> None:
    """What an export does: those that are not finished yet."""
    with TensorWriter(folder) as writer:
        for index, name in enumerate(NAMES):
            if name not in writer.entries:
                writer.write(name, blocks(tensor(index)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "made by the writer"
    write_all(folder)
    return folder


def assert_same(found: Path, expected: Path) -> None:
    assert sorted(path.name for path in found.iterdir()) == [INDEX, DATA]
    for name in (DATA, INDEX):
        assert (found / name).read_bytes() == (expected / name).read_bytes()


def test_tensors_come_back(undisturbed: Path) -> None:
    entries = read_index(undisturbed)
    assert list(entries) == NAMES
    for index, entry in enumerate(entries.values()):
        expected = tensor(index)
        assert (entry.dtype, entry.shape, entry.nbytes) == (expected.dtype.name, expected.shape, expected.nbytes)
        assert np.array_equal(load(undisturbed, entry), expected)


def test_tensors_begin_at_pages_with_zeros_between(undisturbed: Path) -> None:
    raw, end = (undisturbed / DATA).read_bytes(), 0
    assert ALIGNMENT == 4096
    for entry in read_index(undisturbed).values():
        assert entry.offset == -(-end // ALIGNMENT) * ALIGNMENT
        assert not any(raw[end : entry.offset])
        end = entry.offset + entry.nbytes
    assert len(raw) == end


def test_a_view_is_written_in_its_own_order(tmp_path: Path) -> None:
    turned = np.arange(12, dtype=np.float32).reshape(3, 4).T
    with TensorWriter(tmp_path) as writer:
        writer.write("turned", [turned])
    assert np.array_equal(load(tmp_path, read_index(tmp_path)["turned"]), turned)


def test_an_absent_store_is_empty(tmp_path: Path) -> None:
    assert read_index(tmp_path / "absent") == {}


def test_a_second_run_writes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    write_all(tmp_path)
    with TensorWriter(tmp_path) as writer:
        assert list(writer.entries) == NAMES
    assert_same(tmp_path, undisturbed)


# Kills

KILLED = """
import os, signal, sys
from pathlib import Path
from export import test_store

folder, tensors, written = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def cut(blocks):
    for count, block in enumerate(blocks):
        if count == written:
            os.kill(os.getpid(), signal.SIGKILL)
        yield block
    os.kill(os.getpid(), signal.SIGKILL)

with test_store.TensorWriter(folder) as writer:
    for index in range(len(writer.entries), tensors):
        writer.write(test_store.NAMES[index], test_store.blocks(test_store.tensor(index)))
    writer.write(test_store.NAMES[tensors], cut(test_store.blocks(test_store.tensor(tensors))))
"""


def run_python(code: str, *arguments: object) -> int:
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}", *map(str, arguments)]
    return subprocess.run(command, check=False).returncode


@pytest.mark.parametrize("moments", [[(0, 0)], [(2, 1000)], [(2, 4500)], [(5, 2)], [(0, 1), (3, 0), (3, 1), (6, 9)]])
def test_kill_and_resume(moments: list[tuple[int, int]], undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL after so many tensors and so many blocks of the next one, once or four times in a row."""
    for tensors, written in moments:
        assert run_python(KILLED, tmp_path, tensors, written) == -9
        assert list(read_index(tmp_path)) == NAMES[:tensors]
    write_all(tmp_path)
    assert_same(tmp_path, undisturbed)


def cut_copy(source: Path, folder: Path, index_bytes: int, data_bytes: int) -> None:
    """A store as a kill may leave it."""
    folder.mkdir()
    (folder / INDEX).write_bytes((source / INDEX).read_bytes()[:index_bytes])
    (folder / DATA).write_bytes((source / DATA).read_bytes()[:data_bytes])


def test_every_cut_of_the_index(undisturbed: Path, tmp_path: Path) -> None:
    """A last line that is not whole counts as not written, wherever it was cut."""
    index, size = (undisturbed / INDEX).read_bytes(), (undisturbed / DATA).stat().st_size
    for cut in [*range(0, len(index), 13), len(index) - 1]:
        folder = tmp_path / str(cut)
        cut_copy(undisturbed, folder, cut, size)
        assert list(read_index(folder)) == NAMES[: index[:cut].count(b"\n")]
        write_all(folder)
        assert_same(folder, undisturbed)


def test_bytes_behind_the_last_tensor_are_cut_off(undisturbed: Path, tmp_path: Path) -> None:
    write_all(tmp_path)
    with (tmp_path / DATA).open("ab") as file:
        file.write(b"half a tensor")
    write_all(tmp_path)
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize("data_bytes", [0, 1, 4095, 4200, 40000, 80000])
def test_lost_bytes_are_written_again(data_bytes: int, undisturbed: Path, tmp_path: Path) -> None:
    """An index that says more than the data hold, as a power failure may leave it."""
    folder = tmp_path / "store"
    cut_copy(undisturbed, folder, 1 << 20, data_bytes)
    kept = read_index(folder)
    assert all(entry.offset + entry.nbytes <= data_bytes for entry in kept.values())
    assert list(kept) != NAMES
    write_all(folder)
    for index, entry in enumerate(read_index(folder).values()):
        assert np.array_equal(load(folder, entry), tensor(index))


def test_the_last_tensor_is_replaced_when_it_is_written_again(undisturbed: Path, tmp_path: Path) -> None:
    """A kill between a weight and its scales: the export writes both again, to the same places."""
    with TensorWriter(tmp_path) as writer:
        for index in range(3):
            writer.write(NAMES[index], blocks(tensor(index)))
    with TensorWriter(tmp_path) as writer:
        writer.write(NAMES[2], blocks(tensor(2), rows=9000))
    write_all(tmp_path)
    assert (tmp_path / DATA).read_bytes() == (undisturbed / DATA).read_bytes()
    write_all(tmp_path)
    assert_same(tmp_path, undisturbed)


def test_an_error_of_the_source_leaves_no_trace(undisturbed: Path, tmp_path: Path) -> None:
    def broken() -> Iterator[Array]:
        yield np.ones(100_000, np.float32)
        raise ValueError("unreadable")

    with TensorWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="unreadable"):
            writer.write(NAMES[0], broken())
        for index, name in enumerate(NAMES):
            writer.write(name, blocks(tensor(index)))
    assert_same(tmp_path, undisturbed)


# A full disk

FULL = """
import resource, sys
from pathlib import Path
from export import test_store
from orinkit.errors import ResourceError

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    test_store.write_all(Path(sys.argv[1]))
except ResourceError as error:
    assert error.exit_code == 75
    assert "free some space" in str(error), error
    sys.exit(75)
"""
"""Python ignores SIGXFSZ, so a write beyond the limit fails with an error, as it does on a full disk."""


@pytest.mark.parametrize("limit", [0, 100, 600, 4000, 4097, 4106, 20000, 70000])
def test_a_full_disk(limit: int, undisturbed: Path, tmp_path: Path) -> None:
    """Wherever the disk ends, in the data or in the index: one error that says so, and the next run goes on."""
    folder = tmp_path / "store"
    assert run_python(FULL, folder, limit) == 75
    for index, entry in enumerate(read_index(folder).values()):
        assert np.array_equal(load(folder, entry), tensor(index))
    write_all(folder)
    assert_same(folder, undisturbed)


def test_a_full_disk_loses_nothing_that_was_finished(undisturbed: Path, tmp_path: Path) -> None:
    """Not even where there is no room to write the index again."""
    folder = tmp_path / "store"
    cut_copy(undisturbed, folder, 1 << 20, 1 << 20)
    assert run_python(FULL, folder, 100) == 75
    assert list(read_index(folder)) == NAMES


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="writing failed"), TensorWriter(tmp_path / "file" / "store"):
        pass


def test_index_lines_are_plain_json(undisturbed: Path) -> None:
    lines = (undisturbed / INDEX).read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[3]) == {
        "name": NAMES[3],
        "dtype": "int8",
        "shape": [2, 3, 4],
        "offset": 11 * ALIGNMENT,
        "nbytes": 24,
    }
