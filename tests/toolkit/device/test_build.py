# SPDX-License-Identifier: Apache-2.0
"""`orin-run build` on the stand-in for TensorRT: a plan, or a sentence that says what to do, and never half of one."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

import standin
from orinkit.bundle import Bundle
from orinkit.bundle.manifest import DATA, MANIFEST
from orinkit.device import build as device
from orinkit.engines import plan_key, plans
from orinkit.engines.plans import BuildOptions
from orinkit.errors import BundleError, EngineError, LockedError, OrinError, ResourceError
from orinkit.ops import VERSIONS
from orinkit.recipe import Shapes
from orinkit.target import Target

Make = Callable[..., Bundle]


@pytest.fixture
def make(demo_bundle: Path, tmp_path: Path) -> Make:
    """Bundles for the stand-in."""
    return lambda name="demo", **how: standin.board_bundle(demo_bundle, tmp_path / name, **how)


def left(bundle: Bundle) -> set[str]:
    """What lies beside the bundle, but for the log of the last build."""
    folder = plans.folder_of(bundle.folder)
    return {path.name for path in folder.iterdir()} - {"build.log"} if folder.exists() else set()


def refused(bundle: Bundle, kind: type[OrinError], message: str, **how: float) -> None:
    """The build ends with this error and leaves nothing behind."""
    before = left(bundle)
    with pytest.raises(kind, match=message):
        device.build(bundle, **how)  # type: ignore[arg-type]
    assert left(bundle) == before


def test_a_plan_is_built_once_and_kept(make: Make) -> None:
    bundle, told = make(), []
    with standin.installed():
        built = device.build(bundle, progress=lambda phase, done: told.append((phase, done)))
        again = device.build(bundle)
    assert (built.is_new, again.is_new) == (True, False)
    assert (again.path, again.record) == (built.path, built.record)
    assert left(bundle) == {built.path.name, f"{built.path.stem}.json", "timing.cache"}
    assert built.path.stat().st_size == built.record.size
    assert built.record.origin.bundle == bundle.digest
    assert told[0] == ("Building Engine", 0.0)
    assert told[-1] == ("Building Engine", 1.0)
    assert Bundle.open(bundle.folder, keys=None, supported=VERSIONS).digest == bundle.digest


def test_other_options_make_another_plan(make: Make) -> None:
    bundle = make()
    with standin.installed():
        first = device.build(bundle)
        second = device.build(bundle, BuildOptions(optimization_level=5))
        assert not device.build(bundle, BuildOptions(optimization_level=5)).is_new
    assert (second.is_new, second.path) == (True, first.path)
    assert second.record.options.optimization_level == 5


def test_a_plan_that_somebody_swapped_is_built_again(make: Make) -> None:
    """Case B20: size and digest of its record are right, but not its code."""
    bundle = make()
    with standin.installed():
        first = device.build(bundle)
        first.path.write_bytes(b"other code")
        forged = replace(first.record, sha256=sha256(b"other code").hexdigest(), size=10)
        plans.write_record(first.path.parent, forged)
        second = device.build(bundle)
    assert (second.is_new, second.record.sha256) == (True, first.record.sha256)


def test_a_damaged_plan_is_built_again(make: Make) -> None:
    bundle = make()
    with standin.installed():
        first = device.build(bundle)
        first.path.write_bytes(first.path.read_bytes()[:-1])
        second = device.build(bundle)
    assert (second.is_new, second.record.sha256) == (True, first.record.sha256)


def test_no_profile_has_a_size_of_zero() -> None:
    """Zero-size dimensions break some releases (NVIDIA/TensorRT-Edge-LLM issue 192)."""
    for shapes in (Shapes(1024, 4, 512), Shapes(16, 1, 16), Shapes(64, 256, 16)):
        prefill, decode = device.ranges(shapes)
        for item in (*prefill, *decode):
            assert 1 <= item["least"] <= item["typical"] <= item["largest"]
        largest = [{item["name"]: item["largest"] for item in profile} for profile in (prefill, decode)]
        sequences = min(shapes.slots, shapes.chunk)
        assert [sizes["input_ids"] for sizes in largest] == [shapes.chunk, shapes.slots]
        assert [sizes["slots"] for sizes in largest] == [sequences, shapes.slots]
        assert all(sizes["cu_seqlens"] == sizes["slots"] + 1 for sizes in largest)


# Refused before TensorRT is touched: nothing is installed in these, so a child could not even start to build


def wanted(**board: object) -> Target:
    target = standin.this_target()
    return replace(target, board=replace(target.board, **board))  # type: ignore[arg-type]


def test_a_bundle_for_a_host(demo_bundle: Path) -> None:
    bundle = Bundle.open(demo_bundle, keys=None, supported=VERSIONS)
    refused(bundle, BundleError, "expected a bundle for a board with TensorRT, found one for host; export it with")


def test_a_bundle_for_another_system(make: Make) -> None:
    target = standin.this_target()
    refused(make(wanted=replace(target, stack=replace(target.stack, l4t=("36.4",)))), BundleError, "Jetson Linux 36.4")
    other = "aarch64" if os.uname().machine != "aarch64" else "x86_64"
    refused(make("other", wanted=wanted(machine=other)), BundleError, f"expected a {other} system.*export the bundle")


def test_plugins_that_need_a_newer_system(make: Make) -> None:
    bundle = make(library=standin.plugin_library(extra=b"GLIBC_99.1"))
    refused(bundle, BundleError, r"found one that needs 99\.1; export the bundle with the --target of this board")


def test_a_bundle_without_plugins(make: Make) -> None:
    bundle = make()
    manifest = replace(bundle.manifest, files=tuple(f for f in bundle.manifest.files if not f.path.endswith(".so")))
    refused(replace(bundle, manifest=manifest), BundleError, "expected plugins/liborin_plugins.so in the bundle")


def test_corrupted_weights_are_found_when_the_bundle_is_opened(make: Make) -> None:
    bundle = make()
    content = bytearray((bundle.folder / DATA).read_bytes())
    content[-1] ^= 1
    (bundle.folder / DATA).write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.data: expected SHA-256 .*get the bundle again"):
        Bundle.open(bundle.folder, keys=None, supported=VERSIONS)


def test_plugins_that_were_swapped_after_the_check(make: Make) -> None:
    """Case B4."""
    bundle = make()
    path = bundle.folder / "plugins/liborin_plugins.so"
    path.write_bytes(path.read_bytes().swapcase())
    refused(bundle, BundleError, r"liborin_plugins\.so: expected SHA-256")


def test_a_full_disk(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs("/")
    full = os.statvfs_result((*tuple(found)[:3], 10, 10, *tuple(found)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    refused(make(), ResourceError, r"expected 256 MiB free for plan and timing cache, found 0 MiB; free some space")


def test_a_board_without_tensorrt_or_gpu(make: Make) -> None:
    """Neither the stand-in nor the real bindings: the child's last words are told."""
    if any((Path(folder) / "tensorrt").is_dir() for folder in sys.path if folder != str(standin.FOLDER)):
        pytest.skip("TensorRT is installed here")
    refused(
        make(), EngineError, r"the build ended with exit code 1 in the phase 'starting': ModuleNotFoundError: .*log"
    )


