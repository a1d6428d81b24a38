"""The serving benchmark: ratios to a plain FastAPI handler, to a bare ASGI echo and to raw ONNX Runtime, in one run.

    python bench/serving.py [--seconds 3] [--rounds 3]

Absolute numbers of different minutes on a shared machine say little, so all servers run side by side (idle ones cost
nothing), the rounds are interleaved, and only ratios of medians are judged. Needs wrk. Load stays on 127.0.0.1.
"""

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import models
import numpy as np
import onnxruntime as ort

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
  io.write(string.format('RESULT {"rps":%.2f,"p50":%.3f,"p99":%.3f,"bad":%d}\\n', s.requests / s.duration * 1e6,
    l:percentile(50)/1e3, l:percentile(99)/1e3, s.errors.connect + s.errors.read + s.errors.write + s.errors.status))
end
"""


class Server:
    """One uvicorn process."""

    def __init__(self, app: str, folder: Path, path: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), app, str(self.port)],
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
        out = subprocess.run([*command, url, "--", str(bodies)], capture_output=True, text=True, check=True).stdout
        match = re.search(r"^RESULT (.*)$", out, re.MULTILINE)
        if not match:
            raise SystemExit(out)
        result: dict[str, float] = json.loads(match[1])
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


def ratio(ours: Runs, theirs: Runs, key: str) -> float:
    """Median over the rounds of the ratio within a round: a round's cells see nearly the same machine."""
    return statistics.median(our[key] / their[key] for our, their in zip(ours, theirs, strict=True))


def report(name: str, value: float, target: float, *, at_most: bool = False) -> bool:
    """Print one judged figure; True if it reaches its target."""
    good = value <= target if at_most else value >= target
    print(f"  {'ok  ' if good else 'MISS'} {name}: {value:.3f} (target {'<=' if at_most else '>='} {target:.3f})")
    return good


def measure(folder: Path, seconds: int, rounds: int) -> bool:
    """Start everything, run the rounds, judge. True if every target is reached."""
    (folder / "wrk.lua").write_text(LUA)
    rows = models.export_table(folder / "table")
    pictures = models.export_cnn(folder / "cnn")
    table = write_bodies(folder / "table.lua", [(0, json.dumps({"instances": [row]}).encode()) for row in rows])
    binary = write_bodies(folder / "cnn.lua", binary_bodies(pictures[:16]))
    path = "/api/v1/endpoints/table/predict"
    servers = {
        "ours": Server("served_app:app", folder, path),
        "naive": Server("naive_app:app", folder, "/predict"),
        "echo": Server("echo_app:app", folder, "/predict"),
    }
    try:
        check(servers["ours"], folder, rows, path)
        check(servers["naive"], folder, rows, "/predict")
        for server in servers.values():
            server.load(table, 64, 1)
        many: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        alone: list[dict[str, float]] = []
        single_ms: list[float] = []
        cnn: list[dict[str, float]] = []
        cnn_alone: list[dict[str, float]] = []
        raw_runs: list[tuple[float, str]] = []
        raw = RawCnn(folder, pictures)
        for turn in range(rounds):
            for name, server in servers.items():
                many[name].append(server.load(table, 64, seconds))
                print(f"round {turn + 1} {name:6s} {many[name][-1]}", flush=True)
            alone.append(servers["ours"].load(table, 1, seconds))
            single_ms.append(raw_table_ms(folder))
            cnn_path = "/v2/models/cnn/infer"
            cnn.append(servers["ours"].load(binary, 32, seconds, cnn_path))
            cnn_alone.append(servers["ours"].load(binary, 1, seconds, cnn_path))
            raw_runs.append(raw.best(0.35))
            print(
                f"round {turn + 1} alone {alone[-1]} cnn {cnn[-1]} cnn alone {cnn_alone[-1]} raw {raw_runs[-1]}",
                flush=True,
            )
        print(f"tabular, 64 connections, requests/s: { ({n: round(median(r, 'rps')) for n, r in many.items()}) }")
        of_raw = statistics.median(run["rps"] / rate for run, (rate, _) in zip(cnn, raw_runs, strict=True))
        return all(
            [
                report("tabular rate / plain handler", ratio(many["ours"], many["naive"], "rps"), 5),
                report("tabular rate / ASGI echo", ratio(many["ours"], many["echo"], "rps"), 0.5),
                report(
                    "tabular p99 / plain handler's",
                    ratio(many["ours"], many["naive"], "p99"),
                    1 / 8,
                    at_most=True,
                ),
                report(
                    "tabular p50 alone over session.run, ms",
                    median(alone, "p50") - statistics.median(single_ms),
                    0.3,
                    at_most=True,
                ),
                report("CNN rate at 32 connections / best raw ONNX Runtime", of_raw, 0.75),
            ]
        )
    finally:
        for server in servers.values():
            server.process.terminate()
            server.process.wait(15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3, help="of one cell")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved; medians are judged")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if measure(Path(folder), arguments.seconds, arguments.rounds) else 1)


if __name__ == "__main__":
    main()
