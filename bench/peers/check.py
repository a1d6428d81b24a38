"""Is every answer ONNX Runtime's? One after another, and from many connections at once, where they might be crossed."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from bench.peers.bodies import Body, Samples, numbers
from tests.support.platform import KEY

_READY_S = 90.0  # for the first answer of a model: some listen before they have loaded
_REQUEST_S = 30
_CONNECTIONS = 24
_EACH = {"mlp": 40, "cnn": 6, "encoder": 6}  # requests of a connection
_FP32 = 1e-4  # largest difference, of the largest number of the answer


class WrongAnswer(Exception):
    """A server did not answer, or not what the model answers."""


@dataclass(frozen=True)
class Checked:
    """What was compared: answers, and the largest difference of one relative to its largest number."""

    answers: int
    worst: float


def check(url: str, path: str, samples: Samples, bodies: list[Body], precision: str = "fp32") -> Checked:
    """Compare answers with what ONNX Runtime gave; WrongAnswer if one differs by more than the precision's noise."""
    expected = samples.expected[precision]
    limit = _FP32 if precision == "fp32" else _apart(expected) / 3
    host = urlsplit(url).netloc
    _first(host, path, samples.model, bodies[0])

    def several(worker: int) -> list[float]:
        connection = http.client.HTTPConnection(host, timeout=_REQUEST_S)
        differences = []
        for turn in range(_EACH[samples.model]):
            at = (worker * 7 + turn) % len(bodies)
            got = _ask(connection, path, samples.model, bodies[at])
            differences.append(_difference(got, expected[at]))
        connection.close()
        return differences

    alone = several(0)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        together = [found for part in pool.map(several, range(_CONNECTIONS)) for found in part]
    checked = Checked(len(alone) + len(together), max(alone + together))
    if not checked.worst <= limit:
        raise WrongAnswer(f"{path}: an answer differs by {checked.worst:.2g}, of {limit:.2g} allowed")
    return checked


def _first(host: str, path: str, model: str, body: Body) -> None:
    """Ask until the model answers."""
    deadline = time.monotonic() + _READY_S
    while True:
        connection = http.client.HTTPConnection(host, timeout=_REQUEST_S)
        try:
            _ask(connection, path, model, body)
        except (WrongAnswer, OSError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                raise WrongAnswer(f"{path}: no answer in {_READY_S:.0f} s: {error}") from error
            time.sleep(0.5)
        else:
            return
        finally:
            connection.close()


def _ask(connection: http.client.HTTPConnection, path: str, model: str, body: Body) -> "np.ndarray":
    length, content = body
    headers = {"Content-Type": "application/json", "X-API-Key": KEY}
    if length:
        headers |= {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(length)}
    connection.request("POST", path, content, headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != http.client.OK:
        raise WrongAnswer(f"{path}: {response.status} {answer[:200]!r}")
    header_length = response.headers.get("Inference-Header-Content-Length")
    try:
        return numbers(model, answer, int(header_length) if header_length else None)
    except (ValueError, json.JSONDecodeError) as error:
        raise WrongAnswer(f"{path}: {error}: {answer[:200]!r}") from error


def _difference(got: "np.ndarray", expected: "np.ndarray") -> float:
    if got.shape != expected.shape:
        return float("inf")
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def _apart(expected: "np.ndarray") -> float:
    """How much the two answers that are most alike differ: a crossed answer differs by at least this."""
    pairs = [_difference(a, b) for at, a in enumerate(expected) for b in expected[at + 1 :]]
    return min(pairs)
