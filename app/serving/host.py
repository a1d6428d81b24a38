"""The models in this process's memory: load, prove, swap without cutting a request, drain.

    host = Host(settings)
    served = await host.load(source)      # session opened, warmed, golden rows proven; nothing changes for callers yet
    await host.swap(served)               # new requests go to it; the old one drains in the background
    with host.lookup("churn") as served:  # in use: it will not be closed before the block ends
        answer = await served.infer(inputs, rows=1)

All methods belong to one event loop; only the loading itself happens in a thread.
"""

import asyncio
import gc
import json
import math
import os
from collections.abc import Awaitable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import orjson
from prometheus_client import CollectorRegistry

from app.core.errors import Corrupt, NotFound, Unavailable
from app.core.signature import Signature
from app.core.version_folder import GOLDEN, SIGNATURE
from app.serving.batcher import Batcher
from app.serving.cache import AnswerCache
from app.serving.golden import prove, read_golden
from app.serving.instances import InstanceDecoder, instance_decoder
from app.serving.oip import OipCodec
from app.serving.plan import choose
from app.serving.predictions import PredictionEncoder, prediction_encoder
from app.serving.session import Session
from app.serving.types import Answer, Batching, Plan, Tensors
from app.serving.waiting import DEFAULT_PRIORITY
from app.settings import ServingSettings
from app.telemetry.metrics import ModelMetrics, ServingMetrics

__all__ = ["Batching", "Host", "ModelSource", "ServedModel"]

