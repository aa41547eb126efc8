# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import standin
from orinkit.errors import PlanError


class Reading:
    """A runtime that reads a plan in the order in which TensorRT may, and keeps what it got."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize_cuda_engine(self, source: Any) -> object:
        import tensorrt

        if hasattr(tensorrt, "IStreamReaderV2"):
            where = tensorrt.SeekPosition
            tail = source.seek(-4, where.END) and bytes(source.read(4, 0))
            head = source.seek(0, where.SET) and bytes(source.read(3, 0))
            assert source.seek(2, where.CUR)
            assert not source.seek(1, where.END)
            self.content = head + bytes(source.read(1 << 20, 0)) + tail
            source.seek(5, where.SET)
            self.content = head + b"--" + bytes(source.read(100, 0)) + tail
        else:
            self.content = bytes(memoryview(source))
        return self


@pytest.mark.parametrize("version", ["10.3.0", "10.7.0", "11.4.1"])
def test_every_release_reads_the_whole_plan(version: str, tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    path.write_bytes(b"abcdefghij")
    with standin.installed(version=version):
        from orinkit.engines.trt_library import Log
        from orinkit.engines.trt_plan import PlanFile

        runtime: Any = Reading()
        PlanFile(path).deserialise(runtime, Log())
        assert runtime.content == (b"abcdefghij" if version == "10.3.0" else b"abc--fghijghij")


@pytest.mark.parametrize("version", ["10.3.0", "10.16.2.10"])
@pytest.mark.parametrize("content", [b"standin plan", b"standin plan\n{}", b"\0" * 5000])
def test_what_tensorrt_refuses_is_told_with_its_reason(content: bytes, version: str, tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    path.write_bytes(content)
    with standin.installed(version=version):
        import tensorrt

        from orinkit.engines.trt_library import Log
        from orinkit.engines.trt_plan import PlanFile

        log = Log()
        with pytest.raises(PlanError, match=r"a\.plan: TensorRT refuses the plan: deserializeCudaEngine: .*build it"):
            PlanFile(path).deserialise(tensorrt.Runtime(log), log)
