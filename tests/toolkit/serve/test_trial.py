# SPDX-License-Identifier: Apache-2.0
"""Grammars that are wrong or do not end, tried in a real child."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import pytest

from orinkit.errors import ServiceError
from orinkit.runtime.grammar import Grammar
from orinkit.serve.trial import COMMAND, Trial
from toolkit.runtime.serving import EOS, SPEC, TOKENIZER

RECURSIVE = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]}}}
STUCK = "import sys, time\nsys.stdin.readline()\nprint('\"\"', flush=True)\nsys.stdin.readline()\ntime.sleep(60)"
ENDLESS = """
from orinkit.runtime import grammar
from orinkit.serve import trial
def turn(*_):
    while True:
        pass
grammar.Grammars.compile = turn
trial.main()
"""


def tried(*grammars: Grammar, command: tuple[str, ...] = COMMAND, patience: float = 60) -> list[str]:
    """What is said of each grammar; nothing for a good one."""

    async def run() -> list[str]:
        trial, said = Trial(TOKENIZER, SPEC.vocab, (EOS,), command, patience), []
        for grammar in grammars:
            try:
                await trial.check(grammar)
                said.append("")
            except ServiceError as error:
                said.append(f"{error.status} {error}")
        await trial.close()
        return said

    return asyncio.run(run())


def test_a30_good_grammars_pass_and_wrong_ones_are_told() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    good = (Grammar("json_schema", json.dumps(schema)), Grammar("json_object"), Grammar("regex", "[a-c]+"))
    wrong = (Grammar("regex", "("), Grammar("json_schema", '{"type": "unknown"}'))
    *passed, first, second = tried(*good, *wrong)
    assert passed == ["", "", ""]
    assert first.startswith("400 response_format: ")
    assert second.startswith("400 response_format: ")


@pytest.mark.parametrize("grammar", [Grammar("regex", "((a+)+)+$"), Grammar("json_schema", json.dumps(RECURSIVE))])
def test_a30_a_hostile_grammar_is_harmless(grammar: Grammar) -> None:
    begin = time.monotonic()
    (said, after) = tried(grammar, Grammar("json_object"))
    assert after == ""
    assert said == "" or said.startswith("400 ")
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(("program", "patience"), [(STUCK, 0.5), (ENDLESS, 60)], ids=["waits", "computes"])
def test_a30_a_child_that_does_not_end_is_killed_and_replaced(program: str, patience: float) -> None:
    """One that computes is ended by its processor time, long before the clock."""
    begin, command = time.monotonic(), (sys.executable, "-c", program)
    said = tried(Grammar("json_object"), Grammar("json_object"), command=command, patience=patience)
    assert said == ["400 response_format: expected one that is compiled within 0.5 s"] * 2
    assert time.monotonic() - begin < 60


def test_without_anything_to_try_them_with_grammars_are_refused() -> None:
    assert tried(Grammar("json_object"), command=(sys.executable, "-c", ""))[0].startswith("503 ")
