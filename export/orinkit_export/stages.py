# SPDX-License-Identifier: Apache-2.0
"""Stages: functions from inputs to a folder, each run at most once for the same inputs.

A stage works in `<name>.partial` and renames it to `<name>` when it is complete; `stage.json` in it records the inputs.
The same inputs again: nothing to do. Killed half-way: the partial folder is handed to the next run, which goes on.
Other inputs: started afresh.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orinkit.errors import LockedError
from orinkit_export.disk import writing

RECORD = "stage.json"


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
    make(partial)
    shutil.rmtree(done, ignore_errors=True)
    partial.rename(done)
    return done


def _recorded(folder: Path) -> str | None:
    path = folder / RECORD
    return path.read_text(encoding="utf-8") if path.is_file() else None


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold the lock of a work folder. Raises LockedError, ResourceError."""
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LockedError(f"{work}: another export is working here; wait for it or choose another output") from None
    try:
        yield
    finally:
        os.close(descriptor)
