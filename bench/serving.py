"""The serving benchmark: ratios to a plain FastAPI handler, to a bare ASGI echo and to raw ONNX Runtime, in one run.

    python bench/serving.py [--seconds 2] [--rounds 9]

The product is a whole platform as `aimass up` starts it: one gateway with its key cache over SQLite, valkey, an idle
worker. Absolute numbers of different minutes on a shared machine say little, so all servers run side by side (idle ones
cost nothing), they take turns of a second, and only ratios within a round are judged. Needs wrk. Load stays on
127.0.0.1.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # as a script it sees its own folder only

from bench import models  # noqa: E402 - after the path
from bench.load import Server, write_bodies, write_script  # noqa: E402 - the same
from bench.product import CNN, TABLE, gateway, import_cnn, train_table  # noqa: E402 - the same
from bench.raw import RawModel, Setting, open_session  # noqa: E402 - the same
from tests.support.platform import KEY, Platform  # noqa: E402 - the same
from tests.support.servers import free_port, wait_until  # noqa: E402 - the same

PREDICT = f"/api/v1/endpoints/{TABLE}/predict"
INFER = f"/v2/models/{CNN}/infer"
BASELINES = {"naive": ("naive_app:app", "/predict"), "echo": ("echo_app:app", "/")}
ORDER = ("naive", "ours", "echo")  # ours between those that it is compared with


Runs = list[dict[str, float]]


@contextlib.contextmanager
def baseline(app: str, folder: Path) -> Iterator[Server]:
    """A uvicorn process of its own."""
    port = free_port()
    command = [sys.executable, str(HERE / "server.py"), app, str(port)]
    process = subprocess.Popen(command, env=os.environ | {"BENCH_FOLDER": str(folder)}, cwd=HERE)
    try:
        wait_until(lambda: process.poll() is not None or _listens(port), 60, f"{app} starts")
        yield Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(15)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def binary_bodies(pictures: "np.ndarray") -> list[tuple[int, bytes]]:
    """One picture each, as binary tensor data both ways."""
    tensor = {"name": "image", "shape": [1, 3, 64, 64], "datatype": "UINT8", "parameters": {"binary_data_size": 12288}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return [(len(header), header + picture.tobytes()) for picture in pictures]


def check(server: Server, onnx: Path, rows: list[dict[str, float]], path: str) -> None:
    """The server must give the model's answer before its speed means anything."""
    matrix = np.array([list(row.values()) for row in rows], np.float32)
    (expected,) = open_session(onnx, 1).run(["probabilities"], {"numeric": matrix})
    answer = httpx.post(f"{server.url}{path}", json={"instances": rows}, headers={"X-API-Key": KEY})
    got = [list(p["probabilities"].values()) for p in answer.raise_for_status().json()["predictions"]]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def raw_table_ms(onnx: Path) -> float:
    """Median ms of session.run on one row, one thread."""
    session = open_session(onnx, 1)
    row, times = {"numeric": np.ones((1, 30), np.float32)}, []
    for _ in range(2000):
        begun = time.perf_counter()
        session.run(["probabilities"], row)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


def median(runs: Runs, key: str) -> float:
    return statistics.median(run[key] for run in runs)


def merged(slices: Runs) -> dict[str, float]:
    """One cell of its slices, between which the others ran: what else the machine did hit them all."""
    return {
        **{key: statistics.mean(part[key] for part in slices) for key in ("rps", "cpu_us")},
        **{key: statistics.median(part[key] for part in slices) for key in ("p50", "p99")},
    }


def ratios(ours: Runs, theirs: Runs, key: str) -> list[float]:
    """The ratio within each round: a round's cells see nearly the same machine."""
    return [our[key] / their[key] for our, their in zip(ours, theirs, strict=True)]


def report(name: str, values: list[float], target: float, *, at_most: bool = False) -> bool:
    """Print the median and the range of one figure; True if the median reaches its target."""
    value = statistics.median(values)
    good = value <= target if at_most else value >= target
    bound = f"{'<=' if at_most else '>='} {target:.3f}"
    print(f"  {'ok  ' if good else 'MISS'} {name}: {value:.3f} [{min(values):.3f}, {max(values):.3f}] (target {bound})")
    return good


