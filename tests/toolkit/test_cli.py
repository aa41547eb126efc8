# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orinkit.bundle import GoldenCase, generate, sign
from orinkit.cli import main
from orinkit.cli.program import visible
from orinkit.cli.talk import _write_answer
from orinkit.engines import ENGINES
from orinkit.engines.base import Engine
from orinkit.runtime.request import Finished, Request, Timings, Token
from toolkit.runtime.fake_program import make_bundle, open_fake
from toolkit.runtime.serving import TOKENIZER, run, scheduler, text_of
from toolkit.runtime.terminal import ENVIRONMENT, PROGRAM, Terminal

SUMMARY = r"(\d+) prompt tokens, (\d+) generated \((\w+)\), prefill [\d.]+ tokens/s, decode [\d.]+ tokens/s\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a verb of orin-run with the fake engine."""
    monkeypatch.setitem(ENGINES, "fake", open_fake)

    def invoke(verb: str, *arguments: str | Path) -> Result:
        engine = ["--engine", "fake"] if verb != "inspect" else []
        return CliRunner().invoke(main, [verb, *map(str, arguments), *engine])

    return invoke


def continued(prompt: str, num_tokens: int) -> str:
    """What the fake engine says after a prompt, greedily."""
    served = scheduler(capacity=256, eos=())
    served.submit(Request(TOKENIZER.encode(prompt, 256), max_tokens=num_tokens))
    return text_of(run(served))


def golden(prompt: str, num_tokens: int) -> GoldenCase:
    served = scheduler(capacity=256, eos=())
    ids = TOKENIZER.encode(prompt, 256)
    served.submit(Request(ids, max_tokens=num_tokens))
    tokens = tuple(event.token for event in run(served)[:num_tokens] if isinstance(event, Token))
    return GoldenCase(prompt, ids, tokens, margin=1.0)


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


def test_the_same_seed_draws_the_same_tokens(orin: Callable[..., Result], bundle: Path) -> None:
    def draw(*options: str) -> str:
        return orin("generate", bundle, "To be", "--max-tokens", "30", "--temperature", "1.5", *options).stdout

    assert draw("--seed", "1") == draw("--seed", "1")
    assert len({draw("--seed", "1"), draw("--seed", "2"), draw(), draw()}) == 4


def test_sampling_options_reach_the_sampler(orin: Callable[..., Result], bundle: Path) -> None:
    hot = ["generate", bundle, "To be", "--max-tokens", "30", "--temperature", "2", "--seed", "3"]
    greedy = continued("To be", 30) + "\n"
    assert orin(*hot).stdout != greedy
    assert orin(*hot, "--top-k", "1").stdout == greedy
    assert orin(*hot, "--top-p", "0").stdout == greedy
    assert orin(*hot, "--min-p", "1").stdout == greedy
    for penalty in ("--repetition-penalty", "--presence-penalty", "--frequency-penalty"):
        assert orin("generate", bundle, "To be", "--max-tokens", "60", penalty, "2").stdout != continued("To be", 60)


def test_chat_speaks_in_turns(orin: Callable[..., Result], bundle: Path) -> None:
    result = orin("chat", bundle, "--system", "be brief", "--say", "hi", "--say", "and?", "--max-tokens", "5")
    first = TOKENIZER.template
    assert first
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    answer = continued(first.render(messages), 5)
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "and?"}]
    assert result.stdout == f"> hi\n{answer}\n> and?\n{continued(first.render(messages), 5)}\n"
    assert re.fullmatch(SUMMARY * 2, result.stderr)


def test_selftest_passes_or_tells_the_difference(orin: Callable[..., Result], tmp_path: Path) -> None:
    case = golden("To be", 5)
    result = orin("selftest", make_bundle(tmp_path / "good", [case]))
    assert (result.exit_code, result.stdout) == (0, "self-test passed: 1 golden prompts, 5 tokens, engine fake\n")
    wrong = replace(case, tokens=(*case.tokens[:4], case.tokens[4] ^ 1))
    result = orin("selftest", make_bundle(tmp_path / "wrong", [case, wrong]))
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"error: golden prompt 'To be': expected token .* at place 4 .*\n", result.stderr)


def test_inspect_shows_what_the_bundle_is(orin: Callable[..., Result], tmp_path: Path) -> None:
    folder, key = make_bundle(tmp_path / "bundle", [golden("To be", 5)]), tmp_path / "key"
    (tmp_path / "trusted").mkdir()
    assert "signature: none\n" in orin("inspect", folder).stdout
    generate(key)
    sign(folder, key)
    (tmp_path / "key.pub").rename(tmp_path / "trusted" / "key.pub")
    assert "signature: present, not checked: give --keys\n" in orin("inspect", folder).stdout
    result = orin("inspect", folder, "--keys", tmp_path / "trusted")
    assert result.exit_code == 0
    for line in (
        "bundle: demo version 1",
        "signature: good, by a trusted key",
        "model: test, 1 layers (1 with attention), hidden 8",
        "shapes: capacity 256, slots 2, chunk 16",
        "golden: 1 prompts, 5 tokens",
        "report: kl_mean: 0.0125",
    ):
        assert f"{line}\n" in result.stdout


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


def test_a_tokenizer_beyond_the_vocabulary_is_refused(orin: Callable[..., Result], tmp_path: Path) -> None:
    result = orin("generate", make_bundle(tmp_path / "bundle", vocab=TOKENIZER.num_ids - 1), "x")
    assert result.exit_code == 78
    assert f"expected ids below the model's vocabulary of {TOKENIZER.num_ids - 1}" in result.stderr


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
