# SPDX-License-Identifier: Apache-2.0
"""Counters, gauges and histograms in Prometheus' text format 0.0.4; names that vLLM has keep its names.

A label's values come from this program, never from a request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0)

COUNTERS = {
    "vllm:prompt_tokens_total": "Tokens of prompts that were read.",
    "vllm:generation_tokens_total": "Tokens that were generated.",
    "vllm:request_success_total": "Answers that ended, by reason.",
    "vllm:prefix_cache_hits_total": "Prompt tokens that a prefix cache held.",
    "vllm:prefix_cache_queries_total": "Prompt tokens that were looked up in a prefix cache.",
    "orin_faults_total": "Ends of a worker that were not asked for, by cause.",
    "orin_restarts_total": "Workers that became ready after a fault.",
    "orin_requests_refused_total": "Requests that were not taken, by code.",
    "orin_wasted_tokens_total": "Generated tokens whose client had gone.",
}
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "From the arrival of a request to its first token.",
    "vllm:time_per_output_token_seconds": "Between two tokens of an answer.",
    "vllm:e2e_request_latency_seconds": "From the arrival of a request to its end.",
    "vllm:request_queue_time_seconds": "From the arrival of a request to its slot.",
}
GAUGES = {
    "vllm:num_requests_running": "Requests that hold a slot.",
    "vllm:num_requests_waiting": "Requests that wait for a slot.",
    "orin_state": "1 for the state that the server is in.",
    "orin_queue_limit": "Most requests that may wait.",
    "orin_memory_available_bytes": "MemAvailable.",
    "orin_memory_allocatable_bytes": "What the GPU can get by NVIDIA's formula.",
    "orin_nvmap_used_bytes": "NvMapMemUsed.",
    "orin_worker_resident_bytes": "Memory of the worker process.",
    "orin_supervisor_resident_bytes": "Memory of the supervisor process.",
    "orin_temperature_celsius": "Temperature, by thermal zone of the board.",
    "orin_power_watts": "Power, by rail of the board.",
    "orin_clock_hertz": "Clock, by unit of the board.",
}
Labels = tuple[tuple[str, str], ...]


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    total: float = 0.0


class Metrics:
    """What has happened since the start. Each name must be one of the tables above."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._counters: dict[str, dict[Labels, float]] = {name: defaultdict(float) for name in COUNTERS}
        self._histograms = {name: _Histogram() for name in HISTOGRAMS}

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        self._counters[name][tuple(sorted(labels.items()))] += value

    def value(self, name: str) -> float:
        """A counter, all labels together."""
        return sum(self._counters[name].values())

    def observe(self, name: str, seconds: float) -> None:
        histogram = self._histograms[name]
        histogram.counts[bisect_left(_SECONDS, seconds)] += 1
        histogram.total += seconds

    def text(self, gauges: Mapping[str, Mapping[Labels, float]]) -> str:
        """Everything, with the gauges as they stand."""
        own = (("model_name", self._model),)
        lines = []
        for name, help_ in COUNTERS.items():
            lines += _head(name, help_, "counter")
            counts = self._counters[name] or {(): 0.0}
            lines += [f"{name}{_labels(own + labels)} {_exact(value)}" for labels, value in sorted(counts.items())]
        for name, help_ in HISTOGRAMS.items():
            lines += _head(name, help_, "histogram") + list(_buckets(name, own, self._histograms[name]))
        for name, values in gauges.items():
            lines += _head(name, GAUGES[name], "gauge")
            lines += [f"{name}{_labels(own + labels)} {_exact(value)}" for labels, value in sorted(values.items())]
        return "\n".join(lines) + "\n"


def _head(name: str, help_: str, kind: str) -> list[str]:
    return [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]


def _buckets(name: str, own: Labels, histogram: _Histogram) -> Iterable[str]:
    total = 0
    for bound, count in zip((*_SECONDS, "+Inf"), histogram.counts, strict=True):
        total += count
        yield f"{name}_bucket{_labels((*own, ('le', str(bound))))} {total}"
    yield f"{name}_sum{_labels(own)} {histogram.total:.6f}"
    yield f"{name}_count{_labels(own)} {total}"


def _labels(labels: Labels) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{','.join(pairs)}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _exact(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
