# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from orinkit_export import progress

STEP = """
import time
from orinkit_export.progress import progress
with progress("quantise", 4_000_000, "M weights", 1e6) as advance:
    for _ in range(4):
        advance(1_000_000)
        time.sleep(0.1)
"""


def test_a_short_step_is_one_line_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("hash", 3_000_000, "MB", 1e6) as advance:
        advance(1_000_000)
        advance(2_000_000)
        assert capsys.readouterr().err == ""
    assert re.fullmatch(r"hash: 3 MB in 0\.0 s\n", capsys.readouterr().err)


def test_a_long_step_tells_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.progress("hash", 4_000_000, "MB", 1e6) as advance:
        advance(1_000_000)
        advance(0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(r"hash: 25 %, [\d.e+]+ MB/s, \d+ s left", line) for line in lines[:2])


def test_a_step_of_nothing_divides_by_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.progress("hash", 0, "MB", 1e6) as advance:
        advance(0)
    assert capsys.readouterr().err.splitlines()[0] == "hash: 0 %, 0 MB/s, 0 s left"


def test_a_step_that_fails_does_not_claim_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), progress.progress("hash", 2, "MB"):
        raise ValueError("broken")
    assert capsys.readouterr().err == ""


def test_say_is_one_line_of_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say("not used: mtp.* (3 tensors)")
    assert capsys.readouterr() == ("", "not used: mtp.* (3 tensors)\n")


def shown_on_a_terminal(code: str) -> str:
    """What a program writes to its error stream, which is a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "100"}
    written = b""
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=theirs, stdout=subprocess.PIPE
    ) as child:
        os.close(theirs)
        while part := _read(ours):
            written += part
        assert child.stdout is not None
        assert child.stdout.read() == b""
    os.close(ours)
    assert child.returncode == 0
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written.decode())


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux ends a terminal that nobody writes to any more with EIO
        return b""


def test_a_terminal_gets_a_bar_with_rate_and_time() -> None:
    shown = shown_on_a_terminal(STEP)
    assert re.search(r"quantise +.*100 % +[\d.e+]+ M weights/s +\d:\d\d:\d\d", shown), shown
    assert " in " not in shown
