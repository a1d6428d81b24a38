"""One batch through the model: one result per request, and an error only for those that cause it."""

from collections.abc import Callable

import numpy as np

from app.core.errors import DeadlineExceeded
from app.serving.types import Answer, Run
from app.serving.waiting import Pending

Results = list[Answer | Exception]


class Parted(Results):
    """Results of a batch that was run again in parts: `sizes` are the requests of each run that told of them.

    `ended`: one of the runs had to be.
    """

    __slots__ = ("ended", "sizes")

    def __init__(self, parts: list[Results], *, ended: bool) -> None:
        super().__init__([result for part in parts for result in part])
        self.ended: bool = ended or any(isinstance(part, Parted) and part.ended for part in parts)
        self.sizes: list[int] = []
        for part in parts:
            self.sizes += part.sizes if isinstance(part, Parted) else [len(part)]


def execute(run: Run, batch: list[Pending], clock: Callable[[], float], *, on_loop: bool = False) -> Results:
    """Run one batch, and again in parts if that fails.

    DeadlineExceeded with `on_loop`, of a run that had to be ended: there the next could take as long.
    """
    try:
        begun = clock()
        inputs = batch[0].inputs
        if len(batch) > 1:
            inputs = tuple(np.concatenate(parts) for parts in zip(*(p.inputs for p in batch), strict=True))
        stacked = clock()
        outputs = run(inputs)
        batch_s, compute_s = stacked - begun, clock() - stacked
        if len(batch) == 1:  # nothing to cut apart, and the outputs of a model that does not batch have no rows
            return [Answer(outputs, 0.0, batch_s, compute_s)]
        answers: Results = []
        at = 0
        for pending in batch:
            end = at + pending.rows
            answers.append(Answer(tuple(out[at:end] for out in outputs), 0.0, batch_s, compute_s))
            at = end
    except Exception as error:  # whatever the model raises belongs to the caller whose rows cause it
        if on_loop and isinstance(error, DeadlineExceeded):
            raise
        if len(batch) == 1:
            return [error]
        # Halves find one bad request of n in 2 log2(n) runs; but each run that hangs takes its whole limit.
        size = 1 if isinstance(error, DeadlineExceeded) else (len(batch) + 1) // 2
        parts = [batch[at : at + size] for at in range(0, len(batch), size)]
        ended = isinstance(error, DeadlineExceeded)
        return Parted([_again(run, part, clock, error, on_loop=on_loop) for part in parts], ended=ended)
    else:
        return answers


def _again(run: Run, batch: list[Pending], clock: Callable[[], float], error: Exception, *, on_loop: bool) -> Results:
    """Run a part of a batch that failed, unless all of it was answered meanwhile."""
    if all(pending.future.done() for pending in batch):
        return [error] * len(batch)
    return execute(run, batch, clock, on_loop=on_loop)
