"""Keep-alive connections to a gateway that know which process answers them."""

import http.client
import json
from typing import Self
from urllib.parse import urlsplit

import numpy as np

from tests.support.imports import OUTPUTS, Matrix
from tests.support.platform import KEY

PROCESS = 16  # the first digits of a request id that a gateway makes are those of its process


class Wrong(Exception):
    """Another answer than 200."""


class Connection:
    """One connection, opened at once and never again."""

    def __init__(self, url: str, timeout_s: float = 60) -> None:
        self._http = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)
        self._http.connect()
        self._http.auto_open = 0
        self.process = ""

    def infer(self, model: str, rows: Matrix) -> Matrix:
        """The answer to these rows. OSError or HTTPException if the connection breaks, Wrong if it is not 200."""
        tensor = {"name": "x", "datatype": "FP32", "shape": rows.shape, "parameters": {"binary_data_size": rows.nbytes}}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers = {"x-api-key": KEY, "inference-header-content-length": str(len(head))}
        self._http.request("POST", f"/v2/models/{model}/infer", head + rows.tobytes(), headers)
        answer = self._http.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise Wrong(f"{answer.status} {content.decode()}")
        self.process = str(answer.headers["x-request-id"])[:PROCESS]
        at = int(answer.headers["inference-header-content-length"])
        return np.frombuffer(content[at:], np.float32).reshape(len(rows), OUTPUTS)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        self._http.request("GET", path, headers={"x-api-key": KEY})
        answer = self._http.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        """Close it."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
