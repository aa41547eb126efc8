# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest

from orinkit.serve import metrics
from orinkit.serve.metrics import Metrics

LINE = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-z_]+="(\\.|[^"\\\n])*",?)*\})? (-?[0-9.]+(e[+-]?[0-9]+)?)')


def test_every_line_is_one_of_the_format() -> None:
    made = Metrics('a "model"\n\\')
    made.add("orin_faults_total", code="cuda_700")
    made.observe("vllm:time_to_first_token_seconds", 0.03)
    text = made.text({"orin_state": {(("state", "ready"),): 1}, "orin_power_watts": {(("rail", "VDD"),): 4.125}})
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert text.endswith("\n")


def test_the_names_are_those_that_dashboards_for_vllm_read() -> None:
    text = Metrics("m").text({})
    for name in (
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:time_per_output_token_seconds_sum",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
    ):
        assert f'{name}{{model_name="m"' in text
    assert {"vllm:num_requests_running", "vllm:num_requests_waiting"} <= metrics.GAUGES.keys()


def test_counters_add_up_and_buckets_are_cumulative() -> None:
    made = Metrics("m")
    made.add("orin_faults_total", 2, code="a")
    made.add("orin_faults_total", code="b")
    for seconds in (0.0005, 0.03, 1000):
        made.observe("vllm:e2e_request_latency_seconds", seconds)
    text = made.text({})
    assert made.value("orin_faults_total") == 3
    assert 'orin_faults_total{model_name="m",code="a"} 2' in text
    counts = re.findall(r'e2e_request_latency_seconds_bucket\{[^}]*le="([^"]*)"\} (\d+)', text)
    assert dict(counts)["0.001"] == "1"
    assert dict(counts)["0.04"] == "2"
    assert counts[-1] == ("+Inf", "3")


def test_a_name_that_is_in_no_table_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        Metrics("m").add("orin_unknown_total")
