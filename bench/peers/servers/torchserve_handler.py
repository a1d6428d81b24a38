"""TorchServe's handler: whole batches of JSON bodies to one run."""

import json
from functools import cache
from typing import Any

from common import feed, session

opened = cache(session)


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[dict[str, list[float]]] | None:
    """Answer a batch; called once with None when the worker starts."""
    if data is None:
        return None
    model = context.manifest["model"]["modelName"]
    bodies = [item.get("body") or item.get("data") for item in data]
    rows = [body if isinstance(body, dict) else json.loads(body) for body in bodies]
    return [{"y": row.tolist()} for row in opened(model).run(None, feed(model, rows))[0]]