_RETRY_S = 2.0
BASE_VARIANT = "fp32"
# Objects that may be made before the youngest are collected. Requests leave no cycles, but 64 of them at once are more
# than Python's 700 objects: a collection in each turn of the event loop, 4 to 7 % of the time of a small model.
_GC_OBJECTS = 10_000


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to load: `folder` holds signature.json and golden.json, `onnx` is the file of the variant."""

    endpoint: str
    model: str
    version: int
    variant: str
    folder: Path
    onnx: Path
    batching: Batching


class ServedModel:
    """One model version that can answer. Use it inside `with`, which keeps it from being closed."""

    def __init__(
        self, source: ModelSource, signature: Signature, plan: Plan, executor: ThreadPoolExecutor, metrics: ModelMetrics
    ) -> None:
        self.source = source
        self.signature = signature
        self.plan = plan
        self.metrics = metrics
        self.limits = _limits(source, signature)
        self.version = str(source.version)
        self.identity = orjson.dumps({"model": source.model, "version": source.version, "variant": source.variant})[
            1:-1
        ]
        self.instances: InstanceDecoder = instance_decoder(signature)
        self.predictions: PredictionEncoder = prediction_encoder(signature)
        self.oip = OipCodec(source.endpoint, signature)
        self._batcher: Batcher | None = Batcher(plan, self.limits, metrics, executor)
        self._cache: AnswerCache | None = None
        if self.limits.cache_bytes:
            self._cache = AnswerCache(self.identity, self._batcher.infer, self.limits.cache_bytes, metrics)
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def __enter__(self) -> Self:
        if not self._users:
            self._unused.clear()
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    def infer(self, inputs: Tensors, rows: int, deadline: float = math.inf, priority: int = 0) -> Awaitable[Answer]:
        """Answer `rows` rows of tensors in the signature's order.

        `deadline` is on `time.perf_counter`'s clock; `priority` 1 goes first, 0 is the default.
        """
        if self._batcher is None:
            raise Unavailable(
                f"version {self.source.version} of '{self.source.model}' was unloaded", retry_after_s=_RETRY_S
            )
        infer = self._batcher.infer if self._cache is None else self._cache.infer
        return infer(inputs, rows, deadline, priority or DEFAULT_PRIORITY)

    async def drained(self) -> None:
        """Return once nobody uses the model, with its session let go."""
        await self._unused.wait()
        self._batcher = self._cache = (
            None  # loaded models are frozen out of the garbage collector: only counting frees them
        )
        self.plan = Plan(_closed)


class Host:
    """Endpoint name → the model that answers for it now."""

    def __init__(self, settings: ServingSettings, metrics: ServingMetrics | None = None) -> None:
        self.metrics = metrics or ServingMetrics(CollectorRegistry())
        self._cores = settings.threads or len(os.sched_getaffinity(0))
        self._executor = ThreadPoolExecutor(self._cores, thread_name_prefix="lane")
        self._served: dict[str, ServedModel] = {}
        self._expected: frozenset[str] = frozenset()
        self._draining: set[asyncio.Task[None]] = set()

    async def load(self, source: ModelSource) -> ServedModel:
        """Open, warm, prove and plan a model; callers do not see it yet.

        Corrupt: a file is missing, cannot be read or does not fit the signature. ParityFailed: the golden rows give
        another answer here.
        """
        signature, plan = await asyncio.to_thread(self._open, source)
        metrics = self.metrics.bind(source.endpoint, source.model, source.version, source.variant)
        served = ServedModel(source, signature, plan, self._executor, metrics)
        gc.collect()
        gc.freeze()  # full collections no longer walk what was loaded: they were the p99
        gc.set_threshold(_GC_OBJECTS, *gc.get_threshold()[1:])
        return served

    async def swap(self, served: ServedModel) -> None:
        """Let `served` answer for its endpoint from now on; requests that the old model has are finished by it."""
        old = self._served.get(served.source.endpoint)
        self._served[served.source.endpoint] = served
        if old is not None and old is not served:
            self._drain(old)

    async def remove(self, endpoint: str) -> None:
        """Stop serving an endpoint; requests under way are finished."""
        if old := self._served.pop(endpoint, None):
            self._drain(old)

    def expect(self, endpoints: Iterable[str]) -> None:
        """Which endpoints exist: those not loaded yet are unavailable rather than unknown."""
        self._expected = frozenset(endpoints)

    def get(self, endpoint: str) -> ServedModel | None:
        """The model that answers for an endpoint."""
        return self._served.get(endpoint)

    def lookup(self, endpoint: str, version: str | None = None) -> ServedModel:
        """As `get`; NotFound for an unknown endpoint or another version, Unavailable for one that is being loaded."""
        served = self._served.get(endpoint)
        if served is not None:
            if version is not None and version != served.version:
                raise NotFound(f"Request for unknown model: '{endpoint}' version {version} is not found")
            return served
        if endpoint in self._expected:
            why = "is not loaded: it is on its way, or was unloaded and waits to be loaded again"
            raise Unavailable(f"endpoint '{endpoint}' {why}", retry_after_s=_RETRY_S)
        raise NotFound(f"Request for unknown model: '{endpoint}' is not found")

    def models(self) -> list[ServedModel]:
        """Every model that answers now, by endpoint name."""
        return [self._served[name] for name in sorted(self._served)]

    def ready(self) -> bool:
        """True if at least one model can answer."""
        return bool(self._served)

    async def close(self) -> None:
        """Drain every model and stop the lanes."""
        for endpoint in list(self._served):
            await self.remove(endpoint)
        await asyncio.gather(*self._draining)
        self._executor.shutdown()

    def _drain(self, served: ServedModel) -> None:
        task = asyncio.create_task(self._release(served), name=f"drain {served.source.endpoint}")
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _release(self, served: ServedModel) -> None:
        await served.drained()
        self.metrics.release(served.metrics)

    def _open(self, source: ModelSource) -> tuple[Signature, Plan]:
        signature = _read_signature(source.folder / SIGNATURE)
        limits = _limits(source, signature)
        golden = read_golden(source.folder / GOLDEN, signature)
        narrow = Session(source.onnx, signature, threads=1)
        prove(golden, narrow.run, exact=source.variant == BASE_VARIANT)

        def open_wide() -> Session:
            wide = Session(source.onnx, signature, threads=self._cores)
            prove(golden, wide.run, exact=source.variant == BASE_VARIANT)
            return wide

        plan = choose(narrow.run, lambda: open_wide().run, golden, limits, self._executor, self._cores)
        return signature, plan


def _limits(source: ModelSource, signature: Signature) -> Batching:
    """The endpoint's limits, as the model can keep them: one that does not batch runs one request at a time."""
    if not signature.batched:
        return replace(source.batching, max_batch=1)
    return replace(source.batching, shapes_vary=any(-1 in tensor.shape[1:] for tensor in signature.inputs))


def _read_signature(path: Path) -> Signature:
    try:
        return Signature.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Corrupt(f"signature.json cannot be read: {error!r}") from error


def _closed(_: Tensors) -> Tensors:
    raise Unavailable("the model was unloaded", retry_after_s=_RETRY_S)
