"""The serving benchmark: ratios to a plain FastAPI handler, to a bare ASGI echo and to raw ONNX Runtime, in one run.

    python bench/serving.py [--seconds 3] [--rounds 3]

Absolute numbers of different minutes on a shared machine say little, so all servers run side by side (idle ones cost
nothing), the rounds are interleaved, and only ratios of medians are judged. Needs wrk. Load stays on 127.0.0.1.
"""

import argparse
import contextlib
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import models
import numpy as np
import onnxruntime as ort
import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LUA = """
local requests, n, i = {}, 0, 0
function init(args)
  for _, b in ipairs(dofile(args[1])) do
    n = n + 1
    local h = {["Host"] = wrk.host, ["Content-Type"] = "application/json", ["X-API-Key"] = "bench-key"}
    if b[1] > 0 then h["Inference-Header-Content-Length"] = tostring(b[1]) end
    requests[n] = wrk.format("POST", wrk.path, h, b[2])
  end
end
function request() i = i % n + 1; return requests[i] end
function done(s, l, r)
  local bad = s.errors.connect + s.errors.read + s.errors.write + s.errors.status + s.errors.timeout
  io.write(string.format('RESULT {"requests":%d,"rps":%.2f,"p50":%.3f,"p99":%.3f,"bad":%d}\\n',
    s.requests, s.requests / s.duration * 1e6, l:percentile(50)/1e3, l:percentile(99)/1e3, bad))
end
"""


class Server:
    """One uvicorn process."""

    def __init__(self, app: str, folder: Path, path: str, protocol: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), app, str(self.port), protocol],
            env={"BENCH_FOLDER": str(folder), "PATH": "/usr/bin:/bin"},
            cwd=ROOT,
        )
        self.path = path
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise SystemExit(f"server for {self.path} ended with {self.process.returncode}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                time.sleep(0.1)
        raise SystemExit(f"server for {self.path} did not start")

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(15)

    def _cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def load(self, bodies: Path, connections: int, seconds: int, path: str = "") -> dict[str, float]:
        """Requests/s and latencies in ms under a closed loop of `connections`."""
        url = f"http://127.0.0.1:{self.port}{path or self.path}"
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--timeout",
            "10s",
            "-s",
            str(bodies.parent / "wrk.lua"),
        ]
        used_s = self._cpu_s()
        out = subprocess.run([*command, url, "--", str(bodies)], capture_output=True, text=True, check=True).stdout
        match = re.search(r"^RESULT (.*)$", out, re.MULTILINE)
        if not match:
            raise SystemExit(out)
        result: dict[str, float] = json.loads(match[1])
        result["cpu_us"] = (self._cpu_s() - used_s) / result["requests"] * 1e6
        if result["bad"]:
            raise SystemExit(f"{url}: {result['bad']:.0f} requests failed")
        return result


def write_bodies(file: Path, bodies: list[tuple[int, bytes]]) -> Path:
    """Bodies as a Lua table of {header length, text}."""
    texts = [(length, "".join(f"\\{byte:03d}" for byte in body)) for length, body in bodies]
    rows = ",\n".join(f"{{{length},'{text}'}}" for length, text in texts)
    file.write_text(f"return {{\n{rows}\n}}\n")
    return file


