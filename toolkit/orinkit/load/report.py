# SPDX-License-Identifier: Apache-2.0
"""From outcomes to figures: percentiles, rates, errors by class; as JSON and as a table.

first token     from when the request was to be sent to the first piece of text, of all that gave one
per token       mean time per token after the first one, of each whole answer
between tokens  each gap between two pieces of text: its maximum shows stalls that means hide
end to end      from when the request was to be sent to the end of a whole answer
refused         from when the request was to be sent to an answer that tells why there will be none
goodput         whole answers per second that kept the limits for the first token and per token
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from orinkit.load.client import CANCELLED
from orinkit.load.loops import Run
from orinkit.load.workload import Workload

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Limits:
    """What a good answer keeps, in seconds."""

    first: float = math.inf
    per_token: float = math.inf


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def summary(values: Sequence[float]) -> dict[str, float] | None:
    """Count, percentiles and maximum, in seconds; None: there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    found = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}
    return {"count": len(ordered), "mean": sum(ordered) / len(ordered), **found, "max": ordered[-1]}


def report(workload: Workload, run: Run, limits: Limits) -> dict[str, Any]:
    """All figures of a run, ready for JSON. Times are in seconds."""
    whole = [outcome for outcome in run.outcomes if outcome.error is None]
    begun = [outcome for outcome in run.outcomes if outcome.times]
    cancelled = [outcome for outcome in run.outcomes if outcome.error == CANCELLED]
    spoken = [outcome for outcome in whole if outcome.times]
    good = [one for one in spoken if one.first <= limits.first and one.per_token <= limits.per_token]
    errors = Counter(one.error for one in run.outcomes if one.error not in (None, CANCELLED))
    tokens = sum(outcome.num_tokens for outcome in whole)
    return {
        "workload": asdict(workload),
        "model": run.model,
        "seconds": run.seconds,
        "requests": {
            "sent": len(run.outcomes),
            "whole": len(whole),
            "cancelled": len(cancelled),
            "failed": sum(errors.values()),
        },
        "errors": dict(errors.most_common()),
        "requests_per_s": len(whole) / run.seconds,
        "limits": {name: None if math.isinf(value) else value for name, value in asdict(limits).items()},
        "goodput_per_s": len(good) / run.seconds,
        "prompt_tokens": sum(outcome.num_prompt for outcome in whole),
        "answer_tokens": tokens,
        "answer_tokens_per_s": tokens / run.seconds,
        "wasted_tokens": sum(outcome.num_tokens for outcome in cancelled),
        "first_token": summary([outcome.first for outcome in begun]),
        "per_token": summary([outcome.per_token for outcome in spoken if outcome.num_tokens > 1]),
        "between_tokens": summary([right - left for one in begun for left, right in pairwise(one.times)]),
        "end_to_end": summary([outcome.whole for outcome in whole]),
        "refused": summary([outcome.whole for outcome in run.outcomes if outcome.is_refused]),
    }


_ROWS = ("first_token", "per_token", "between_tokens", "end_to_end", "refused")
_COLUMNS = ("mean", *(f"p{percent}" for percent in PERCENTILES), "max")


def table(figures: dict[str, Any]) -> list[str]:
    """The lines of the table; times in milliseconds."""
    requests = figures["requests"]
    lines = [
        f"{figures['model']}: {requests['sent']} requests in {figures['seconds']:.1f} s",
        "  ".join(f"{count} {kind}" for kind, count in requests.items() if kind != "sent"),
        *(f"  {count} x {kind}" for kind, count in figures["errors"].items()),
        f"{figures['requests_per_s']:.2f} whole answers/s, {figures['goodput_per_s']:.2f} good ones/s",
        f"{figures['answer_tokens_per_s']:.1f} tokens/s, {figures['wasted_tokens']} tokens wasted",
        "ms".ljust(16) + "".join(name.rjust(10) for name in _COLUMNS),
    ]
    for row in _ROWS:
        values = figures[row]
        cells = ("-" if values is None else f"{values[name] * 1e3:,.2f}" for name in _COLUMNS)
        lines.append(row.replace("_", " ").ljust(16) + "".join(cell.rjust(10) for cell in cells))
    return lines
