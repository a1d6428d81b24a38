"""POST /api/v1/endpoints/{name}/predict: named values in, labels or numbers out."""

from app.gateway.predict.exchange import Exchange, MethodNotAllowed
from app.gateway.predict.running import answer_instances
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
        served = self._host.get(endpoint) or await self._host.reach(endpoint, deadline=exchange.deadline())
        end = b',%b,"request_id":"%b"}' % (served.identity, exchange.request_id.encode())
        await answer_instances(exchange, served, self._max_body, lambda found: b'{"predictions":%b%b' % (found, end))