class Rounds:
    """What the rounds measured: runs of wrk by cell, raw ONNX Runtime beside them."""

    def __init__(self, folder: Path, platform: Platform) -> None:
        write_script(folder)
        self._folder = folder
        self._onnx = folder / TABLE / "model.onnx"
        self._rows = train_table(platform, folder / TABLE)
        pictures = models.export_cnn(folder / "cnn.onnx")
        import_cnn(platform, folder / "cnn.onnx")
        self._raw_cnn = RawModel(folder / "cnn.onnx", {"image": pictures})
        self._raw_settings = self._raw_cnn.best(3, in_flight=128)
        self._ours = gateway(platform)
        bodies = [(0, json.dumps({"instances": [row]}).encode()) for row in self._rows]
        self._table = write_bodies(folder / "table.lua", bodies)
        self._binary = write_bodies(folder / "cnn.lua", binary_bodies(pictures[:16]))
        self.runs: dict[str, Runs] = defaultdict(list)
        self.single_ms: list[float] = []
        self.raw_rates: list[float] = []

    def run(self, seconds: int, rounds: int) -> None:
        """Start the baselines, see that all answer as the model does, and go round."""
        with contextlib.ExitStack() as stack:
            servers = {"ours": (self._ours, PREDICT)}
            for name, (app, path) in BASELINES.items():
                servers[name] = stack.enter_context(baseline(app, self._folder)), path
            for name in ("ours", "naive"):
                check(servers[name][0], self._onnx, self._rows, servers[name][1])
            for server, path in servers.values():
                server.load(path, self._table, 64, 1)
            for turn in range(1, rounds + 1):
                slices: dict[str, Runs] = defaultdict(list)
                for name in ORDER * seconds:
                    server, path = servers[name]
                    slices[name].append(server.load(path, self._table, 64, 1))
                for name in ORDER:
                    self._note(turn, name, merged(slices[name]))
                self._alone(turn, seconds)
                self._cnn(turn, seconds)

    def _alone(self, turn: int, seconds: int) -> None:
        self._note(turn, "table alone", self._ours.load(PREDICT, self._table, 1, seconds))
        self.single_ms.append(raw_table_ms(self._onnx))
        print(f"round {turn} raw table: {self.single_ms[-1]:.3f} ms", flush=True)
        self._note(turn, "cnn alone", self._ours.load(INFER, self._binary, 1, seconds))

    def _cnn(self, turn: int, seconds: int) -> None:
        slices: Runs = []
        raw: dict[Setting, list[float]] = defaultdict(list)
        for _ in range(seconds):
            slices.append(self._ours.load(INFER, self._binary, 32, 1))
            for setting in self._raw_settings:
                raw[setting].append(self._raw_cnn.rate(setting, 1))
        self._note(turn, "cnn 32", merged(slices))
        rates = {setting: statistics.mean(found) for setting, found in raw.items()}
        self.raw_rates.append(max(rates.values()))
        cells = ", ".join(f"{rate:.0f}/s with {t} threads x {n}, batch {b}" for (t, n, b), rate in rates.items())
        print(f"round {turn} raw cnn: {cells}", flush=True)

    def _note(self, turn: int, cell: str, result: dict[str, float]) -> None:
        self.runs[cell].append(result)
        print(
            f"round {turn} {cell:12s}{result['rps']:9.0f}/s  p50 {result['p50']:.2f}  p99 {result['p99']:.2f} ms  "
            f"{result['cpu_us']:.0f} us CPU",
            flush=True,
        )

    def judge(self) -> bool:
        """Print each figure beside its target; True if all are reached."""
        ours, naive, echo = self.runs["ours"], self.runs["naive"], self.runs["echo"]
        above_raw_ms = [run["p50"] - raw for run, raw in zip(self.runs["table alone"], self.single_ms, strict=True)]
        of_raw = [run["rps"] / rate for run, rate in zip(self.runs["cnn 32"], self.raw_rates, strict=True)]
        for name in ORDER:
            rps, cpu_us = median(self.runs[name], "rps"), median(self.runs[name], "cpu_us")
            print(f"       {name}: {rps:.0f} requests/s, {cpu_us:.0f} us of server CPU a request")
        good = [
            report("tabular rate / plain handler's, 64 connections", ratios(ours, naive, "rps"), 5),
            report("tabular rate / bare ASGI echo's, 64 connections", ratios(ours, echo, "rps"), 0.5),
            report("tabular p99 / plain handler's, 64 connections", ratios(ours, naive, "p99"), 0.125, at_most=True),
            report("tabular p50 on an idle server over session.run, ms", above_raw_ms, 0.3, at_most=True),
            report("CNN rate / best raw ONNX Runtime's, 32 connections", of_raw, 0.75),
        ]
        return all(good)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=2, help="of one cell, in slices of one second")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved; medians are judged")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Platform() as platform:
        measured = Rounds(Path(folder), platform)
        measured.run(arguments.seconds, arguments.rounds)
        reached = measured.judge()
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
