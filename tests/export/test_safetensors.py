# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orinkit.errors import CheckpointError
from orinkit_export import safetensors
from orinkit_export.safetensors import DTYPES, SafetensorsFile

F32_PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw_file(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def described(path: Path, entries: dict[str, Any], data_bytes: int) -> Path:
    return raw_file(path, json.dumps(entries).encode(), bytes(data_bytes))


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_survives_the_way_through_a_file(tmp_path: Path, name: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2 if name == "BOOL" else 256, 120, np.uint8)
    array = bits.view(DTYPES[name])
    safetensors.write(tmp_path / "x.safetensors", {"odd": np.ones(3, np.uint8), "t": array.reshape(-1, 5)})
    file = SafetensorsFile.open(tmp_path / "x.safetensors")
    assert file.entries["t"].dtype == name
    assert file.read("t").dtype == DTYPES[name]
    assert file.read("t").tobytes() == bits.tobytes()
    rows = file.read("t", 1, 3)
    assert rows.shape == (2, 5)
    assert rows.tobytes() == array.reshape(-1, 5)[1:3].tobytes()


def test_all_bfloat16_and_float16_values_convert_exactly(tmp_path: Path) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    tensors = {"b": bits.view(ml_dtypes.bfloat16), "h": bits.view(np.float16)}
    safetensors.write(tmp_path / "x.safetensors", tensors)
    file = SafetensorsFile.open(tmp_path / "x.safetensors")
    shifted = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(file.read("b", as_type=np.float32), shifted)
    exponent, mantissa = (bits >> 10 & 31).astype(int), (bits & 1023).astype(np.float64)
    finite = np.where(exponent == 0, mantissa * 2.0**-24, (1024 + mantissa) * 2.0 ** (exponent - 25.0))
    special = np.where(mantissa == 0, np.inf, np.nan)
    expected = np.where(exponent == 31, special, finite) * np.where(bits >> 15, -1.0, 1.0)
    np.testing.assert_array_equal(file.read("h", as_type=np.float32), expected)


def test_reads_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "BLOCK", 64)
    array = np.arange(1000, dtype=np.float16).reshape(50, 20)
    safetensors.write(tmp_path / "x.safetensors", {"t": array})
    file = SafetensorsFile.open(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(file.read("t", as_type=np.float32), array)
    np.testing.assert_array_equal(file.read("t", 7, 41, np.float32), array[7:41])


def test_scalars_empty_tensors_and_metadata(tmp_path: Path) -> None:
    entries = {
        "__metadata__": {"format": "pt"},
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "empty": {"dtype": "F32", "shape": [0, 3], "data_offsets": [4, 4]},
    }
    file = SafetensorsFile.open(described(tmp_path / "x.safetensors", entries, 4))
    assert set(file.entries) == {"scalar", "empty"}
    assert file.read("scalar").shape == ()
    assert file.read("empty").shape == (0, 3)


def test_header_is_aligned_and_reads_back(tmp_path: Path) -> None:
    text = safetensors.header({"a": ("BF16", (2, 3)), "b": ("I32", (1,))})
    assert len(text) % 8 == 0
    (tmp_path / "x.safetensors").write_bytes(text + bytes(16))
    entries = SafetensorsFile.open(tmp_path / "x.safetensors").entries
    assert (entries["a"].begin, entries["a"].nbytes) == (len(text), 12)
    assert (entries["b"].begin, entries["b"].nbytes) == (len(text) + 12, 4)


def pair(**changes: Any) -> dict[str, Any]:
    return {"first": F32_PAIR | changes}


HUGE = "9" * 5000
HEADERS: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "not JSON": (b'{"first": ', "expected JSON"),
    "not UTF-8": (b'{"\xff": 1}', "expected JSON"),
    "not an object": (b"[1, 2]", r"begins with '\{', found b'\[1, 2\]'"),
    "leading space": (b" {}", r"begins with '\{'"),
    "nested beyond the parser": (b'{"a":' * 100_000, "expected JSON, found: maximum recursion"),
    "a number of many digits": (b'{"first": %s}' % HUGE.encode(), "number of 5000 digits"),
    "a tensor twice": (b'{"first": {}, "first": {}}', "the name 'first' twice"),
    "a key of a tensor twice": (b'{"first": {"dtype": "F32", "dtype": "F16"}}', "the name 'dtype' twice"),
    "metadata not text": ({"__metadata__": {"a": 1}}, "__metadata__: expected a map of text to text"),
    "entry not an object": ({"first": 3}, "'first': expected dtype, shape and data_offsets, found 3"),
    "entry without shape": ({"first": {"dtype": "F32", "data_offsets": [0, 8]}}, "found an object of 2 keys"),
    "entry with more": (pair(extra=1), "found an object of 4 keys"),
    "unknown dtype": (pair(dtype="F4"), "'first': expected a dtype of .*BF16.*; found 'F4'; use a BF16"),
    "dtype not text": (pair(dtype=["F32"]), "found a list of 1 items"),
    "shape not a list": (pair(shape="2"), "expected a shape of at most 8 sizes, found '2'"),
    "negative size": (pair(shape=[-2]), "expected a shape"),
    "size not whole": (pair(shape=[2.0]), "expected a shape"),
    "size a truth value": (pair(shape=[True]), "expected a shape"),
    "too many sizes": (pair(shape=[2] + [1] * 8), "expected a shape"),
    "sizes beyond 64 bits": (pair(shape=[1 << 40, 1 << 40, 0]), "expected a shape"),
    "one offset": (pair(data_offsets=[0]), "expected two data_offsets, found a list of 1 items"),
    "negative offset": (pair(data_offsets=[-8, 0]), "expected two data_offsets"),
    "fewer bytes than the shape": (pair(data_offsets=[0, 4]), r"expected 8 bytes for F32 \[2\], found.*\[0, 4\]"),
    "ends before it begins": (pair(data_offsets=[8, 0]), r"expected 8 bytes for F32 \[2\], found.*\[8, 0\]"),
    "hole in front": (pair(data_offsets=[8, 16]), "'first' leaves a hole in front of it: expected it at byte"),
    "hole between": (pair() | {"second": F32_PAIR | {"data_offsets": [12, 20]}}, "'second' leaves a hole"),
    "overlap": (pair() | {"second": F32_PAIR | {"data_offsets": [4, 12]}}, "'second' overlaps another tensor"),
    "same place": (pair() | {"second": F32_PAIR}, "'second' overlaps another tensor"),
    "long name": ({"n" * 1001: F32_PAIR}, "expected a name of at most 1000 characters, found 1001"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_refuses_header(tmp_path: Path, case: str) -> None:
    header, message = HEADERS[case]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = raw_file(tmp_path / "x.safetensors", text, bytes(8))
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile.open(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "within the 0 bytes of the file"),
        (b"\x02\0\0\0", "within the 4 bytes of the file"),
        ((100).to_bytes(8, "little") + b"{}", "within the 10 bytes of the file; found a length of 100"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "found a length of 9223372036854775808"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
    ],
)
def test_refuses_beginning(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile.open(tmp_path / "x.safetensors")


def test_refuses_a_header_over_the_limit_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((100_000_001).to_bytes(8, "little"))
    os.truncate(path, 1 << 30)
    with pytest.raises(CheckpointError, match=r"at most 100000000 bytes.*found a length of 100000001"):
        SafetensorsFile.open(path)


def test_refuses_truncated_and_longer_files(tmp_path: Path) -> None:
    path = described(tmp_path / "x.safetensors", pair(), 7)
    size = path.stat().st_size
    with pytest.raises(CheckpointError, match=f"truncated: expected {size + 1} bytes, found {size}.*download it again"):
        SafetensorsFile.open(path)
    path = described(path, pair(), 9)
    with pytest.raises(CheckpointError, match=f"follow the last tensor: expected {size + 1} bytes, found {size + 2}"):
        SafetensorsFile.open(path)


def test_refuses_what_is_not_a_regular_file(tmp_path: Path) -> None:
    target = described(tmp_path / "blob", pair(), 8)
    (tmp_path / "link.safetensors").symlink_to(target)
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"symbolic link.*hf download REPOSITORY --local-dir"):
        SafetensorsFile.open(tmp_path / "link.safetensors")
    for name in ("pipe", "folder"):
        with pytest.raises(CheckpointError, match="expected a regular file, found a folder, device or pipe"):
            SafetensorsFile.open(tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="the file is missing"):
        SafetensorsFile.open(tmp_path / "none.safetensors")


def test_refuses_to_read_from_a_file_that_was_replaced(tmp_path: Path) -> None:
    path = described(tmp_path / "x.safetensors", pair(), 8)
    file = SafetensorsFile.open(path)
    described(tmp_path / "y.safetensors", pair(), 8).replace(path)
    with pytest.raises(CheckpointError, match="the file changed before tensor 'first' was read"):
        file.read("first")


def open_and_read_all(path: Path) -> bool:
    """Whether the file was accepted; any other exception than CheckpointError fails the test."""
    try:
        file = SafetensorsFile.open(path)
    except CheckpointError:
        return False
    for name, entry in file.entries.items():
        assert file.read(name).shape == entry.shape
    return True


@pytest.fixture(scope="session")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.safetensors"


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_fuzz_bytes(fuzzed: Path, content: bytes) -> None:
    fuzzed.write_bytes(content)
    open_and_read_all(fuzzed)


@settings(deadline=None)
@given(header=st.binary(max_size=200), data=st.binary(max_size=32))
def test_fuzz_header_bytes(fuzzed: Path, header: bytes, data: bytes) -> None:
    open_and_read_all(raw_file(fuzzed, b"{" + header, data))


SIZES = st.integers(-1, 4) | st.sampled_from([1 << 31, 1 << 62, 10**18])
SCALARS = st.none() | st.booleans() | SIZES | st.floats() | st.text(max_size=5) | st.sampled_from(sorted(DTYPES))
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=8)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(DTYPES)) | JSON,
        "shape": st.lists(SIZES, max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | JSON,
    }
)


@settings(deadline=None)
@given(entries=st.dictionaries(st.text(), ENTRY | JSON, max_size=3), size=st.integers(0, 64))
def test_fuzz_described_headers(fuzzed: Path, entries: dict[str, Any], size: int) -> None:
    open_and_read_all(described(fuzzed, entries, size))


@settings(deadline=None)
@given(
    shapes=st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)), max_size=5),
    lost=st.integers(-1, 1),
)
def test_fuzz_right_headers_with_right_and_wrong_sizes(
    fuzzed: Path, shapes: list[tuple[str, list[int]]], lost: int
) -> None:
    layout = {f"t{index}": (dtype, tuple(shape)) for index, (dtype, shape) in enumerate(shapes)}
    nbytes = sum(int(np.prod(shape)) * DTYPES[dtype].itemsize for dtype, shape in layout.values())
    fuzzed.write_bytes(safetensors.header(layout) + bytes(max(0, nbytes - lost)))
    assert open_and_read_all(fuzzed) == (max(0, nbytes - lost) == nbytes)
