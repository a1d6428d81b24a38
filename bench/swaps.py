"""What changing an endpoint's version costs those who use it meanwhile.

    python -m bench.swaps [--swaps 50] [--rounds 25] [--connections 16] [--processes 1]

A whole platform as `aimass up` starts it, with so many gateway processes; a change is answered once all have it. wrk
asks the tabular endpoint in short slices by turns: one in which nothing changes, one in which the endpoint is routed to
its other version, once a second. No request may fail. Judged is the median over the rounds of p99 with changes over p99
without: at most 1.2. Needs wrk; client and server share the machine.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.load import Server, write_bodies, write_script
from bench.product import TABLE, train_table
from tests.support.jobs import TUMOURS
from tests.support.platform import Platform

PREDICT = f"/api/v1/endpoints/{TABLE}/predict"
WANTED = 1.2


class Swaps:
    """Routes the endpoint to version 2, 1, 2, … at a steady pace, in a thread."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.took_s: list[float] = []

    def begin(self, count: int, seconds: float) -> threading.Thread:
        """So many changes, spread over the seconds."""
        thread = threading.Thread(target=self._run, args=(count, seconds / count))
        thread.start()
        return thread

    def _run(self, count: int, every_s: float) -> None:
        begun = time.perf_counter()
        for at in range(count):
            time.sleep(max(0.0, begun + at * every_s - time.perf_counter()))
            started = time.perf_counter()
            routes = [{"version": 2 - len(self.took_s) % 2}]
            self._platform.call("PUT", f"/api/v1/endpoints/{TABLE}", 200, json={"model": TABLE, "routes": routes})
            self.took_s.append(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=int, default=2, help="of one slice")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--processes", type=int, default=1, help="gateway processes")
    arguments = parser.parse_args()
    settings = {"AIMASS_GATEWAY_PROCESSES": str(arguments.processes)}
    with tempfile.TemporaryDirectory() as name, Platform(**settings) as platform:
        folder = Path(name)
        write_script(folder)
        rows = train_table(platform, folder / TABLE)
        platform.wait(platform.submit(**{**TUMOURS, "model": TABLE, "family": "mlp"})["id"], "succeeded")
        bodies = write_bodies(folder / "table.lua", [(0, json.dumps({"instances": [row]}).encode()) for row in rows])
        server, swaps = Server(str(platform.url), platform.processes("app.gateway.main")[0]), Swaps(platform)
        server.load(PREDICT, bodies, arguments.connections, 2)
        ratios = []
        for turn in range(1, arguments.rounds + 1):
            still = server.load(PREDICT, bodies, arguments.connections, arguments.seconds)
            thread = swaps.begin(arguments.swaps // arguments.rounds, arguments.seconds * 0.9)
            changing = server.load(PREDICT, bodies, arguments.connections, arguments.seconds)
            thread.join()
            ratios.append(changing["p99"] / still["p99"])
            print(
                f"round {turn}: p99 {still['p99']:.2f} ms still, {changing['p99']:.2f} ms changing ({ratios[-1]:.2f}); "
                f"{still['rps']:.0f} and {changing['rps']:.0f} requests/s",
                flush=True,
            )
        ratio, took_s = statistics.median(ratios), sorted(swaps.took_s)
        print(
            f"{'ok  ' if ratio <= WANTED else 'MISS'} p99 with {len(took_s)} changes over p99 without: {ratio:.3f} "
            f"[{min(ratios):.3f}, {max(ratios):.3f}] (target <= {WANTED}); no request failed; a change took "
            f"{statistics.median(took_s):.2f} s [{took_s[0]:.2f}, {took_s[-1]:.2f}]"
        )
    sys.exit(0 if ratio <= WANTED else 1)


if __name__ == "__main__":
    main()
