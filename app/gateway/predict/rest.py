"""POST /api/v1/endpoints/{name}/predict: named values in, labels or numbers out."""

import asyncio
import time

from app.gateway.predict.exchange import JSON, Exchange, MethodNotAllowed
from app.gateway.predict.running import record, run
from app.serving.host import Host


class PredictApi:
    """The platform's own prediction form."""

    def __init__(self, host: Host, max_body: int) -> None:
        self._host = host
        self._max_body = max_body

    async def predict(self, exchange: Exchange, endpoint: str) -> None:
        """Answer one request; errors of the tree are the dispatcher's to answer."""
        if exchange.method != "POST":
            raise MethodNotAllowed("POST")
        with self._host.lookup(endpoint) as served:
            exchange.metrics = served.metrics
            body = await exchange.body(self._max_body)
            decode = served.instances
            inputs, rows = decode(body) if len(body) <= decode.inline_bytes else await asyncio.to_thread(decode, body)
            parsed = time.perf_counter()
            answer = await run(exchange, served, inputs, rows)
            computed = time.perf_counter()
            predictions = served.predictions(answer.outputs)
            content = b'{"predictions":%b,%b,"request_id":"%b"}' % (
                predictions,
                served.identity,
                exchange.request_id.encode(),
            )
            timing = record(exchange, served, answer, parsed, computed)
            await exchange.compressed(200, content, [JSON, *timing])
