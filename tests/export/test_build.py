# SPDX-License-Identifier: Apache-2.0
"""Builds that are repeated, changed, interrupted, killed and starved, as processes of their own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mistakes import UP, Act, recipe, weight
from orinkit import target
from orinkit.bundle import Bundle, generate, load_keys
from orinkit.errors import OrinError
from orinkit.ops import VERSIONS
from orinkit_export import plan
from orinkit_export.build import build
from programs import ENVIRONMENT, PROGRESS, TARGET, command, content, desk, listing, refused, run, small_desk, succeed

BUILD: tuple[str | Path, ...] = ("build", "recipe.yaml", "--target", TARGET, "-o", "out")
MOMENTS = 10
AT = """
import os, resource, signal, sys
wanted, what = sys.argv[1], sys.argv[2]
def seen(event, arguments):
    if arguments and f"{event} {os.path.basename(str(arguments[0]))}" == wanted:
        if what == "starve":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        else:
            os.kill(os.getpid(), signal.Signals[what])
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[:] = ["orin-export", *sys.argv[3:]]
from orinkit_export.cli import main
sys.addaudithook(seen)
main()
"""
"""Runs orin-export. When Python announces an event (a name, and what its first argument ends in), the process gets a
signal, or from then on no file may grow."""
KILLED = {
    "os.mkdir out.work": "old",
    "open lock": "old",
    "os.mkdir model.partial": "old",
    "open stage.json": "old",
    "open model.data": "old",
    "open model.onnx": "old",
    "os.rename model.partial": "old",
    "open verify.json": "old",
    "os.rename verify.partial": "old",
    "shutil.copyfile model.data": "old",
    "open .bundle.manifest.json.part": "old",
    "os.rename out": "old",
    "os.rename bundle": "none",
    "os.remove verify.json": "new",
    "os.remove lock": "new",
}
"""Events of a build that replaces a bundle, in their order, and which bundle is there then."""
STARVED = (
    "open stage.json",
    "open model.data",
    "open model.onnx",
    "open verify.json",
    "shutil.copyfile model.data",
    "open .bundle.manifest.json.part",
)
CALIBRATING = (
    "open next.npy",
    "os.rename next.npy",
    "open layers.0.mixer.fold.json",
    "open layers.1.gate_up.weight.json",
    "open hidden-2.npy",
    "open head.weight.json",
    "shutil.rmtree calibration",
    "open model.onnx",
)
INTERRUPTED = (
    "open model.data",
    "os.rename model.partial",
    "open verify.json",
    "shutil.copyfile model.data",
    "os.rename out",
    "os.rename bundle",
)


def at(event: str, what: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A build in `folder` to which something happens at an event."""
    return subprocess.run(
        [sys.executable, "-c", AT, event, what, *map(str, BUILD)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def only_the_bundle(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} == {"recipe.yaml", "checkpoint", "out"}


def finish(folder: Path) -> Bundle:
    """The same build in this process."""
    return build(plan.read(folder / "recipe.yaml"), target.read(TARGET), folder / "out")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its checkpoint and its bundle `out`."""
    folder = desk(tmp_path_factory.mktemp("undisturbed"))
    succeed("orin-export", *BUILD, cwd=folder)
    return folder


@pytest.fixture
def built(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(undisturbed, tmp_path / "built")


@pytest.fixture
def replacing(tmp_path: Path) -> Path:
    """A folder with the plain recipe, in which `out` is the bundle of another one."""
    folder = desk(tmp_path)
    recipe(name="older")(folder)
    finish(folder)
    recipe()(folder)
    return folder


def test_the_same_inputs_give_the_same_bytes_anywhere(undisturbed: Path, tmp_path: Path) -> None:
    other = tmp_path / "a/b"
    arguments = (undisturbed / "recipe.yaml", "--target", TARGET, "--checkpoint", desk(other) / "checkpoint")
    succeed("orin-export", "build", *arguments, "-o", other / "out", cwd=tmp_path)
    assert content(other / "out") == content(undisturbed / "out")
    assert only_the_bundle(other)


def test_nothing_of_the_environment_gets_into_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setitem(ENVIRONMENT, name, "hf_abcdefghijklmnop")
    succeed("orin-export", *BUILD, cwd=desk(tmp_path))
    secrets = (b"hf_abcdefghijklmnop", str(tmp_path).encode(), str(Path.home()).encode() + b"/")
    assert [secret for secret in secrets for file in content(tmp_path / "out").values() if secret in file] == []


def test_a_second_run_does_nothing(built: Path) -> None:
    before = listing(built)
    done = run("orin-export", *BUILD, cwd=built)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == f"{built}/out is up to date"
    assert listing(built) == before


def test_a_run_with_a_key_only_signs(built: Path) -> None:
    (built / "keys").mkdir(mode=0o755)
    generate(built / "keys/key")
    before = listing(built / "out")
    succeed("orin-export", *BUILD, "--sign", "keys/key", cwd=built)
    after = listing(built / "out")
    assert after.pop("manifest.sig")
    assert after == before
    Bundle.open(built / "out", keys=load_keys(built / "keys"), supported=VERSIONS)


CHANGES: dict[str, Act] = {
    "name": recipe(name="other"),
    "capacity": recipe(shapes={"capacity": 128, "slots": 2, "chunk": 32}),
    "format": recipe(quantise={"method": "rtn", "head": "int8"}),
    "golden": recipe(golden={"prompts": ["ROMEO:"], "tokens": 3}),
    "damage": lambda folder: (folder / "out/model.data").write_bytes(b"damaged"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_built(change: Act, built: Path) -> None:
    before = listing(built / "out")
    change(built)
    made = finish(built)
    assert listing(built / "out")["manifest.json"] != before["manifest.json"]
    assert only_the_bundle(built)
    assert Bundle.open(built / "out", keys=None, supported=VERSIONS) == made


def test_a_link_to_a_folder_stays_a_link(built: Path) -> None:
    (built / "out").rename(built / "real")
    (built / "out").symlink_to("real")
    recipe(name="other")(built)
    assert finish(built).folder == built / "real"
    assert (built / "out").readlink() == Path("real")


FAILURES: dict[str, Act] = {
    "model": weight(UP, float("nan"), 0),
    "verify": weight("model.layers.0.input_layernorm.weight", 3e4),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_build_that_fails_keeps_the_old_bundle(failure: Act, replacing: Path) -> None:
    failure(replacing)
    before = listing(replacing / "out")
    with pytest.raises(OrinError):
        finish(replacing)
    assert listing(replacing / "out") == before


def test_a_build_that_is_killed_at_any_event_is_finished_by_the_next(undisturbed: Path, replacing: Path) -> None:
    """Each run is killed a little further on; what the last one leaves is what an undisturbed build gives."""
    bundles = {"old": content(replacing / "out"), "none": {}, "new": content(undisturbed / "out")}
    for event, expected in KILLED.items():
        assert at(event, "SIGKILL", replacing).returncode == -signal.SIGKILL, event
        assert content(replacing / "out") == bundles[expected], event
    finish(replacing)
    assert content(replacing / "out") == bundles["new"]
    assert only_the_bundle(replacing)


def test_a_calibrated_build_that_is_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "OPENBLAS_NUM_THREADS", "1")  # sums of another order round otherwise
    whole, folder = small_desk(tmp_path / "whole"), small_desk(tmp_path / "killed")
    succeed("orin-export", *BUILD, cwd=whole)
    for event in CALIBRATING:
        assert at(event, "SIGKILL", folder).returncode == -signal.SIGKILL, event
    succeed("orin-export", *BUILD, cwd=folder)
    assert content(folder / "out") == content(whole / "out")
    assert only_the_bundle(folder)


def test_a_build_that_is_killed_at_any_moment_is_finished_by_the_next(undisturbed: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    succeed("orin-export", *BUILD, cwd=desk(tmp_path / "whole"))
    whole = time.monotonic() - start
    for moment in range(MOMENTS):
        folder = desk(tmp_path / str(moment))
        with subprocess.Popen(
            command("orin-export", *BUILD), cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE
        ) as child:
            time.sleep(whole * (moment + 0.5) / MOMENTS)
            child.kill()
        assert content(folder / "out") in ({}, content(undisturbed / "out"))
        finish(folder)
        assert content(folder / "out") == content(undisturbed / "out")
        assert only_the_bundle(folder)
        shutil.rmtree(folder)


def test_ctrl_c_ends_a_build_and_the_next_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    folder, start = desk(tmp_path), command("orin-export", *BUILD)
    with subprocess.Popen(start, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        assert child.stderr.readline().startswith("hash: ")
        child.send_signal(signal.SIGINT)
        said = child.stderr.readlines()
    assert child.returncode == 130
    assert [line for line in said if line.strip() and not PROGRESS.fullmatch(line.strip())] == []
    assert not (folder / "out").exists()
    finish(folder)
    assert content(folder / "out") == content(undisturbed / "out")
    assert only_the_bundle(folder)


def test_an_interrupt_at_any_event_leaves_the_old_bundle(undisturbed: Path, replacing: Path) -> None:
    """Each run is interrupted a little further on."""
    old = listing(replacing / "out")
    for event in INTERRUPTED:
        done = at(event, "SIGINT", replacing)
        assert (done.returncode, "error: " in done.stderr, "Traceback" in done.stderr) == (130, False, False), event
        assert listing(replacing / "out") == old, event
    finish(replacing)
    assert content(replacing / "out") == content(undisturbed / "out")
    assert only_the_bundle(replacing)


def test_without_space_the_old_bundle_stays_and_the_next_run_goes_on(undisturbed: Path, replacing: Path) -> None:
    """Each run finds no space a little further on."""
    old = listing(replacing / "out")
    for event in STARVED:
        refused(at(event, "starve", replacing), ("out.work", "File too large", "free some space"), 75)
        assert listing(replacing / "out") == old, event
    finish(replacing)
    assert content(replacing / "out") == content(undisturbed / "out")
    assert only_the_bundle(replacing)
