# SPDX-License-Identifier: Apache-2.0
"""Which TensorRT the stand-in plays, from the environment variable TENSORRT_STANDIN (JSON):

version   such as "10.3.0"; decides operator set, the stream reader, numbers of enums
build     how a build ends: "killed", "crashed", "hangs", "refused"; left out: well
aux       streams that a plan wants beside the main one, where the build allows them
execute   "cuda": plans run on a real GPU, by the library of orinkit's kernels at the path `kernels`; left out: by ONNX
          Runtime on the stand-in for CUDA
"""

from __future__ import annotations

import json
import os
from typing import Any

SETTINGS: dict[str, Any] = json.loads(os.environ.get("TENSORRT_STANDIN", "{}"))
VERSION: str = SETTINGS.get("version", "10.16.2.10")


def number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def opset_max() -> int:
    """Newest operator set that the parser takes."""
    return 20 if number(VERSION) < (10, 6) else 22 if number(VERSION) < (10, 14) else 24
