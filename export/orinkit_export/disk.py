# SPDX-License-Identifier: Apache-2.0
"""Disk space: asked for before, and failed writes told as such."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orinkit.errors import ResourceError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within, only `folder` is written: an OSError becomes a ResourceError that names it."""
    try:
        yield
    except OSError as error:
        advice = "free some space" if error.errno in _NO_SPACE else "check the path and who may write there,"
        raise ResourceError(
            f"{folder}: writing failed ({error.strerror}); {advice} or choose another output, and run again"
        ) from None


def check_space(folder: Path, total: int) -> None:
    """Raises ResourceError when the disk of `folder` has no room for `total` bytes, those that lie there included."""
    needed = total - sum(path.lstat().st_size for path in folder.rglob("*"))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder}: expected {needed / 1e9:.2f} GB free for weights and bundle, found {free / 1e9:.2f} GB; "
            "free some space or choose another output folder"
        )
