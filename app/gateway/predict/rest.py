"""POST /api/v1/endpoints/{name}/predict: named values in, labels or numbers out."""

from app.gateway.predict.exchange import Exchange, MethodNotAllowed
from app.gateway.predict.running import answer_instances
from app.serving.host import Host, ServedModel


class PredictApi:
    """The platform's own prediction form."""

    def __init__(self, host: Host, max_body: int) -> None:
        self._host = host
        self._max_body = max_body

    async def predict(self, exchange: Exchange, endpoint: str) -> None:
        """Answer one request; errors of the tree are the dispatcher's to answer."""
        if exchange.method != "POST":
            raise MethodNotAllowed("POST")
        request_id = exchange.request_id.encode()

        def framed(served: ServedModel, predictions: bytes) -> bytes:
            return b'{"predictions":%b,%b,"request_id":"%b"}' % (predictions, served.identity, request_id)

        await answer_instances(exchange, self._host, (endpoint, None), self._max_body, framed)
