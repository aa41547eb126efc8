# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from orinkit.load.client import CANCELLED, Outcome
from orinkit.load.loops import Run
from orinkit.load.report import Limits, percentile, report, summary, table
from orinkit.load.workload import Lengths, Workload

WORKLOAD = Workload(4, 2, None, Lengths.parse("5"), Lengths.parse("7"), 0, 0.0, 0, 0)
FAST = Outcome(begin=1.0, times=[1.5, 1.6, 1.7], end=2.0, num_prompt=5, num_tokens=3)
SLOW = Outcome(begin=1.0, times=[3.0, 3.5], end=4.0, num_prompt=5, num_tokens=2)
LEFT = Outcome(begin=2.0, times=[2.5], end=2.5, num_tokens=1, error=CANCELLED)
FULL = Outcome(begin=2.0, end=2.1, error="429 queue_full", is_refused=True)
RUN = Run("demo", (FAST, SLOW, LEFT, FULL), 5.0)


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 90, 95, 99, 100)] == [50, 90, 95, 99, 100]
    assert percentile([7.0], 1) == percentile([7.0], 99) == 7.0


def test_the_order_does_not_matter_and_nothing_gives_nothing() -> None:
    assert summary([3.0, 1.0, 2.0]) == summary([1.0, 2.0, 3.0])
    assert summary([]) is None


def test_every_figure_counts_what_it_says() -> None:
    figures = report(WORKLOAD, RUN, Limits(first=1.0))
    assert figures["requests"] == {"sent": 4, "whole": 2, "cancelled": 1, "failed": 1}
    assert figures["errors"] == {"429 queue_full": 1}
    assert figures["requests_per_s"] == pytest.approx(2 / 5)
    assert figures["goodput_per_s"] == pytest.approx(1 / 5)
    assert (figures["prompt_tokens"], figures["answer_tokens"], figures["wasted_tokens"]) == (10, 5, 1)
    assert figures["first_token"]["count"] == 3
    assert figures["first_token"]["max"] == pytest.approx(2.0)
    assert figures["per_token"]["max"] == pytest.approx(0.5)
    assert figures["between_tokens"]["count"] == 3
    assert figures["end_to_end"]["mean"] == pytest.approx(2.0)
    assert (figures["refused"]["count"], figures["refused"]["max"]) == (1, pytest.approx(0.1))
    assert json.loads(json.dumps(figures))["errors"] == figures["errors"]


def test_the_limit_per_token_makes_answers_bad_too() -> None:
    assert report(WORKLOAD, RUN, Limits(per_token=0.2))["goodput_per_s"] == pytest.approx(1 / 5)
    assert report(WORKLOAD, RUN, Limits())["goodput_per_s"] == pytest.approx(2 / 5)


def test_the_table_has_a_line_for_each_class_of_error_and_each_time() -> None:
    lines = table(report(WORKLOAD, RUN, Limits()))
    assert "  1 x 429 queue_full" in lines
    assert [line.split("  ")[0] for line in lines[-5:]] == [
        "first token",
        "per token",
        "between tokens",
        "end to end",
        "refused",
    ]


def test_a_run_without_answers_is_reported_too() -> None:
    figures = report(WORKLOAD, Run("demo", (FULL,), 1.0), Limits())
    assert figures["first_token"] is None
    assert table(figures)[-2].split() == ["end", "to", "end", *"------"]