# Refused once the child has told what machine this is


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sm": 86}, r"expected a GPU of compute capability 8\.7, found 8\.6"),
        ({"version": "10.3.0"}, rf"expected TensorRT {standin.VERSION}, found 10\.3\.0; export the bundle with"),
    ],
)
def test_another_machine(settings: dict[str, object], message: str, make: Make) -> None:
    with standin.installed(**settings):
        refused(make(), BundleError, message)


def test_a_bundle_without_a_deploy_graph(make: Make) -> None:
    bundle = make()
    manifest = replace(bundle.manifest, files=tuple(f for f in bundle.manifest.files if f.path != "deploy.onnx"))
    with standin.installed():
        refused(replace(bundle, manifest=manifest), BundleError, "expected deploy.onnx in the bundle, found none")


def test_a_missing_plugin(make: Make) -> None:
    some = {name: version for name, version in VERSIONS.items() if name != "OrinAttention"}
    with standin.installed():
        refused(make(library=standin.plugin_library(some)), BundleError, "expected the plugin OrinAttention version 1")
        refused(make("none", library=b"\x7fELF"), EngineError, "cannot load the plugin library: .*export the bundle")


def test_a_killed_build_leaves_the_old_plan(make: Make) -> None:
    """Case B18."""
    bundle = make()
    with standin.installed():
        old = device.build(bundle)
    message = r"killed by SIGKILL in the phase 'Building Engine', likely out of memory: MemAvailable was \d+ MiB then"
    with standin.installed(build="killed"):
        with pytest.raises(ResourceError, match=message):
            device.build(bundle, BuildOptions(optimization_level=4))
        assert device.build(bundle).record == old.record
    assert left(bundle) == {old.path.name, f"{old.path.stem}.json", "timing.cache"}


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("crashed", r"the build ended by SIGABRT .*nothing was left behind; the whole log is .*build\.log"),
        ("refused", "TensorRT cannot build the plan: Builder: cancelled by the progress monitor"),
        ("hangs", r"took longer than 1\.5 s, in the phase '.*'; nothing was left behind; .*longer --timeout"),
    ],
)
def test_a_build_that_ends_badly(ending: str, message: str, make: Make) -> None:
    """Case B19: the child is gone, and nothing holds the lock."""
    bundle = make()
    with standin.installed(build=ending):
        refused(bundle, EngineError, message, timeout_s=1.5 if ending == "hangs" else 60)
    assert not [name for name in left(bundle) if name.endswith(".part")]


def test_two_builds_at_once(make: Make) -> None:
    bundle = make()
    with standin.installed():
        path = device.build(bundle).path
        from orinkit.bundle import files

        with files.replacing(path, files.part_of(path)) as held:
            held.write(b"another build")
            with pytest.raises(LockedError, match="expected to be the only writer, found another run; wait"):
                device.build(bundle, BuildOptions(optimization_level=1))


@contextmanager
def small_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_when_the_plan_is_written(make: Make) -> None:
    bundle = make()
    with standin.installed(), small_files():
        refused(bundle, ResourceError, "writing the plan: File too large; free some space and try again")


def test_a_timing_cache_of_something_else_is_ignored(make: Make) -> None:
    """Case B20: one of another TensorRT, one that this board did not write, and one that is damaged."""
    bundle = make()
    with standin.installed():
        folder = device.build(bundle).path.parent
        good = (folder / "timing.cache").read_bytes()
        foreign = plan_key.code(plan_key.read(), b"of another TensorRT") + b"of another TensorRT"
        for level, content in enumerate([foreign, bytes(32) + good[32:], good[:-1], b""]):
            (folder / "timing.cache").write_bytes(content)
            assert device.build(bundle, BuildOptions(optimization_level=level)).is_new
            assert (folder / "timing.cache").read_bytes() == good


def test_the_bundle_stays_as_it_is(make: Make) -> None:
    bundle = make()
    before = (bundle.folder / MANIFEST).stat()
    with standin.installed():
        device.build(bundle)
    assert (bundle.folder / MANIFEST).stat() == before
