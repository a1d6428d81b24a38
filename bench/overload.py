"""`make bench-overload`: four times as many requests as the platform can answer.

    python -m bench.overload [--seconds 4] [--rounds 5]

The CNN of bench/models.py with binary tensors behind two endpoints: one whose queue is bounded, one that promises a
time (`slo`). The most that a closed loop gets through, right before and after an open loop at four times that rate.
Judged are ratios within a round. The client shares the machine's cores: what it uses is printed, since a model cannot
use it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import models
from bench.load import Server
from bench.offer import write_requests
from bench.product import CNN, gateway, import_cnn
from bench.serving import binary_bodies, report
from tests.support.platform import KEY, Platform

TIMES = 4
QUEUE, BATCH = 64, 16
SLO_MS = 300
CONNECTIONS = 512  # enough for all that may wait and be refused at once
ENDPOINTS: dict[str, dict[str, Any]] = {
    "queue": {"batching": {"max_queue": QUEUE, "max_batch": BATCH}},
    "slo": {"slo": {"p95_ms": SLO_MS}},
}


@dataclass(frozen=True)
class Round:
    """What one endpoint did in one round."""

    peak: float  # answers a second
    over: dict[str, Any]
    rss_before: int
    rss_after: int

    @property
    def accepted(self) -> float:
        """Accepted throughput against the peak."""
        return self.over["rates"]["200"] / self.peak


def offer(url: str, requests: Path, connections: int, seconds: float, rate: float = 0) -> dict[str, Any]:
    """One run of the client."""
    order = {"url": url, "bodies": str(requests), "connections": connections, "seconds": seconds, "rate": rate}
    command = [sys.executable, "-m", "bench.offer", json.dumps(order)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(out)
    if found["broken"]:
        raise SystemExit(f"{found['broken']} connections broke")
    return found


def best_connections(url: str, requests: Path) -> int:
    """The number of connections with which a closed loop gets most through."""
    rates = {n: offer(url, requests, n, 3)["rates"]["200"] for n in (8, 16, 32, 64)}
    print("closed loop:", ", ".join(f"{n} connections {rate:.0f}/s" for n, rate in rates.items()), flush=True)
    return max(rates, key=lambda n: rates[n])


def measure(server: Server, requests: dict[str, Path], name: str, connections: int, seconds: float) -> Round:
    """Peak, overload, and peak again. The peak is that of the bounded queue, which refuses none of a closed loop."""
    url, process = server.url, server.process
    first = offer(url, requests["queue"], connections, seconds)["rates"]["200"]
    before = process.memory_info().rss
    over = offer(url, requests[name], CONNECTIONS, seconds, TIMES * first)
    after = process.memory_info().rss
    second = offer(url, requests["queue"], connections, seconds)["rates"]["200"]
    return Round((first + second) / 2, over, before, after)


def show(name: str, turn: int, found: Round) -> None:
    over = found.over
    print(
        f"round {turn} {name}: peak {found.peak:.0f}/s; offered {sum(over['rates'].values()):.0f}/s: "
        + ", ".join(
            f"{status} {rate:.0f}/s p50 {over['p50_ms'][status]:.1f} p99 {over['p99_ms'][status]:.1f} ms"
            for status, rate in sorted(over["rates"].items())
        )
        + f"; client {over['cpu']:.0%} of a core; RSS {found.rss_before >> 20} -> {found.rss_after >> 20} MiB",
        flush=True,
    )


def judge(name: str, rounds: list[Round]) -> bool:
    """Print each figure beside what is wanted."""
    overs = [found.over for found in rounds]
    rate = statistics.median(over["rates"]["200"] for over in overs)
    # Ahead of whoever is let in is at most a full queue, and a batch in each of two lanes; a quarter for jitter.
    limit_ms = SLO_MS if name == "slo" else 1.25 * (QUEUE + 2 * BATCH) / rate * 1e3
    good = [
        report(f"{name}: accepted rate / peak", [found.accepted for found in rounds], 0.95),
        report(f"{name}: p99 of the accepted, ms", [o["p99_ms"]["200"] for o in overs], limit_ms, at_most=True),
        report(f"{name}: p99 of 429, ms", [o["p99_ms"]["429"] for o in overs], 10, at_most=True),
        report(f"{name}: 429 without Retry-After", [o["untold"] for o in overs], 0, at_most=True),
        report(f"{name}: other answers", [len(set(o["rates"]) - {"200", "429"}) for o in overs], 0, at_most=True),
        report(f"{name}: RSS after / before", [f.rss_after / f.rss_before for f in rounds], 1.02, at_most=True),
    ]
    return all(good)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="of each run")
    parser.add_argument("--rounds", type=int, default=5, help="medians are judged")
    arguments = parser.parse_args()
    rounds: dict[str, list[Round]] = {name: [] for name in ENDPOINTS}
    with tempfile.TemporaryDirectory() as folder, Platform() as platform:
        pictures = models.export_cnn(Path(folder) / "cnn.onnx")
        import_cnn(platform, Path(folder) / "cnn.onnx")
        requests = {}
        for name, options in ENDPOINTS.items():
            platform.call(
                "PUT", f"/api/v1/endpoints/{name}", json={"model": CNN, "routes": [{"version": 1}], **options}
            )
            requests[name] = write_requests(
                Path(folder) / name, f"/v2/models/{name}/infer", KEY, binary_bodies(pictures[:16])
            )
        server = gateway(platform)
        connections = best_connections(server.url, requests["queue"])
        for name in requests:  # what a first overload allocates, it allocates once
            measure(server, requests, name, connections, 2)
        for turn in range(1, arguments.rounds + 1):
            for name in requests:
                rounds[name].append(measure(server, requests, name, connections, arguments.seconds))
                show(name, turn, rounds[name][-1])
    reached = [judge(name, found) for name, found in rounds.items()]
    sys.exit(0 if all(reached) else 1)


if __name__ == "__main__":
    main()
