# SPDX-License-Identifier: Apache-2.0
"""Builds that are killed, interrupted and starved, as processes of their own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mistakes import recipe
from programs import (
    BUILD,
    ENVIRONMENT,
    PROGRESS,
    command,
    content,
    desk,
    finish,
    is_tidy,
    listing,
    refused,
    small_desk,
    succeed,
)

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
KILLED = (
    ("os.mkdir out.work", "old"),
    ("open lock", "old"),
    ("os.mkdir model.partial", "old"),
    ("open stage.json", "old"),
    ("open model.data", "old"),
    ("open model.onnx", "old"),
    ("os.rename model.partial", "old"),
    ("open verify.json", "old"),
    ("os.rename verify.partial", "old"),
    ("shutil.copyfile model.data", "old"),
    ("open .bundle.manifest.json.part", "old"),
    ("os.rename out", "old"),
    ("os.rename bundle", "none"),
    ("os.rename out", "old"),
    ("os.remove verify.json", "new"),
    ("os.remove lock", "new"),
)
"""Events of a build that replaces a bundle, in their order, and which bundle is there then. A run that finds none puts
the old one back before it goes on."""
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its checkpoint and its bundle `out`."""
    folder = desk(tmp_path_factory.mktemp("undisturbed"))
    finish(folder)
    return folder


@pytest.fixture
def replacing(tmp_path: Path) -> Path:
    """A folder with the plain recipe, in which `out` is the bundle of another one."""
    folder = desk(tmp_path)
    recipe(name="older")(folder)
    finish(folder)
    recipe()(folder)
    return folder


def test_a_build_that_is_killed_at_any_event_is_finished_by_the_next(undisturbed: Path, replacing: Path) -> None:
    """Each run is killed a little further on; what the last one leaves is what an undisturbed build gives."""
    bundles = {"old": content(replacing / "out"), "none": {}, "new": content(undisturbed / "out")}
    for event, expected in KILLED:
        assert at(event, "SIGKILL", replacing).returncode == -signal.SIGKILL, event
        assert content(replacing / "out") == bundles[expected], event
    finish(replacing)
    assert content(replacing / "out") == bundles["new"]
    assert is_tidy(replacing)


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
    assert is_tidy(folder)


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
        assert is_tidy(folder)
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
    assert is_tidy(folder)


def test_an_interrupt_at_any_event_leaves_the_old_bundle(undisturbed: Path, replacing: Path) -> None:
    """Each run is interrupted a little further on."""
    old = listing(replacing / "out")
    for event in INTERRUPTED:
        done = at(event, "SIGINT", replacing)
        assert (done.returncode, "error: " in done.stderr, "Traceback" in done.stderr) == (130, False, False), event
        assert listing(replacing / "out") == old, event
    finish(replacing)
    assert content(replacing / "out") == content(undisturbed / "out")
    assert is_tidy(replacing)


def test_without_space_the_old_bundle_stays_and_the_next_run_goes_on(undisturbed: Path, replacing: Path) -> None:
    """Each run finds no space a little further on."""
    old = listing(replacing / "out")
    for event in STARVED:
        refused(at(event, "starve", replacing), ("out.work", "File too large", "free some space"), 75)
        assert listing(replacing / "out") == old, event
    finish(replacing)
    assert content(replacing / "out") == content(undisturbed / "out")
    assert is_tidy(replacing)
