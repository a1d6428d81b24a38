"""The few types that the parts of serving pass to one another."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Tensors = tuple[Array, ...]
Run = Callable[[Tensors], Tensors]


@dataclass(frozen=True, slots=True)
class Batching:
    """Limits of one endpoint: rows of a run, rows that may wait, and how long the first may wait for company.

    Where `shapes_vary`, rows of two requests may differ in shape, and then do not share a run.
    """

    max_batch: int
    max_queue: int
    max_delay_ms: float = 0.0
    shapes_vary: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model runs: on the event loop (`inline`) or in `lanes` threads; `alone` is for a lonely request."""

    run: Run
    lanes: int = 1
    inline: bool = False
    alone: Run | None = None


@dataclass(slots=True)
class Answer:
    """Outputs in the signature's order, first dimension = the request's rows, and the time that each phase took."""

    outputs: Tensors
    queue_s: float
    batch_s: float
    compute_s: float
