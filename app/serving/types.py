"""The few types that the parts of serving pass to one another."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Tensors = tuple[Array, ...]
Run = Callable[[Tensors], Tensors]
Pieces = list[bytes | memoryview]  # of an answer, one after the other


@dataclass(frozen=True, slots=True)
class Batching:
    """Limits of one endpoint: rows of a run, rows that may wait, and how long the first may wait for company.

    Where `shapes_vary`, rows of two requests may differ in shape, and then do not share a run. `p95_s` is the promise
    that 95 of 100 admitted requests are answered within so many seconds, `cache_bytes` what kept answers may take,
    `max_answer` the bytes of one answer.
    """

    max_batch: int
    max_queue: int
    max_delay_ms: float = 0.0
    shapes_vary: bool = False
    p95_s: float | None = None
    cache_bytes: int = 0
    max_answer: float = math.inf


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model runs: on the event loop (`inline`) or in `lanes` threads; `alone` is for a lonely request.

    `costs` are rows → seconds of a run, as the warm-up measured them.
    """

    run: Run
    lanes: int = 1
    inline: bool = False
    alone: Run | None = None
    costs: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class Answer:
    """Outputs in the signature's order, first dimension = the request's rows, and the time that each phase took.

    `cached`: it is another request's answer to the same question, and took no run.
    """

    outputs: Tensors
    queue_s: float
    batch_s: float
    compute_s: float
    cached: bool = False