def binary_bodies(pictures: "np.ndarray") -> list[tuple[int, bytes]]:
    """One picture each, as binary tensor data both ways."""
    tensor = {"name": "image", "shape": [1, 3, 64, 64], "datatype": "UINT8", "parameters": {"binary_data_size": 12288}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return [(len(header), header + picture.tobytes()) for picture in pictures]


def check(server: Server, folder: Path, rows: list[dict[str, float]], path: str) -> None:
    """The server must give the model's answer before its speed means anything."""
    session = ort.InferenceSession(str(folder / "table" / "model.onnx"), providers=["CPUExecutionProvider"])
    matrix = np.array([list(row.values()) for row in rows], np.float32)
    (expected,) = session.run(["probabilities"], {"numeric": matrix})
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}",
        json.dumps({"instances": rows}).encode(),
        {"Content-Type": "application/json", "X-API-Key": "bench-key"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - the same
        got = [list(p["probabilities"].values()) for p in json.load(answer)["predictions"]]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def raw_table_ms(folder: Path) -> float:
    """Median ms of session.run on one row, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(folder / "table" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    row, times = {"numeric": np.ones((1, 30), np.float32)}, []
    for _ in range(2000):
        begun = time.perf_counter()
        session.run(["probabilities"], row)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


class RawCnn:
    """session.run in loops, on every sensible split of the cores."""

    def __init__(self, folder: Path, pictures: "np.ndarray") -> None:
        self._pictures = pictures
        self._sessions = {threads: self._open(folder, threads) for threads in (1, 2)}

    @staticmethod
    def _open(folder: Path, threads: int) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        return ort.InferenceSession(str(folder / "cnn" / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def rate(self, threads: int, lanes: int, batch: int, seconds: float) -> float:
        """Items/s of `lanes` loops at once."""
        end = time.perf_counter() + seconds

        def loop() -> int:
            done = 0
            while time.perf_counter() < end:
                self._sessions[threads].run(None, {"image": self._pictures[:batch]})
                done += batch
            return done

        begun = time.perf_counter()
        with ThreadPoolExecutor(lanes) as pool:
            items = sum(job.result() for job in [pool.submit(loop) for _ in range(lanes)])
        return items / (time.perf_counter() - begun)

    def best(self, seconds: float) -> tuple[float, str]:
        """The highest items/s and the setting that gave it."""
        cells = [(t, n, b) for t, n in ((1, 1), (2, 1), (1, 2)) for b in (1, 4, 8, 16, 32, 64)]
        rates = {f"{t} threads x {n} lanes, batch {b}": self.rate(t, n, b, seconds) for t, n, b in cells}
        name = max(rates, key=lambda key: rates[key])
        return rates[name], name


Runs = list[dict[str, float]]


def median(runs: Runs, key: str) -> float:
    return statistics.median(run[key] for run in runs)


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


PREDICT = "/api/v1/endpoints/table/predict"
INFER = "/v2/models/cnn/infer"


class Rounds:
    """What the rounds measured: runs of wrk by cell, raw ONNX Runtime beside them."""

    def __init__(self, folder: Path) -> None:
        (folder / "wrk.lua").write_text(LUA)
        self._folder = folder
        self._rows = models.export_table(folder / "table")
        self._pictures = models.export_cnn(folder / "cnn")
        bodies = [(0, json.dumps({"instances": [row]}).encode()) for row in self._rows]
        self._table = write_bodies(folder / "table.lua", bodies)
        self._binary = write_bodies(folder / "cnn.lua", binary_bodies(self._pictures[:16]))
        self.runs: dict[str, Runs] = defaultdict(list)
        self.single_ms: list[float] = []
        self.raw_rates: list[float] = []

    def run(self, seconds: int, rounds: int) -> None:
        """Start the servers and go round."""
        apps = (
            ("ours", "served_app:app", PREDICT, "joining"),
            ("naive", "naive_app:app", "/predict", "auto"),
            ("echo", "echo_app:app", "/", "auto"),
            ("echo joining", "echo_app:app", "/", "joining"),
        )
        with contextlib.ExitStack() as stack:
            servers: dict[str, Server] = {}
            for name, app, path, protocol in apps:
                servers[name] = Server(app, self._folder, path, protocol)
                stack.callback(servers[name].stop)
            check(servers["ours"], self._folder, self._rows, PREDICT)
            check(servers["naive"], self._folder, self._rows, "/predict")
            for server in servers.values():
                server.load(self._table, 64, 1)
            raw = RawCnn(self._folder, self._pictures)
            for turn in range(1, rounds + 1):
                self._round(turn, servers, raw, seconds)

    def _round(self, turn: int, servers: dict[str, Server], raw: RawCnn, seconds: int) -> None:
        for name, server in servers.items():
            self._note(turn, name, server.load(self._table, 64, seconds))
        ours = servers["ours"]
        self._note(turn, "table alone", ours.load(self._table, 1, seconds))
        self.single_ms.append(raw_table_ms(self._folder))
        self._note(turn, "cnn 32", ours.load(self._binary, 32, seconds, INFER))
        self._note(turn, "cnn alone", ours.load(self._binary, 1, seconds, INFER))
        rate, setting = raw.best(0.35)
        self.raw_rates.append(rate)
        print(f"round {turn} raw: table {self.single_ms[-1]:.3f} ms, cnn {rate:.0f}/s with {setting}", flush=True)

    def _note(self, turn: int, cell: str, result: dict[str, float]) -> None:
        self.runs[cell].append(result)
        print(
            f"round {turn} {cell:12s}{result['rps']:9.0f}/s  p50 {result['p50']:.2f}  p99 {result['p99']:.2f} ms",
            flush=True,
        )

    def judge(self) -> bool:
        """Print each figure beside its target; True if all are reached."""
        ours, naive, echo = self.runs["ours"], self.runs["naive"], self.runs["echo"]
        above_raw_ms = [run["p50"] - raw for run, raw in zip(self.runs["table alone"], self.single_ms, strict=True)]
        of_raw = [run["rps"] / rate for run, rate in zip(self.runs["cnn 32"], self.raw_rates, strict=True)]
        for name in ("ours", "naive", "echo", "echo joining"):
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
    parser.add_argument("--seconds", type=int, default=3, help="of one cell")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved; medians are judged")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = Rounds(Path(folder))
        measured.run(arguments.seconds, arguments.rounds)
        sys.exit(0 if measured.judge() else 1)


if __name__ == "__main__":
    main()
