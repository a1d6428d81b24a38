"""The answer to a request of more rows than a run has, from those of its parts."""

import asyncio
import math

import numpy as np

from app.serving.answer_limit import too_large_answer
from app.serving.types import Answer, Tensors

_LARGE = 1 << 20  # bytes that are not copied on the event loop


async def joined(parts: "list[asyncio.Future[Answer]]", most: float = math.inf) -> Answer:
    """One answer of all, in their order; PayloadTooLarge as soon as its outputs have more than `most` bytes.

    The parts that are not done by then are cancelled.
    """
    answers, size = list[Answer](), 0
    try:
        for part in parts:
            answers.append(await part)
            size += sum(array.nbytes for array in answers[-1].outputs)
            if size > most:
                raise too_large_answer(size, most)
    finally:
        for part in parts:
            if not part.cancel() and not part.cancelled():
                part.exception()  # so that one which nobody waits for is not told of as lost
    outputs = [answer.outputs for answer in answers]
    whole = _concatenated(outputs) if size <= _LARGE else await asyncio.to_thread(_concatenated, outputs)
    return Answer(
        whole,
        answers[0].queue_s,
        sum(answer.batch_s for answer in answers),
        sum(answer.compute_s for answer in answers),
    )


def _concatenated(parts: list[Tensors]) -> Tensors:
    return tuple(np.concatenate(tensors) for tensors in zip(*parts, strict=True))
