# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from click.testing import Result

from orinkit.bundle import GoldenCase, generate, sign
from orinkit.runtime.request import Request, Token
from toolkit.runtime.fake_program import make_bundle
from toolkit.runtime.serving import TOKENIZER, run, scheduler


def golden(prompt: str, num_tokens: int) -> GoldenCase:
    served = scheduler(capacity=256, eos=())
    ids = TOKENIZER.encode(prompt, 256)
    served.submit(Request(ids, max_tokens=num_tokens))
    tokens = tuple(event.token for event in run(served)[:num_tokens] if isinstance(event, Token))
    return GoldenCase(prompt, ids, tokens, margin=1.0)


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


def test_a_tokenizer_beyond_the_vocabulary_is_refused(orin: Callable[..., Result], tmp_path: Path) -> None:
    result = orin("generate", make_bundle(tmp_path / "bundle", vocab=TOKENIZER.num_ids - 1), "x")
    assert result.exit_code == 78
    assert f"expected ids below the model's vocabulary of {TOKENIZER.num_ids - 1}" in result.stderr
