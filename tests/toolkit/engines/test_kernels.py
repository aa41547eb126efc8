# SPDX-License-Identifier: Apache-2.0
"""The ctypes loader, against a small library with the same border as liborin_kernels; no GPU is needed."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from orinkit.engines.kernels import Device, KernelLibrary
from orinkit.errors import EngineError

SOURCE = """
#include <cstdint>
#define API extern "C" __attribute__((visibility("default")))

struct Foo { void* x; void* y; int32_t tokens; float eps; int32_t last; };

API int orin_init() { return INIT; }
API const char* orin_error(int code) { return code == -1 ? "foo: tokens: expected 3, found 4" : "no driver"; }
API void orin_device(int* out) { out[0] = 87, out[1] = 16, out[2] = 4 << 20, out[3] = 163 << 10; }
API const char* orin_foo_fields() { return "P x\\nP y\\nI tokens\\nF eps\\nI last\\n"; }

// Writes what it was given to y, and refuses any number of tokens but 3.
API int orin_foo(const Foo* a, void* stream) {
  if (a->tokens != 3) return -1;
  double* out = static_cast<double*>(a->y);
  out[0] = a->x == nullptr, out[1] = a->eps, out[2] = a->last, out[3] = double(reinterpret_cast<intptr_t>(stream));
  return 0;
}

API int64_t orin_foo_workspace(const Foo* a) { return int64_t(a->tokens) << 32; }
"""


def build(folder: Path, init: int = 0) -> Path:
    """The library; `init` is what its orin_init returns."""
    source, library = folder / "foo.cpp", folder / "libfoo.so"
    source.write_text(SOURCE, encoding="utf-8")
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", f"-DINIT={init}"]
    subprocess.run([*command, "-o", str(library), str(source)], check=True)
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    return KernelLibrary(build(tmp_path_factory.mktemp("library")))


def test_the_struct_is_the_one_that_the_library_describes(library: KernelLibrary) -> None:
    arguments = library.arguments("foo", x=None, y=1 << 40, tokens=3, eps=0.5, last=-7)
    assert [name for name, *_ in arguments._fields_] == ["x", "y", "tokens", "eps", "last"]
    assert ctypes.sizeof(arguments) == 32
    assert type(library.arguments("foo", x=0, y=0, tokens=0, eps=0, last=0)) is type(arguments)


def test_a_launch_hands_over_fields_and_stream(library: KernelLibrary) -> None:
    out = (ctypes.c_double * 4)()
    arguments = library.arguments("foo", x=None, y=ctypes.addressof(out), tokens=3, eps=0.5, last=-7)
    library.launch("foo", arguments, stream=1 << 40)
    assert list(out) == [1.0, 0.5, -7.0, float(1 << 40)]


def test_a_size_may_be_larger_than_32_bits(library: KernelLibrary) -> None:
    arguments = library.arguments("foo", x=None, y=None, tokens=3, eps=0.0, last=0)
    assert library.query("foo_workspace", arguments) == 3 << 32
    ask = library.bound_query("foo_workspace", arguments)
    arguments.tokens = 4
    assert ask() == 4 << 32


def test_the_device_is_told(library: KernelLibrary) -> None:
    assert library.device == Device(arch=87, sm_count=16, l2_bytes=4 << 20, shared_bytes=163 << 10)


def test_fields_that_are_missing_or_unknown_are_named(library: KernelLibrary) -> None:
    with pytest.raises(EngineError, match=r"foo: expected the fields \['eps', .*'y'\], found \['x', 'z'\]"):
        library.arguments("foo", x=None, z=1)


def test_an_error_code_becomes_the_librarys_sentence(library: KernelLibrary) -> None:
    arguments = library.arguments("foo", x=None, y=None, tokens=4, eps=0.0, last=0)
    with pytest.raises(EngineError, match="foo failed: foo: tokens: expected 3, found 4"):
        library.launch("foo", arguments, stream=0)


def test_a_launcher_that_the_library_lacks_is_named(library: KernelLibrary) -> None:
    with pytest.raises(EngineError, match="no launcher 'bar'; build it again with: make kernels"):
        library.arguments("bar")


def test_a_library_that_finds_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="orin_init failed: no driver"):
        KernelLibrary(build(tmp_path, init=-3))


def test_a_missing_library_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.so: cannot be loaded .*; build it with: make kernels"):
        KernelLibrary(tmp_path / "absent.so")
