# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from orinkit.bundle import write
from orinkit.errors import BundleError
from toolkit.bundle.samples import manifest, opened, staged


@pytest.mark.parametrize("size", [(2 << 30) + 1, (4 << 30) + 1])
def test_the_last_byte_of_a_large_file_counts(size: int, tmp_path: Path) -> None:
    folder = staged(tmp_path / "bundle")
    with (folder / "model.data").open("r+b") as file:
        file.truncate(size)
        written = write(folder, manifest())
        assert written.files[0].size == size
        file.seek(size - 1)
        file.write(b"\x01")
        file.flush()
        with pytest.raises(BundleError, match=r"model\.data: expected SHA-256"):
            opened(folder)
        file.truncate(size - 1)
        with pytest.raises(BundleError, match=rf"model\.data: expected {size} bytes, found {size - 1}"):
            opened(folder)
    (folder / "model.data").unlink()
