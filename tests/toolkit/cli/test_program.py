# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orinkit.cli import main
from orinkit.cli.program import visible
from orinkit.engines import ENGINES
from orinkit.engines.base import Engine
from toolkit.runtime.terminal import ENVIRONMENT, PROGRAM


def test_importing_the_program_is_light() -> None:
    heavy = ("numpy", "onnxruntime", "tokenizers", "jinja2", "rich", "yaml", "cryptography")
    program = f"import sys, orinkit.cli; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("verb", [[], ["generate"], ["chat"], ["selftest"], ["inspect"]])
def test_every_verb_explains_itself(verb: list[str]) -> None:
    result = CliRunner().invoke(main, [*verb, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


@pytest.mark.parametrize(
    "arguments",
    [["generate"], ["generate", "x"], ["inspect", "x", "--bogus"], ["generate", "x", "y", "--seed", "a"], ["nothing"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect", "{bundle}/nowhere"], 78, "nowhere"),
        (["inspect", "{bundle}", "--keys", "{bundle}/tokenizer"], 78, "expected a signature, found none"),
        (["generate", "{bundle}", "x", "--engine", "fakee"], 1, "did you mean 'fake'"),
        (["generate", "{bundle}", "x", "--temperature", "nan"], 1, "temperature: expected a number from 0 to 2"),
        (["generate", "{bundle}", "x", "--max-tokens", "0"], 1, "max_tokens: expected"),
        (["generate", "{bundle}", "x", "--max-tokens", "300"], 1, "at most 256 tokens"),
        (["generate", "{bundle}", "x\x1b[2J" * 999], 1, "expected at most 2048 bytes"),
    ],
)
def test_a_refusal_is_one_line_and_an_exit_code(
    orin: Callable[..., Result], bundle: Path, arguments: list[str], code: int, message: str
) -> None:
    verb, *rest = (argument.format(bundle=bundle) for argument in arguments)
    result = CliRunner().invoke(main, [verb, *rest]) if "--engine" in rest else orin(verb, *rest)
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_an_interrupt_is_exit_code_130(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Engine:
        raise KeyboardInterrupt

    monkeypatch.setitem(ENGINES, "fake", interrupted)
    result = CliRunner().invoke(main, ["generate", str(bundle), "x", "--engine", "fake"])
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


def test_a_closed_pipe_is_quiet(bundle: Path) -> None:
    command = [*PROGRAM, "generate", str(bundle), "To be", "--engine", "fake"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode != 0


def test_control_characters_are_written_out_on_a_terminal() -> None:
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("\x1b]0;title\x07 \r \x9b \x7f \x00") == r"\x1b]0;title\x07 \x0d \x9b \x7f \x00"
    assert visible("日本語 👩‍👩‍👧‍👦") == "日本語 👩‍👩‍👧‍👦"
