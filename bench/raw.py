"""The most that ONNX Runtime itself does on these cores: `session.run` in loops, in the best of many settings."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Setting = tuple[int, int, int]  # threads of a run, runs at once, rows of a run
_BATCHES = (1, 4, 8, 16, 32, 64)


def open_session(onnx: Path, threads: int) -> ort.InferenceSession:
    """A session whose runs use this many cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])


class RawModel:
    """Loops over `rows`, which are at least as many as the largest batch, on two cores."""

    def __init__(self, onnx: Path, rows: Mapping[str, "np.ndarray[Any, np.dtype[Any]]"]) -> None:
        self._rows = rows
        self._sessions = {threads: open_session(onnx, threads) for threads in (1, 2)}

    def best(self, keep: int, in_flight: int, seconds: float = 0.3) -> list[Setting]:
        """The settings that promise most, by the best of three short runs each; no more rows at once than in flight."""
        every = [(t, n, b) for t, n in ((2, 1), (1, 2)) for b in _BATCHES if n * b <= in_flight]
        best = {setting: max(self.rate(setting, seconds) for _ in range(3)) for setting in every}
        return sorted(every, key=lambda setting: -best[setting])[:keep]

    def rate(self, setting: Setting, seconds: float) -> float:
        """Rows/s of loops at once."""
        threads, lanes, batch = setting
        inputs = {name: values[:batch] for name, values in self._rows.items()}
        end = time.perf_counter() + seconds

        def loop() -> int:
            done = 0
            while time.perf_counter() < end:
                self._sessions[threads].run(None, inputs)
                done += batch
            return done

        begun = time.perf_counter()
        with ThreadPoolExecutor(lanes) as pool:
            rows = sum(job.result() for job in [pool.submit(loop) for _ in range(lanes)])
        return rows / (time.perf_counter() - begun)
