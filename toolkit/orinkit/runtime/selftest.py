# SPDX-License-Identifier: Apache-2.0
"""The golden self-test: a bundle must reproduce its golden tokens through the same scheduler that serves requests."""

from __future__ import annotations

from collections.abc import Sequence

from orinkit.bundle import GoldenCase
from orinkit.errors import VerificationError
from orinkit.runtime.request import Request, Token
from orinkit.runtime.scheduler import Scheduler


def selftest(scheduler: Scheduler, cases: Sequence[GoldenCase]) -> int:
    """Run all golden cases side by side, greedily: the number of tokens that were compared, all of them right.

    Raises VerificationError: no cases, a prompt that is split into other tokens than at export, or the
    first token that differs.
    Raises the error of a request that fails.
    """
    if not cases:
        raise VerificationError("expected golden prompts in the bundle, found none; export it with some")
    for case in cases:
        _check_prompt(scheduler, case)
    requests = [Request(case.prompt_tokens, max_tokens=len(case.tokens)) for case in cases]
    found: dict[int, list[int]] = {scheduler.submit(request): [] for request in requests}
    while not scheduler.is_idle:
        for event in scheduler.step():
            if isinstance(event, Token):
                found[event.request].append(event.token)
            elif event.error is not None:
                raise event.error
    for case, tokens in zip(cases, found.values(), strict=True):
        _check_tokens(case, tokens)
    return sum(map(len, found.values()))


def _check_prompt(scheduler: Scheduler, case: GoldenCase) -> None:
    tokens = scheduler.tokenizer.encode(case.prompt, scheduler.capacity)
    if tokens != case.prompt_tokens:
        raise VerificationError(
            f"golden prompt {case.prompt!r}: expected the tokens {_shown(case.prompt_tokens)}, found {_shown(tokens)}; "
            "the tokenizer differs from that of the export"
        )


def _check_tokens(case: GoldenCase, found: Sequence[int]) -> None:
    for index, expected in enumerate(case.tokens):
        token = found[index] if index < len(found) else None
        if token != expected:
            raise VerificationError(
                f"golden prompt {case.prompt!r}: expected token {expected} at place {index} of the answer, "
                f"found {'its end' if token is None else token}; least margin between the two best logits at export: "
                f"{case.margin:.3g}. Do not serve this bundle here; check engine and driver, or export again"
            )


def _shown(tokens: Sequence[int]) -> str:
    return f"{list(tokens[:16])}{' ...' if len(tokens) > 16 else ''}"
