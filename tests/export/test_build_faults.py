# SPDX-License-Identifier: Apache-2.0
"""Builds that are killed, interrupted and starved, as processes of their own."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from programs import (
    BUILD,
    ENVIRONMENT,
    PROGRESS,
    SMALL,
    command,
    content,
    finish,
    is_tidy,
    listing,
    refused,
    small_desk,
    write_recipe,
)

MEASURED = SMALL | {"quantise": {"method": "awq+gptq", "bits": 4.8, "head": "auto"}}
"""A recipe for a small random model with every stage that there is."""
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
    ("open lock", "old"),
    ("open stage.json", "old"),
    ("os.rename next.npy", "old"),
    ("open layers.1.gate_up.weight.json", "old"),
    ("open formats.json", "old"),
    ("os.rename formats.partial", "old"),
    ("shutil.rmtree streams", "old"),
    ("os.rename next.npy", "old"),
    ("open layers.1.gate_up.weight.json", "old"),
    ("os.rename model.partial", "old"),
    ("shutil.rmtree calibration", "old"),
    ("os.rename verify.partial", "old"),
    ("os.rename evaluate.partial", "old"),
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
INTERRUPTED = ("open model.data", "open verify.json", "os.rename out", "os.rename bundle")


def desk(folder: Path) -> Path:
    """A folder with that recipe and its checkpoint."""
    small_desk(folder)
    write_recipe(folder / "recipe.yaml", MEASURED)
    return folder


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


@contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A build in `folder` that has begun to work; it is waited for."""
    start = command("orin-export", *BUILD)
    with subprocess.Popen(start, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        assert child.stderr.readline().startswith("hash: ")
        yield child


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the bundle that all the other builds have to come to."""
    folder = desk(tmp_path_factory.mktemp("undisturbed"))
    finish(folder)
    return content(folder / "out")


@pytest.fixture
def replacing(tmp_path: Path) -> Path:
    """A folder with the recipe of that bundle, in which `out` is the bundle of another recipe."""
    folder = desk(tmp_path)
    write_recipe(folder / "recipe.yaml", SMALL, quantise={"method": "none"})
    finish(folder)
    write_recipe(folder / "recipe.yaml", MEASURED)
    return folder


def test_a_build_that_is_killed_at_any_event_is_finished_by_the_next(
    undisturbed: dict[str, bytes], replacing: Path
) -> None:
    """Each run is killed a little further on; what the last one leaves is what an undisturbed build gives."""
    bundles = {"old": content(replacing / "out"), "none": {}, "new": undisturbed}
    for event, expected in KILLED:
        assert at(event, "SIGKILL", replacing).returncode == -signal.SIGKILL, event
        assert content(replacing / "out") == bundles[expected], event
    finish(replacing)
    assert content(replacing / "out") == undisturbed
    assert is_tidy(replacing)


def test_a_build_that_is_killed_at_any_moment_is_finished_by_the_next(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """One moment of each tenth of the time that a build takes, drawn anew in each run."""
    start = time.monotonic()
    finish(desk(tmp_path / "whole"))
    whole = time.monotonic() - start
    for part in range(MOMENTS):
        folder, seconds = desk(tmp_path / str(part)), whole * random.uniform(part, part + 1) / MOMENTS
        with started(folder) as child:
            time.sleep(seconds)
            child.kill()
        assert content(folder / "out") in ({}, undisturbed), seconds
        finish(folder)
        assert content(folder / "out") == undisturbed, seconds
        assert is_tidy(folder), seconds


def test_ctrl_c_ends_a_build_and_the_next_goes_on(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder = desk(tmp_path)
    with started(folder) as child:
        child.send_signal(signal.SIGINT)
        said = child.communicate()[1].splitlines()
    assert child.returncode == 130
    assert [line for line in said if line and not PROGRESS.fullmatch(line)] == []
    assert not (folder / "out").exists()
    finish(folder)
    assert content(folder / "out") == undisturbed
    assert is_tidy(folder)


def test_an_interrupt_at_any_event_leaves_the_old_bundle(undisturbed: dict[str, bytes], replacing: Path) -> None:
    """Each run is interrupted a little further on."""
    old = listing(replacing / "out")
    for event in INTERRUPTED:
        done = at(event, "SIGINT", replacing)
        assert (done.returncode, "error: " in done.stderr, "Traceback" in done.stderr) == (130, False, False), event
        assert listing(replacing / "out") == old, event
    finish(replacing)
    assert content(replacing / "out") == undisturbed
    assert is_tidy(replacing)


def test_without_space_the_old_bundle_stays_and_the_next_goes_on(
    undisturbed: dict[str, bytes], replacing: Path
) -> None:
    """Each run finds no space a little further on."""
    old = listing(replacing / "out")
    for event in STARVED:
        refused(at(event, "starve", replacing), ("/out.work", "File too large", "free some space"), 75)
        assert listing(replacing / "out") == old, event
    finish(replacing)
    assert content(replacing / "out") == undisturbed
    assert is_tidy(replacing)
