# SPDX-License-Identifier: Apache-2.0
"""Kills writers of bundles and prints as JSON what each kill left: "old" or "new".

    steps ACTION    one child for each step of the action, killed at that step; a step is whatever Python announces to
                    audit hooks (open, mkdir, chmod, rename, ...) and each block that was hashed
    moments ACTION  children that are killed at random moments

After each kill the same action is done again; it must succeed and leave nothing beside its result.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from orinkit.bundle import Bundle, generate, load_keys, pack, sign, unpack, write
from orinkit.bundle.manifest import decode
from orinkit.errors import SignatureError
from toolkit.bundle.samples import SUPPORTED, manifest, opened, staged

MOMENTS = 12
SIZES = {"steps": (1 << 20) + 1, "moments": 16 << 20}
"""Bytes of model.data."""
Progress = Callable[[int], None]
Act = Callable[[Path, Progress], None]


def prepared(parent: Path, size: int) -> Path:
    """A folder with everything that an action starts from."""
    for name in ("staging", "bundle"):
        folder = staged(parent / name)
        (folder / "model.data").write_bytes(random.Random(1).randbytes(size))
        write(folder, manifest())
    for name in ("first", "second"):
        (parent / name).mkdir(mode=0o755)
        generate(parent / name / "key")
    sign(parent / "bundle", parent / "first/key")
    pack(parent / "bundle", parent / "good.tar")
    (parent / "bundle.tar").write_bytes(b"older")
    return parent


def _write(parent: Path, progress: Progress) -> None:
    write(parent / "staging", manifest(version=2), progress)


def _written(parent: Path) -> str:
    version = decode((parent / "staging/manifest.json").read_bytes()).version
    assert opened(parent / "staging").manifest.version == version
    return {1: "old", 2: "new"}[version]


def _sign(parent: Path, _: Progress) -> None:
    sign(parent / "bundle", parent / "second/key")


def _signed(parent: Path) -> str:
    try:
        Bundle.open(parent / "bundle", keys=load_keys(parent / "first"), supported=SUPPORTED)
    except SignatureError:
        Bundle.open(parent / "bundle", keys=load_keys(parent / "second"), supported=SUPPORTED)
        return "new"
    return "old"


def _pack(parent: Path, progress: Progress) -> None:
    pack(parent / "bundle", parent / "bundle.tar", progress)


def _packed(parent: Path) -> str:
    return {b"older": "old", (parent / "good.tar").read_bytes(): "new"}[(parent / "bundle.tar").read_bytes()]


def _unpack(parent: Path, progress: Progress) -> None:
    unpack(parent / "good.tar", parent / "new", keys=None, supported=SUPPORTED, progress=progress)


def _unpacked(parent: Path) -> str:
    return "new" if (parent / "new").exists() and opened(parent / "new") else "old"


ACTIONS = {
    "write": (_write, _written),
    "sign": (_sign, _signed),
    "pack": (_pack, _packed),
    "unpack": (_unpack, _unpacked),
}


def at_step(step: int, act: Act, folder: Path) -> bool:
    """Do it in a child that is killed at this step; whether it took so many."""
    pid = os.fork()
    if pid == 0:
        count = itertools.count(1)

        def took(event: str, _: object = None) -> None:
            if event.startswith(("open", "os.", "shutil.", "fcntl.", "block")) and next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(took)
        act(folder, lambda _: took("block"))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def at_moment(delay: float, act: Act, folder: Path) -> bool:
    """Do it in a child that is killed after this many seconds, if it still lives."""
    pid = os.fork()
    if pid == 0:
        act(folder, lambda _: None)
        os._exit(0)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0


def states(way: str, action: str, parent: Path) -> Iterator[str]:
    """What each kill left."""
    act, state = ACTIONS[action]
    good = prepared(parent / "good", SIZES[way])
    chance = random.Random(2)
    moments = (partial(at_moment, chance.uniform(0, 0.1)) for _ in range(MOMENTS))
    for kill in moments if way == "moments" else (partial(at_step, step) for step in itertools.count(1)):
        folder = shutil.copytree(good, parent / "try")
        if not kill(act, folder):
            return
        yield state(folder)
        if state(folder) == "old":
            act(folder, lambda _: None)
        assert state(folder) == "new"
        assert {path.name for path in folder.iterdir()} <= {"new", *(path.name for path in good.iterdir())}
        shutil.rmtree(folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        json.dump(list(states(sys.argv[1], sys.argv[2], Path(temporary))), sys.stdout)
