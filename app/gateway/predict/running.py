"""What the prediction protocols share: run a model, watch for a caller who leaves, count the phases."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from operator import attrgetter

from app.gateway.predict.decoding import decode_instances
from app.gateway.predict.exchange import JSON, LARGE, Exchange, Headers
from app.gateway.predict.watching import watched
from app.serving.effort import are_small
from app.serving.host import Host, ServedModel
from app.serving.predictions import PredictionEncoder, in_parts
from app.serving.types import Answer, Pieces, Tensors
from app.telemetry.metrics import PHASES

# (the model, the JSON of its predictions) → what the protocol answers.
Frame = Callable[[ServedModel, bytes], bytes]


def whole_body(exchange: Exchange, served: ServedModel, max_body: int, priority: int = 0) -> Awaitable[bytes]:
    """The request's body, unless the model cannot take even one row of this priority: then the errors of `run`.

    A body that is not read costs next to nothing: the server drops it, and the connection goes on after it. One may
    take hours to come, in which the model must be free to go: who has got it looks the model up again.
    """
    exchange.metrics = served.metrics
    served.check_room(exchange.deadline(), priority)
    return exchange.body(max_body)


def run(
    exchange: Exchange,
    served: ServedModel,
    inputs: Tensors,
    rows: int,
    timeout_s: float | None = None,
    priority: int = 0,
) -> Awaitable[Answer]:
    """The model's answer; DeadlineExceeded at the caller's deadline, ClientGone if the caller has left before.

    Where an answer comes before a disconnect could be seen, nobody is watched.
    """
    deadline = exchange.deadline(timeout_s)
    answer = served.infer(inputs, rows, deadline, priority)
    if served.prompt and rows <= served.limits.max_batch:  # otherwise it takes a turn of the loop for each part
        return answer
    return watched(exchange, answer, deadline)


async def answer_instances(
    exchange: Exchange,
    host: Host,
    model: tuple[str, str | None],
    max_body: int,
    frame: Frame,
    bare: Callable[[bytes], bytes] | None = None,
    encoder: Callable[[ServedModel], PredictionEncoder] = attrgetter("predictions"),
) -> None:
    """Answer a body of instances to a model, its name and version; `frame` makes of it what the protocol answers.

    `bare` takes out of the body what only the protocol knows; `encoder` is what writes predictions in its form.
    """
    served = host.get(*model) or await host.reach(*model, exchange.deadline())
    body = await whole_body(exchange, served, max_body)
    with host.get(*model) or await host.reach(*model, exchange.deadline()) as served:
        exchange.metrics = served.metrics
        decode = served.instances
        found: tuple[Tensors, int] | None = None
        if len(body) <= decode.inline_bytes:
            if bare is not None:
                body, bare = bare(body), None
            found = decode.at_once(body)
        if found is None:
            found = await decode_instances(exchange, decode, body, bare)
        inputs, rows = found
        if rows > served.oip.limit.sure_rows:
            served.oip.limit.check_rows(rows, served.oip.all_outputs)
        parsed = time.perf_counter()
        answer = await run(exchange, served, inputs, rows)
        computed = time.perf_counter()
        if rows <= served.oip.inline_rows or are_small(answer.outputs, served.oip.all_outputs):
            content = frame(served, encoder(served)(answer.outputs))
        else:
            content = await asyncio.to_thread(_write, served, answer.outputs, frame, encoder(served))
        timing = record(exchange, served, answer, parsed, computed)
    if len(content) <= LARGE:
        await exchange.compressed(200, content, [JSON, *timing])
        return
    pieces: Pieces = [content]
    del body, found, inputs, answer, content  # the client may take its time
    await exchange.in_pieces(200, pieces, [JSON, *timing])


def _write(served: ServedModel, outputs: Tensors, frame: Frame, encode: PredictionEncoder) -> bytes:
    if not served.signature.batched:
        served.oip.limit.check(outputs, served.oip.all_outputs)
        return frame(served, encode(outputs))
    return frame(served, in_parts(encode, outputs, served.limits.max_answer))


def record(exchange: Exchange, served: ServedModel, answer: Answer, parsed: float, computed: float) -> Headers:
    """Count the phases of a request that is about to be answered; the Server-Timing header if it was asked for."""
    encoded = time.perf_counter()
    received = exchange.received
    spans = (
        received - exchange.started,
        parsed - received,
        answer.queue_s,
        answer.batch_s,
        answer.compute_s,
        encoded - computed,
    )
    exchange.phases = spans
    served.metrics.answered(*spans, cached=answer.cached)
    if exchange.headers.get(b"x-server-timing") != b"1":
        return []
    text = ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in zip(PHASES, spans, strict=True))
    return [(b"server-timing", text.encode())]
