"""One model version in memory that can answer, and how it is opened: loaded, warmed, proven, measured."""

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import orjson

from app.core.errors import AimassError, Corrupt, Unavailable
from app.core.signature import Signature
from app.core.version_folder import GOLDEN, SIGNATURE
from app.serving.batcher import Batcher
from app.serving.cache import AnswerCache
from app.serving.golden import Golden, check, prove, read_golden
from app.serving.instances import InstanceDecoder, instance_decoder
from app.serving.lanes import open_lanes
from app.serving.oip import OipCodec
from app.serving.packed import can_pack, packed
from app.serving.plan import choose, warm
from app.serving.predictions import PredictionEncoder, prediction_encoder, v1_encoder
from app.serving.process_memory import resident_bytes, trim
from app.serving.provider import Provider
from app.serving.row_limit import RowLimit
from app.serving.runs import RunWatch
from app.serving.session import Session
from app.serving.types import Answer, Batching, Plan, Tensors
from app.serving.waiting import DEFAULT_PRIORITY
from app.telemetry.metrics import ModelMetrics

log = logging.getLogger(__name__)

RETRY_S = 2.0
BASE_VARIANT = "fp32"
# Longest wait for the lanes to let go of a model that nobody uses; a run that hangs may hold it for longer.
_FREE_S = 1.0
_PAUSE_S = 0.001


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

    @property
    def exact(self) -> bool:
        """True if the golden answers are this variant's own."""
        return self.variant == BASE_VARIANT

    @property
    def file_bytes(self) -> int:
        """Size of the model's file and of those beside it, which may hold its tensors; 0 if there are none."""
        return sum(file.stat().st_size for file in self.onnx.parent.glob("*") if file.is_file())

    def __str__(self) -> str:
        return f"{self.model}@{self.version} {self.variant}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is proven and planned. `bytes` and `seconds` are what its memory and its opening took."""

    signature: Signature
    golden: Golden
    plan: Plan
    watch: RunWatch
    bytes: int
    seconds: float


def open_model(
    source: ModelSource, provider: Provider, watch: RunWatch, executor: ThreadPoolExecutor, cores: int, budget: int
) -> Opened:
    """Load, prove, warm, plan and measure; in a thread, one model at a time. `budget` is in bytes, 0: none.

    `bytes` is by how much the process grew in RAM, after free memory was given back, and at least the size of the
    files. What requests allocate or free meanwhile is in it: megabytes, more where bodies are large. Memory of a GPU is
    seen only as the size of the files. The work memory of the largest batch is in it, and given back after that.

    Corrupt: a file is missing, cannot be read or does not fit the signature. ParityFailed: the golden rows give another
    answer here.
    """
    begun = time.perf_counter()
    trim()
    before = resident_bytes()
    signature = _read_signature(source.folder / SIGNATURE)
    golden = read_golden(source.folder / GOLDEN, signature)

    sessions: list[Session] = []

    def session(threads: int, ready: Path | None = None) -> Session:
        made = Session(ready or source.onnx, signature, threads, provider, watch, packed=ready is not None)
        prove(golden, made.run, exact=source.exact)
        sessions.append(made)
        return made

    def wide(ready: Path | None = None) -> Session:
        # ONNX Runtime starts the threads of its runs here: in a lane, which has the priority that they need.
        return executor.submit(session, cores, ready).result()

    plan = choose(session(1).run, lambda: wide().run, golden, limits_of(source, signature), executor, cores)
    twice = 0  # bytes that are in memory once and counted twice
    if plan.alone is not None and can_pack(source.file_bytes, provider):
        plan = replace(plan, run=_closed, alone=_closed)
        sessions.clear()  # they are opened anew, and all of them at once would take many times the model's size
        plan, twice = _sharing(plan, source, provider, session, wide)
        warm(plan.run, golden, limits_of(source, signature))
    sessions = [made for made in sessions if made.run in (plan.run, plan.alone)]
    size = max(_grown(before, source) - twice, source.file_bytes)
    if 0 < budget < size and plan.alone is not None:  # the second session is for speed alone
        plan = replace(plan, alone=None)
        sessions = [made for made in sessions if made.run == plan.run]
        size = _grown(before, source)
    for made in sessions:  # what the largest batches of the warm-up took, until such a batch comes
        made.shrink(golden.rows(1))
    trim()
    return Opened(signature, golden, plan, watch, size, time.perf_counter() - begun)


