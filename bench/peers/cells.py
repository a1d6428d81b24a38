"""What is measured: models, bodies, connections, and the ratios that this platform is to reach."""

from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True, order=True)
class Cell:
    """One load. `form` is json or binary, `precision` fp32 or int8."""

    model: str
    connections: int
    form: str = "json"
    precision: str = "fp32"

    @property
    def seconds(self) -> int:
        """A slow model needs longer: its first answers come late, and what is under way at the end does not count."""
        return {"mlp": 1, "cnn": 2, "encoder": 4}[self.model]

    @property
    def raw(self) -> bool:
        """Is the raw limit measured beside it?"""
        return self.model != "mlp" and self.connections > 1 and (self.form == "binary" or self.model == "encoder")

    @property
    def name(self) -> str:
        """For tables."""
        int8 = " int8" if self.precision == "int8" else ""
        return f"{self.model}{int8} {self.form} {self.connections}"


JSON_CELLS = [
    *(Cell("mlp", connections) for connections in (1, 16, 64)),
    *(Cell("cnn", connections) for connections in (1, 8, 32)),
    *(Cell("encoder", connections) for connections in (1, 8, 32)),
]
BINARY_CELLS = [Cell("cnn", connections, "binary") for connections in (1, 8, 32)]
# One CNN picture in JSON at a time has no target: its time is spared.
OUR_CELLS = [cell for cell in JSON_CELLS if cell != Cell("cnn", 1)] + [
    *BINARY_CELLS,
    Cell("cnn", 32, "binary", "int8"),
    Cell("encoder", 32, "json", "int8"),
]


def peer_cells(*, binary: bool, model: str = "") -> list[Cell]:
    """The cells of a peer, or those of one of its models."""
    return [cell for cell in JSON_CELLS + BINARY_CELLS * binary if model in {"", cell.model}]


@dataclass(frozen=True)
class Target:
    """A figure of a cell and what it is to be: a ratio to naive's, to raw ONNX Runtime's, or milliseconds."""

    cell: Cell
    figure: str
    bound: float
    at_most: bool = False

    def reached(self, value: float) -> bool:
        """Is the bound kept?"""
        return value <= self.bound if self.at_most else value >= self.bound

    @property
    def wanted(self) -> str:
        """For tables."""
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


RATE, P99, P50_MS, OF_RAW = "rate / naive's", "p99 / naive's", "p50, ms", "rate / raw limit"
TARGETS = [
    Target(Cell("mlp", 16), RATE, 6),
    Target(Cell("mlp", 64), RATE, 7),
    Target(Cell("mlp", 1), RATE, 2.5),
    Target(Cell("mlp", 1), P50_MS, 0.4, at_most=True),
    Target(Cell("mlp", 64), P99, 0.125, at_most=True),
    Target(Cell("cnn", 8), RATE, 2.8),
    Target(Cell("cnn", 32), RATE, 3.6),
    Target(Cell("cnn", 8, "binary"), RATE, 3.3),
    Target(Cell("cnn", 32, "binary"), RATE, 4.8),
    Target(Cell("cnn", 8, "binary"), OF_RAW, 0.8),
    Target(Cell("cnn", 32, "binary"), OF_RAW, 0.8),
    Target(Cell("cnn", 1, "binary"), RATE, 1.8),
    Target(Cell("encoder", 8), RATE, 1.25),
    Target(Cell("encoder", 32), RATE, 1.3),
    Target(Cell("encoder", 8), OF_RAW, 0.9),
    Target(Cell("encoder", 32), OF_RAW, 0.9),
    Target(Cell("encoder", 1), RATE, 0.95),
    Target(Cell("cnn", 32, "binary", "int8"), RATE, 12),
    Target(Cell("encoder", 32, "json", "int8"), RATE, 3.3),
]
MEMORY_BOUND = 1.1  # of naive's, three models loaded


def figure(result: Result, name: str) -> float | None:
    """A figure of one round's result; None if it was not measured."""
    if name == P50_MS:
        return float(result["p50"])
    if name == OF_RAW:
        return result["rps"] / result["raw_rps"] if "raw_rps" in result else None
    key = {RATE: "rps", P99: "p99"}[name]
    return float(result[key] / result[f"naive_{key}"])
