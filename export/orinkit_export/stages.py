# SPDX-License-Identifier: Apache-2.0
"""Stages: functions from inputs to a folder, each run at most once for the same inputs.

A stage works in `<name>.partial` and renames it to `<name>` when it is complete; `stage.json` in it records the inputs.
The same inputs again: nothing to do. Killed half-way: the partial folder is handed to the next run, which goes on.
Other inputs: started afresh. Inputs that a stage refuses will be refused again: their partial folder is removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from orinkit.errors import ArtefactError, BundleError, ConfigError, LockedError
from orinkit_export.disk import writing

LOCK, RECORD = "lock", "stage.json"


def run(work: Path, name: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder of stage `name` below `work`, made by `make(folder)` unless it is there for the same `inputs`."""
    done, partial = work / name, work / f"{name}.partial"
    record = json.dumps(inputs, sort_keys=True, indent=1) + "\n"
    if _recorded(done) == record:
        return done
    if _recorded(partial) != record:
        shutil.rmtree(partial, ignore_errors=True)
        with writing(work):
            partial.mkdir(parents=True)
            (partial / RECORD).write_text(record, encoding="utf-8")
    try:
        make(partial)
    except (ArtefactError, ConfigError):
        shutil.rmtree(partial, ignore_errors=True)
        raise
    with writing(work):
        _sync(partial)
        shutil.rmtree(done, ignore_errors=True)
        partial.rename(done)
    return done


def _recorded(folder: Path) -> str | None:
    path = folder / RECORD
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _sync(folder: Path) -> None:
    """What a stage made lasts through a power cut before it has its name."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def clear(work: Path) -> None:
    """Remove all stages, and not the lock: a folder without it is taken for somebody else's."""
    for name in _names(work) - {LOCK}:
        shutil.rmtree(work / name, ignore_errors=True)


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold the lock of a work folder, which is removed in the end unless it keeps a stage to go on with.

    Raises LockedError, ResourceError, and BundleError when the folder is not one of ours.
    """
    found = _names(work)
    if found and LOCK not in found:
        raise BundleError(f"{work}: expected to work here, found {min(found)!r}; choose another output or remove it")
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
        file = (work / LOCK).open("wb")
    with file:
        _claim(file, work)
        try:
            yield
        finally:
            if _names(work) == {LOCK}:
                shutil.rmtree(work, ignore_errors=True)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*")}


def _claim(file: IO[bytes], work: Path) -> None:
    """Lock the opened lock file, if it is still the one in the folder: the run before may have removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = os.path.samestat(os.fstat(file.fileno()), (work / LOCK).lstat())
    except (BlockingIOError, FileNotFoundError):
        is_ours = False
    if not is_ours:
        raise LockedError(f"{work}: another export is working here; wait for it or choose another output")