def _sharing(
    plan: Plan,
    source: ModelSource,
    provider: Provider,
    narrow: Callable[[int, Path | None], Session],
    wide: Callable[[Path | None], Session],
) -> tuple[Plan, int]:
    """The same with sessions that share their weights, and the bytes of these; each with its own if that cannot be."""
    trim()
    try:
        with packed(source.onnx, provider) as (ready, size):
            return replace(plan, run=narrow(1, ready).run, alone=wide(ready).run), size
    except Exception as error:  # noqa: BLE001 - whatever is in the way of it, the model could be opened before
        log.info("endpoint=%s %s has its weights in memory twice: %s", source.endpoint, source, error)
        return replace(plan, run=narrow(1, None).run, alone=wide(None).run), 0


def _grown(before: int, source: ModelSource) -> int:
    trim()
    return max(resident_bytes() - before, source.file_bytes)


@dataclass(frozen=True, slots=True)
class About:
    """What can be told of a model, whether it is in memory or sleeps; `bytes` is what it takes there now."""

    source: ModelSource
    signature: Signature
    limits: Batching
    metrics: ModelMetrics
    oip: OipCodec
    bytes: int

    @property
    def version(self) -> str:
        """As the protocols name it."""
        return str(self.source.version)


class Waiting(Protocol):
    """Where requests waited for the model to be loaded."""

    waiting: int


