# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import standin
from orinkit.errors import BundleError, EngineError
from orinkit.ops import OPS, VERSIONS


@pytest.fixture
def library() -> Iterator[Any]:
    with standin.installed(sm=87, driver=13020, cuda=12060):
        from orinkit.engines import trt_library

        yield trt_library


def registry(log: Any) -> Any:
    import tensorrt

    return tensorrt.IPluginRegistry(log)


def plugins(folder: Path, **how: Any) -> Path:
    path = folder / "liborin_plugins.so"
    path.write_bytes(standin.plugin_library(**how))
    return path


def test_what_machine_this_is(library: Any) -> None:
    found = library.read_machine()
    assert (found.sm, found.driver, found.cuda, found.tensorrt) == (87, "13.2", "12.6", standin.VERSION)


def test_every_op_has_its_creator_and_a_second_load_is_none(library: Any, tmp_path: Path) -> None:
    log = library.Log()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        library.load_plugins(registry(log), plugins(tmp_path / folder), log)
    assert log.reason() == "TensorRT gave no reason"


def test_another_library_needs_another_process(library: Any, tmp_path: Path) -> None:
    log = library.Log()
    library.load_plugins(registry(log), plugins(tmp_path), log)
    with pytest.raises(EngineError, match="expected the plugin library that this process has loaded, found another"):
        library.load_plugins(registry(log), plugins(tmp_path, extra=b"changed"), log)


@pytest.mark.parametrize(
    "creators",
    [{name: version for name, version in VERSIONS.items() if name != "OrinLinear"}, VERSIONS | {"OrinLinear": "2"}],
    ids=["none", "another version"],
)
def test_a_missing_plugin_is_named(creators: dict[str, str], library: Any, tmp_path: Path) -> None:
    log = library.Log()
    message = r"expected the plugin OrinLinear version 1 in namespace 'orin', found none \(1 missing\); export"
    with pytest.raises(BundleError, match=message):
        library.load_plugins(registry(log), plugins(tmp_path, creators=creators), log)


def test_what_is_no_library_is_told_with_tensorrts_reason(library: Any, tmp_path: Path) -> None:
    path, log = tmp_path / "liborin_plugins.so", library.Log()
    path.write_bytes(b"not a library")
    with pytest.raises(EngineError, match=r"TensorRT cannot load the plugin library: .*invalid ELF header; export"):
        library.load_plugins(registry(log), path, log)


def test_the_log_keeps_errors_only(library: Any) -> None:
    import tensorrt

    log = library.Log()
    log.log(tensorrt.ILogger.WARNING, "slow")
    assert log.reason() == "TensorRT gave no reason"
    for count in range(9):
        log.log(tensorrt.ILogger.ERROR, f"bad\n  {count}")
    assert log.reason() == "bad 5 | bad 6 | bad 7 | bad 8"
    assert log.reason() == "TensorRT gave no reason"


def test_the_recorder_has_the_names_that_tensorrt_calls(library: Any) -> None:
    """The bindings look for `get_num_errors`, and document `num_errors`."""
    import tensorrt

    recorder = library.ErrorRecorder()
    code = tensorrt.ErrorCodeTRT
    assert not recorder.report_error(code.FAILED_COMPUTATION, "a NaN")
    assert (recorder.num_errors(), recorder.get_num_errors()) == (1, 1)
    assert not recorder.is_fatal
    assert recorder.report_error(code.FAILED_EXECUTION, "Cuda Runtime (an illegal\nmemory access)")
    assert recorder.is_fatal
    assert (recorder.get_error_code(1), recorder.get_error_desc(0)) == (code.FAILED_EXECUTION, "a NaN")
    assert recorder.describe() == (
        "FAILED_COMPUTATION: a NaN | FAILED_EXECUTION: Cuda Runtime (an illegal memory access)"
    )
    for _ in range(20):
        recorder.report_error(code.INVALID_STATE, "again")
    assert recorder.has_overflowed()
    recorder.clear()
    assert (recorder.num_errors(), recorder.describe(), recorder.has_overflowed()) == (0, "", False)


def test_streams_of_a_context_are_its_own(library: Any) -> None:
    streams = library.new_streams(3)
    assert len(set(streams)) == 3
    assert 0 not in streams
    assert library.new_streams(0) == []


def test_what_the_bindings_raise_is_told(library: Any) -> None:
    import tensorrt

    log = library.Log()
    log.log(tensorrt.ILogger.ERROR, "because")
    message = r"taking profile 7 failed: Error in set .* because"
    with pytest.raises(EngineError, match=message), library.exceptions_told(log, "taking profile 7"):
        raise RuntimeError("Error in set optimization profile async.")


def test_every_op_is_asked_for(library: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=rf"\({len(OPS)} missing\)"):
        library.load_plugins(registry(library.Log()), plugins(tmp_path, creators={}), library.Log())
