# SPDX-License-Identifier: Apache-2.0
"""A server around its knee: an open loop at 50, 80, 100 and 150 % of it, and what is left behind.

    python bench/knee.py BUNDLE [--seconds 1800] [--out bench/results/knee.json]

The knee is the highest rate at which less than 1 % of the requests are refused: the first of some shares of the rate
of a closed loop of as many clients as there are slots, from the largest on, that holds this for half of --seconds. The
machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from served import RUN, Served

from orinkit.bundle.manifest import decode

TRIED = (0.95, 0.9, 0.85, 0.8, 0.75)
SHARES = (0.5, 0.8, 1.0, 1.5)


class Server(Served):
    """A daemon that is loaded from outside."""

    def load(self, *flags: str) -> dict[str, Any]:
        """What `orin-run load` found, with the load of the machine before."""
        before = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "load.json"
            ask = (*RUN, "load", f"http://127.0.0.1:{self.port}", "--prompt", "16-64", "--answer", "32-96")
            subprocess.run((*ask, "--json", str(path), *flags), check=True, stdout=subprocess.DEVNULL)
            found: dict[str, Any] = json.loads(path.read_text())
        found["load_average_before"] = before
        return {name: value for name, value in found.items() if name not in ("workload", "model", "limits")}

    def left(self) -> dict[str, Any]:
        """What should be as before once all is answered."""
        lines = [line.rpartition(" ") for line in self.get("/metrics")[1].splitlines()]
        busy = [float(value) for name, _, value in lines if name.startswith("vllm:num_requests_")]
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        pids = [str(self.process.pid), *children]
        return {
            "requests": sum(busy),
            "descriptors": [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids],
            "resident_mb": [
                round(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
                for pid in pids
            ],
        }


def open_loop(server: Server, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Requests of a Poisson process of `rate` per second; latencies count from when they were due."""
    flags = {"--rate": f"{rate:.3f}", "--requests": f"{rate * seconds:.0f}", "--seed": str(seed)}
    found = server.load(*(word for pair in flags.items() for word in pair), "--concurrency", "500", "--warmup", "20")
    found["refused_share"] = found["requests"]["failed"] / found["requests"]["sent"]
    time.sleep(1)
    found["left"] = server.left()
    return found


def find_knee(server: Server, per_s: float, seconds: float, tried: dict[float, Any]) -> float:
    """Requests per second at the knee; `per_s` is the rate of the closed loop, `tried` gets what each share gave."""
    for share in TRIED:
        tried[share] = found = open_loop(server, share * per_s, seconds / 2, 7)
        print("share", share, "refused", round(found["refused_share"], 4), flush=True)
        if found["refused_share"] < 0.01:
            return share * per_s
    raise SystemExit(
        f"expected less than 1 % refused at {TRIED[-1]} of the closed loop, found more; try a quiet machine"
    )


def measure(server: Server, slots: int, seconds: float) -> dict[str, Any]:
    """All figures; prints them as they come."""
    clients = ("--concurrency", str(slots))
    server.load("--requests", "60", *clients)
    closed = server.load("--requests", "600", *clients, "--warmup", "16")
    record: dict[str, Any] = {"seconds": seconds, "left_before": server.left(), "closed": closed, "tried": {}}
    print("closed loop", round(closed["requests_per_s"], 3), "requests/s", flush=True)
    record["knee_per_s"] = knee = find_knee(server, closed["requests_per_s"], seconds, record["tried"])
    for part in SHARES:
        record[f"open_{part}"] = found = open_loop(server, part * knee, seconds, round(10 * part))
        print("part", part, "refused", round(found["refused_share"], 4), "errors", found["errors"], flush=True)
        print("  first token p95", round(found["first_token"]["p95"], 4), found["left"], flush=True)
    for name in ("first_token", "per_token"):
        record[f"{name}_p95_ratio"] = round(record["open_1.5"][name]["p95"] / record["open_1.0"][name]["p95"], 3)
    print("p95 at 150 % over 100 %:", record["first_token_p95_ratio"], record["per_token_p95_ratio"], flush=True)
    record["closed_1_after"] = server.load("--requests", "40", "--concurrency", "1")
    record["left_after"] = server.left()
    return record


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=1800, help="of each share")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    slots = decode((asked.bundle / "manifest.json").read_bytes()).recipe.shapes.slots
    server = Server(asked.bundle)
    try:
        record = measure(server, slots, asked.seconds)
    finally:
        status = server.close()
    record |= {
        "exit_status": status,
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}",
        "command": f"python bench/knee.py {asked.bundle.name} --seconds {asked.seconds:g}",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
