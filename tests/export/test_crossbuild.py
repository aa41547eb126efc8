# SPDX-License-Identifier: Apache-2.0
"""What is chosen, refused and recorded. The libraries that come out are tried in tests/plugins/tensorrt."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from orinkit import config
from orinkit import target as targets
from orinkit.bundle.manifest import KERNELS, PLUGINS
from orinkit.errors import ArtefactError, ConfigError, LockedError, ResourceError
from orinkit.target import Target
from orinkit_export import crossbuild, proof
from orinkit_export.cli import main
from orinkit_export.crossbuild import Record, Tools
from orinkit_export.proof import Proof

ROOT = Path(__file__).parents[2]
JETSON = targets.read(ROOT / "targets/agx-orin-64gb-jetpack-6.2.yaml")
DRIVE = targets.read(ROOT / "targets/drive-agx-orin-drive-os-6.5.yaml")
HOST = targets.read(ROOT / "targets/host.yaml")


def with_cuda(version: str) -> Target:
    cuda = JETSON.stack.cuda
    assert cuda is not None
    return replace(JETSON, stack=replace(JETSON.stack, cuda=replace(cuda, version=version)))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder as `build` leaves it, with libraries of a few bytes."""
    libraries = []
    for name in proof.LIBRARIES.values():
        (tmp_path / name).write_bytes(name.encode())
        digest = proof.digest(tmp_path / name)
        libraries.append(Proof(name, len(name), digest, "aarch64", (87,), ("libc.so.6",), "2.17", ""))
    record = Record(JETSON.stack.id, "aarch64", "12.6", "10.3", tuple(libraries))
    (tmp_path / crossbuild.RECORD).write_text(json.dumps(config.dump(record)))
    return tmp_path


@pytest.mark.parametrize(
    ("target", "release"),
    [(JETSON, "12.6"), (DRIVE, "11.8"), (with_cuda("13.0"), "13.2"), (with_cuda("12.9"), "12.6"), (HOST, "13.2")],
    ids=["jetpack-6.2", "drive-os-6.5", "13.0", "12.9", "host"],
)
def test_nvrtc_is_that_of_the_target_or_the_nearest_that_runs_there(target: Target, release: str) -> None:
    assert crossbuild.nvrtc(target) == release


@pytest.mark.parametrize("version", ["10.2", "14.0"])
def test_cuda_without_its_nvrtc_is_refused(version: str) -> None:
    with pytest.raises(
        ResourceError, match=rf"expected NVRTC for CUDA {version}, found only .* name an nvcc with --nvcc"
    ):
        crossbuild.nvrtc(with_cuda(version))


def test_a_missing_compiler_is_told_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    foreign = replace(JETSON, board=replace(JETSON.board, machine="aarch64"))
    with pytest.raises(ResourceError, match=r"expected the compiler .*g\+\+, found none; run: apt-get install g\+\+"):
        crossbuild.build(foreign, tmp_path / "out", Tools())


def test_an_nvcc_that_is_not_there_is_told(tmp_path: Path) -> None:
    need_compiler()
    with pytest.raises(ResourceError, match="nvcc: expected nvcc, found nothing"):
        crossbuild.build(HOST, tmp_path / "out", Tools(nvcc=tmp_path / "nvcc"), with_tensorrt=False)


def test_an_sdk_without_headers_is_told(tmp_path: Path) -> None:
    need_compiler()
    (tmp_path / "nvcc").touch()
    with pytest.raises(ConfigError, match="expected a TensorRT SDK or its headers"):
        crossbuild.build(HOST, tmp_path / "out", Tools(tensorrt=tmp_path, nvcc=tmp_path / "nvcc"))


def need_compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++; run: apt-get install g++")


def broken_nvcc(folder: Path) -> Path:
    (folder / "nvcc").write_text("#!/bin/sh\necho no such architecture >&2\nexit 1\n")
    (folder / "nvcc").chmod(0o755)
    return folder / "nvcc"


def test_a_build_that_fails_leaves_its_log_and_no_library(tmp_path: Path) -> None:
    need_compiler()
    with pytest.raises(ArtefactError, match=r"could not build them; .*failed\.log has what it said"):
        crossbuild.build(HOST, tmp_path / "out", Tools(nvcc=broken_nvcc(tmp_path)), with_tensorrt=False)
    assert "no such architecture" in (tmp_path / "out.work/failed.log").read_text()
    assert not (tmp_path / "out").exists()


def test_the_build_folder_of_a_checkout_that_was_moved_is_used_again(tmp_path: Path) -> None:
    need_compiler()
    cache = tmp_path / "out.work/CMakeCache.txt"
    cache.parent.mkdir()
    cache.write_text(f"CMAKE_CACHEFILE_DIR:INTERNAL={cache.parent}\nCMAKE_HOME_DIRECTORY:INTERNAL=/elsewhere/plugins\n")
    with pytest.raises(ArtefactError, match="could not build them"):
        crossbuild.build(HOST, tmp_path / "out", Tools(nvcc=broken_nvcc(tmp_path)), with_tensorrt=False)
    assert f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT / 'plugins'}" in cache.read_text()


def test_two_builds_at_once_are_refused(tmp_path: Path) -> None:
    need_compiler()
    (tmp_path / "out.work").mkdir()
    with (tmp_path / "out.work/lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="another run builds here"):
            crossbuild.build(HOST, tmp_path / "out", Tools(nvcc=broken_nvcc(tmp_path)), with_tensorrt=False)


def test_the_libraries_are_packed_under_their_names_in_a_bundle(made: Path) -> None:
    assert crossbuild.packed(JETSON, made) == {
        KERNELS: made / "liborin_kernels.so",
        PLUGINS: made / "liborin_plugins.so",
    }


def test_a_stack_without_tensorrt_needs_none() -> None:
    assert crossbuild.packed(HOST) == {}


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "altered": (
        lambda folder: (folder / "liborin_plugins.so").write_bytes(b"other"),
        r"liborin_plugins\.so: expected SHA-256 [0-9a-f]{64}, found another; build it again",
    ),
    "gone": (lambda folder: (folder / "liborin_kernels.so").unlink(), r"liborin_kernels\.so: expected SHA-256"),
    "no record": (
        lambda folder: (folder / crossbuild.RECORD).unlink(),
        "made by orin-export plugins, found no plugins",
    ),
    "half a record": (lambda folder: (folder / crossbuild.RECORD).write_text('{"stack": '), "expected a record of"),
    "another record": (lambda folder: (folder / crossbuild.RECORD).write_text("{}"), "expected a record of"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_not_as_recorded_is_refused(damage: Callable[[Path], object], sentence: str, made: Path) -> None:
    damage(made)
    with pytest.raises(ArtefactError, match=sentence):
        crossbuild.packed(JETSON, made)


def test_libraries_of_another_stack_are_refused(made: Path) -> None:
    with pytest.raises(ArtefactError, match=r"expected libraries for drive-os-6\.5, found some for jetpack-6\.2"):
        crossbuild.packed(DRIVE, made)


def test_the_verb_refuses_in_one_line(tmp_path: Path) -> None:
    words = ["plugins", "--target", str(ROOT / "targets/host.yaml"), "--nvcc", str(tmp_path / "nvcc"), "--kernels-only"]
    need_compiler()
    done = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "out")])
    assert done.exit_code == ResourceError.exit_code
    assert "expected nvcc, found nothing" in done.output
