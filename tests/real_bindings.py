# SPDX-License-Identifier: Apache-2.0
"""Prints as JSON what TensorRT's real Python bindings have and do, without TensorRT: run by test_tensorrt_api.py.

The bindings are linked against three libraries; empty ones stand for them, whose functions are never called here.
CUDA is the stand-in's.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    import tensorrt_bindings as trt

    sys.modules["tensorrt"] = trt
    from orinkit.device.builder import Monitor
    from orinkit.engines.trt_library import ErrorRecorder, Log

    print(json.dumps({"classes": _classes(trt), "calls": _calls(trt, ErrorRecorder(), Log(), Monitor)}))


def _classes(trt: Any) -> dict[str, dict[str, Any]]:
    """Members of every class, with the bindings' own signatures."""
    found = {}
    for name in dir(trt):
        kind = getattr(trt, name)
        if isinstance(kind, type):
            members = {member: str(getattr(kind, member).__doc__ or "") for member in dir(kind)}
            found[name] = {"members": members, "enum": sorted(getattr(kind, "__members__", ()))}
    return found


def _calls(trt: Any, recorder: Any, log: Any, monitor: Any) -> dict[str, Any]:
    """What reaches our classes when C++ calls them: each call goes through the table of virtual functions."""
    told: list[Any] = []
    ours = monitor(told.append)
    trt.IProgressMonitor.phase_start(ours, "Building", "", 2)
    go_on = trt.IProgressMonitor.step_complete(ours, "Building", 0)
    trt.ILogger.log(log, trt.ILogger.ERROR, "a reason")
    fatal = trt.IErrorRecorder.report_error(recorder, trt.ErrorCodeTRT.FAILED_EXECUTION, "no memory")
    return {
        "count": trt.IErrorRecorder.num_errors(recorder),
        "code": trt.IErrorRecorder.get_error_code(recorder, 0).name,
        "text": trt.IErrorRecorder.get_error_desc(recorder, 0),
        "overflowed": trt.IErrorRecorder.has_overflowed(recorder),
        "fatal": fatal,
        "reason": log.reason(),
        "go_on": go_on,
        "told": told,
    }


if __name__ == "__main__":
    main()