class ServedModel:
    """One model version that can answer. Use it inside `with`, which keeps it from being closed."""

    def __init__(
        self,
        source: ModelSource,
        opened: Opened,
        executor: ThreadPoolExecutor,
        metrics: ModelMetrics,
        image_megapixels: float,
    ) -> None:
        self.source = source
        self.signature = signature = opened.signature
        self.plan = opened.plan
        self.watch = opened.watch
        self.bytes, self.load_s = opened.bytes, opened.seconds
        self.metrics = metrics
        self.limits = limits_of(source, signature)
        self.version = str(source.version)
        self.identity = orjson.dumps({"model": source.model, "version": source.version, "variant": source.variant})[
            1:-1
        ]
        limit = RowLimit(self.limits.max_queue, metrics.rejected)
        self.instances: InstanceDecoder = instance_decoder(signature, limit, image_megapixels)
        self.predictions: PredictionEncoder = prediction_encoder(signature)
        self.v1_predictions: PredictionEncoder = v1_encoder(signature)
        self.oip = OipCodec(source.endpoint, signature, self.limits.max_queue, metrics.rejected, self.limits.max_answer)
        self.about = About(source, signature, self.limits, metrics, self.oip, self.bytes)
        self.woken: Waiting | None = None  # who waited for it may not have got it yet
        self.failures = 0  # as of its Sleeper: for how long it would be out of service
        self.since = time.perf_counter()  # in memory
        self.touched = True  # by a caller, since `app.serving.residency` last looked
        self._golden = opened.golden
        self._batcher: Batcher | None = Batcher(self.plan, self.limits, metrics, executor)
        self._batcher.leave_loop = self._runs_long
        self._batcher.step_aside = self._step_aside
        self._aside: ThreadPoolExecutor | None = None
        self._cache: AnswerCache | None = None
        if self.limits.cache_bytes:
            self._cache = AnswerCache(self.identity, self._batcher.infer, self.limits.cache_bytes, metrics)
        self.prompt = self._answers_at_once()
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def __enter__(self) -> Self:
        self.touched = True
        if not self._users:
            self._unused.clear()
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    @property
    def idle(self) -> bool:
        """True while nobody uses it, or is about to."""
        return not self._users and not (self.woken and self.woken.waiting)

    def infer(self, inputs: Tensors, rows: int, deadline: float = math.inf, priority: int = 0) -> Awaitable[Answer]:
        """Answer `rows` rows of tensors in the signature's order.

        `deadline` is on `time.perf_counter`'s clock; `priority` 1 goes first, 0 is the default.
        """
        if self._cache is None:
            return self._queue().infer(inputs, rows, deadline, priority or DEFAULT_PRIORITY)
        self._queue().check_abandoned()  # what it has kept may be wrong too
        return self._cache.infer(inputs, rows, deadline, priority or DEFAULT_PRIORITY)

    def check_room(self, deadline: float = math.inf, priority: int = 0) -> None:
        """Raise what `infer` would if it cannot take even one row now, to be asked before a request is read.

        Nothing where answers are kept: the request may ask for one of those, which takes no place in the queue.
        """
        if self._cache is None:
            self._queue().check_room(deadline, priority or DEFAULT_PRIORITY)

    async def prove(self) -> None:
        """Answer the golden rows through the queue of callers, past its bounds and the cache.

        The errors of `check` and of a run.
        """
        with self._held():
            rows = len(self._golden.inputs[0]) if self.signature.batched else 1
            answer = await self._queue().prove(self._golden.inputs, rows)
            check(self._golden, answer.outputs, exact=self.source.exact)

    def leave_loop(self) -> None:
        """Run in a lane from now on: one run on the event loop had to be ended, or a few took long."""
        self.plan = replace(self.plan, inline=False)
        self.prompt = self._answers_at_once()
        if self._batcher is not None:
            self._batcher.replan(self.plan)

    def _runs_long(self) -> None:
        log.warning("endpoint=%s is too slow for the event loop: it runs in a lane from now on", self.source.endpoint)
        self.leave_loop()

    def _step_aside(self) -> ThreadPoolExecutor:
        """A lane of its own, beside the others: a run had to be ended, and such runs must not take every lane."""
        log.warning("endpoint=%s a run had to be ended: it runs in a lane of its own from now on", self.source.endpoint)
        self._aside = open_lanes(1)
        self.plan = replace(self.plan, inline=False, lanes=1, alone=None)
        self.prompt = self._answers_at_once()
        if self._batcher is not None:
            self._batcher.replan(self.plan)
        return self._aside

    def abandon(self, error: AimassError) -> None:
        """Answer everybody who waits with the error, those whose run hangs too, and whoever asks from now on."""
        if self._batcher is not None:
            self._batcher.abandon(error)

    async def unused(self) -> None:
        """Return once nobody uses the model."""
        await self._unused.wait()

    async def drained(self) -> None:
        """Return once nobody uses the model, with its session freed and the memory given back."""
        await self._unused.wait()
        held: list[object] = [self._batcher, self._cache, self.plan]
        # Loaded models are frozen out of the garbage collector: only counting frees them.
        self._batcher = self._cache = None
        self.plan = Plan(_closed)
        if self._aside is not None:
            self._aside.shutdown(wait=False)
        await asyncio.to_thread(_free, held, self.watch)

    def _answers_at_once(self) -> bool:
        """True if an answer comes before its caller could leave: no lane, no delay, and nobody else's run to wait for.

        Kept as `prompt`, since each request asks.
        """
        return self.plan.inline and not self.limits.max_delay_ms and self._cache is None

    def _queue(self) -> Batcher:
        if self._batcher is None:
            raise Unavailable(
                f"version {self.source.version} of '{self.source.model}' was unloaded", retry_after_s=RETRY_S
            )
        return self._batcher

    @contextmanager
    def _held(self) -> Iterator[None]:
        """In use, but not by a caller."""
        touched = self.touched
        with self:
            self.touched = touched
            yield


def limits_of(source: ModelSource, signature: Signature) -> Batching:
    """The endpoint's limits, as the model can keep them: one that does not batch runs one request at a time."""
    if not signature.batched:
        return replace(source.batching, max_batch=1)
    return replace(source.batching, shapes_vary=any(-1 in tensor.shape[1:] for tensor in signature.inputs))


def _read_signature(path: Path) -> Signature:
    try:
        return Signature.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Corrupt(f"signature.json cannot be read: {error!r}") from error


def _free(held: list[object], watch: RunWatch) -> None:
    """Let go of the last references in a thread: to free a large model takes milliseconds, and so does `trim`."""
    held.clear()
    end = time.perf_counter() + _FREE_S
    while not watch.freed() and time.perf_counter() < end:
        time.sleep(_PAUSE_S)
    trim()


def _closed(_: Tensors) -> Tensors:
    raise Unavailable("the model was unloaded", retry_after_s=RETRY_S)
