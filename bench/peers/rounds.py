"""The rounds: each cell of a server between two of the naive one, so that both see the same minutes of the machine."""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.load import LoadFailed, Server, write_bodies
from bench.peers.bodies import Body, Form, Samples, plain, v2_binary
from bench.peers.cells import Cell, Result
from bench.peers.check import Checked, check
from bench.raw import RawModel, Setting

_WARM_S, _WARM_CONNECTIONS = 3, 8


class Machine:
    """Cores in use by what this benchmark has not started, or taken by the hypervisor."""

    def __init__(self) -> None:
        self._at, self._foreign_s = time.perf_counter(), self._foreign()

    def others(self) -> float:
        """Mean since the last call."""
        at, foreign_s = time.perf_counter(), self._foreign()
        cores = (foreign_s - self._foreign_s) / (at - self._at)
        self._at, self._foreign_s = at, foreign_s
        return max(0.0, cores)

    @staticmethod
    def _foreign() -> float:
        machine = psutil.cpu_times()
        busy_s = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
        own = psutil.Process()
        own_s = 0.0
        for process in [own, *own.children(recursive=True)]:
            try:
                own_s += sum(process.cpu_times()[:4])  # with the children that have ended
            except psutil.NoSuchProcess:
                continue
        return busy_s - own_s


@dataclass
class Target:
    """A server under load: where each model is, and with which bodies it is asked."""

    server: Server
    path: Callable[[Cell], str]
    form: Callable[[str], Form]
    samples: dict[str, Samples]
    folder: Path  # for wrk
    name: str
    _files: dict[tuple[str, str], Path] = field(default_factory=dict)

    def load(self, cell: Cell, seconds: int | None = None) -> Result:
        """Run wrk on one cell."""
        key = cell.model, cell.form
        if key not in self._files:
            file = self.folder / f"{self.name}-{cell.model}-{cell.form}.lua"
            self._files[key] = write_bodies(file, self._bodies(cell))
        return self.server.load(self.path(cell), self._files[key], cell.connections, seconds or cell.seconds)

    def check(self, cell: Cell) -> Checked:
        """Compare its answers with the model's."""
        samples = self.samples[cell.model]
        return check(self.server.url, self.path(cell), samples, self._bodies(cell), cell.precision)

    def _bodies(self, cell: Cell) -> list[Body]:
        form = v2_binary if cell.form == "binary" else self.form(cell.model)
        return [form(row) for row in self.samples[cell.model].rows]


def naive_target(server: Server, samples: dict[str, Samples], folder: Path) -> Target:
    """The server beside which all others run."""
    return Target(server, lambda cell: f"/{cell.model}", lambda _: plain, samples, folder, "naive")


class RawLimits:
    """The best of a few settings of ONNX Runtime, measured beside a cell."""

    def __init__(self, models: Path, samples: dict[str, Samples]) -> None:
        self._models = models
        self._samples = samples
        self._raw: dict[tuple[str, str], RawModel] = {}
        self._settings: dict[Cell, list[Setting]] = {}

    def prepare(self, cell: Cell) -> list[Setting]:
        """Find the settings for a cell, if that was not done: as many rows at once as it has connections."""
        if cell not in self._settings:
            key = cell.model, cell.precision
            if key not in self._raw:
                name = cell.model if cell.precision == "fp32" else f"{cell.model}-{cell.precision}"
                self._raw[key] = RawModel(self._models / f"{name}.onnx", self._samples[cell.model].batch(64))
            self._settings[cell] = self._raw[key].best(2, cell.connections)
        return self._settings[cell]

    def rate(self, cell: Cell) -> float:
        """Rows/s now."""
        raw = self._raw[cell.model, cell.precision]
        return max(raw.rate(setting, 1) for setting in self.prepare(cell))


def measure(
    target: Target, naive: Target, cells: Sequence[Cell], rounds: int, until: float, limits: RawLimits | None = None
) -> Iterator[tuple[Cell, Result]]:
    """Each cell of each round with naive's before and after; a cell that fails has no result in that round.

    After `until`, on the monotonic clock, no cell begins, but those of the first round.
    """
    _warm(target, cells)
    for turn in range(rounds):
        machine = Machine()
        groups = itertools.groupby(sorted(cells), key=lambda cell: (cell.model, cell.connections))
        for (model, connections), group in groups:
            if turn and time.monotonic() > until:
                return
            beside = Cell(model, connections)
            before = naive.load(beside)
            for cell in group:
                try:
                    result = target.load(cell)
                except LoadFailed as error:
                    yield cell, {"what": "failed", "why": str(error)[:300]}
                    continue
                if limits is not None and cell.raw:
                    result["raw_rps"] = limits.rate(cell)
                after = naive.load(beside)
                result |= {f"naive_{key}": statistics.mean((before[key], after[key])) for key in ("rps", "p50", "p99")}
                before = after
                yield cell, {"what": "cell", "round": turn, "others": machine.others(), **result}


def _warm(target: Target, cells: Sequence[Cell]) -> None:
    """Load each kind of body for a while: some servers learn how to batch from their first requests."""
    for model, form, precision in sorted({(cell.model, cell.form, cell.precision) for cell in cells}):
        with contextlib.suppress(LoadFailed):  # the rounds will tell
            target.load(Cell(model, _WARM_CONNECTIONS, form, precision), _WARM_S)
