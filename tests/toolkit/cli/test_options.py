# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from toolkit.runtime.serving import continued


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
