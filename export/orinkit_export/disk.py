# SPDX-License-Identifier: Apache-2.0
"""Disk space: asked for before, and failed writes told as such."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orinkit.errors import ResourceError


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within, only `folder` is written: an OSError becomes a ResourceError that names it."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{folder}: writing failed ({error.strerror}); free some space or choose another output, and run again"
        ) from None


def check_space(folder: Path, needed: int) -> None:
    """Raises ResourceError when the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder}: expected {needed / 1e9:.2f} GB free for weights and bundle, found {free / 1e9:.2f} GB; "
            "free some space or choose another output folder"
        )
