# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from orinkit.cli.program import visible
from orinkit.cli.talk import _write_answer
from orinkit.runtime.request import Finished, Timings, Token
from toolkit.runtime.fake_program import make_bundle
from toolkit.runtime.serving import TOKENIZER, continued
from toolkit.runtime.terminal import Terminal

SUMMARY = r"(\d+) prompt tokens, (\d+) generated \((\w+)\), prefill [\d.]+ tokens/s, decode [\d.]+ tokens/s\n"


def test_a_chat_needs_a_terminal_or_something_to_say(orin: Callable[..., Result], bundle: Path) -> None:
    result = orin("chat", bundle)
    assert result.exit_code == 2
    assert "--say TEXT" in result.stderr


def test_generate_writes_the_text_and_one_line_about_it(orin: Callable[..., Result], bundle: Path) -> None:
    result = orin("generate", bundle, "To be", "--max-tokens", "9")
    assert result.exit_code == 0
    assert result.stdout == continued("To be", 9) + "\n"
    match = re.fullmatch(SUMMARY, result.stderr)
    assert match
    assert match.groups() == (str(len(TOKENIZER.encode("To be", 99))), "9", "length")


def test_a_file_gets_the_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences too, which click would take out."""
    timings = Timings(prompt_tokens=1, generated_tokens=1, queue_s=0.0, prefill_s=0.5, decode_s=0.0)
    _write_answer([Token(1, 5, -0.1, "a\x1b[2Jb\x07"), Finished(1, "stop", "c", timings)])
    assert capsys.readouterr().out == "a\x1b[2Jb\x07c\n"


def test_generate_stops_before_a_stop_string(orin: Callable[..., Result], bundle: Path) -> None:
    text = continued("To be", 40)
    stop = text[8:10]
    result = orin("generate", bundle, "To be", "--max-tokens", "40", "--stop", "never at all", "--stop", stop)
    assert result.stdout == text[: text.index(stop)] + "\n"


def test_chat_speaks_in_turns(orin: Callable[..., Result], bundle: Path) -> None:
    result = orin("chat", bundle, "--system", "be brief", "--say", "hi", "--say", "and?", "--max-tokens", "5")
    first = TOKENIZER.template
    assert first
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    answer = continued(first.render(messages), 5)
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "and?"}]
    assert result.stdout == f"> hi\n{answer}\n> and?\n{continued(first.render(messages), 5)}\n"
    assert re.fullmatch(SUMMARY * 2, result.stderr)


def test_a_terminal_sees_no_control_characters_of_the_model(bundle: Path) -> None:
    text = continued("To be", 120)
    assert visible(text) != text, "the case needs a control character"
    with Terminal("generate", str(bundle), "To be", "--max-tokens", "120") as terminal:
        code, seen = terminal.finish()
    assert code == 0
    assert seen.decode().startswith((visible(text) + "\n").replace("\n", "\r\n"))


def test_an_interrupt_stops_the_answer_and_not_the_program(tmp_path: Path) -> None:
    with Terminal("chat", str(make_bundle(tmp_path / "endless", capacity=1 << 16))) as terminal:
        terminal.read_until(b"> ")
        terminal.type(b"\n")
        terminal.read_until(b"> ")
        terminal.type(b"hi\n")
        terminal.read_until(rb"(?s)hi\r\n.{20}")
        terminal.interrupt()
        assert b"(cancelled)" in terminal.read_until(rb"\(\w+\), prefill")
        terminal.read_until(b"\n> ")
        terminal.type(b"\x04")
        assert terminal.finish()[0] == 0


def test_an_interrupt_at_the_prompt_ends_the_program(bundle: Path) -> None:
    with Terminal("chat", str(bundle)) as terminal:
        terminal.read_until(b"> ")
        for _ in range(60):
            terminal.interrupt()  # again, if it came between Python's prompt and its wait for input
            with contextlib.suppress(subprocess.TimeoutExpired):
                terminal.process.wait(timeout=1)
                break
        code, seen = terminal.finish()
    assert code == 130
    assert b"Traceback" not in seen


def test_a_question_that_is_refused_does_not_end_the_conversation(bundle: Path) -> None:
    with Terminal("chat", str(bundle), "--max-tokens", "3") as terminal:
        terminal.read_until(b"> ")
        terminal.type(b"x" * 300 + b"\n")
        assert b"at most 256 tokens" in terminal.read_until(b"error: .*\r\n> ")
        terminal.type(b"hi\n")
        assert b"3 generated" in terminal.read_until(b"generated")
        terminal.read_until(b"\n> ")
        terminal.type(b"\x04")
        assert terminal.finish()[0] == 0
