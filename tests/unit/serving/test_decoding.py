"""Large bodies and pictures are decoded in turn, counted among the bodies, and only for who still waits."""

import asyncio
import base64
import gzip
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.core.errors import InvalidTensor
from app.gateway.app import create_app
from app.gateway.predict import bodies as bodies_module
from app.gateway.predict import decoding, encodings
from app.gateway.predict.bodies import Bodies
from app.gateway.predict.dispatcher import Dispatcher
from app.serving.host import Host, ModelSource
from app.settings import LimitSettings, ServingSettings, Settings
from tests.support.repository import HostRepository
from tests.support.serving import GOOD, INFER, PREDICT, Keys, body, infer, inner

MIB = 1 << 20
V1 = "/v1/models/churn:predict"
PICTURES = "/api/v1/endpoints/bright/predict"
LARGE = b" " * (MIB + 1)  # of JSON, before what it says


class Pictures:
    """A decoder that decodes a picture of `size` bytes whenever the test lets it."""

    inline_bytes = 0
    pictures = True

    def __init__(self, real: Any, size: int = 10 * MIB, count: int = 1) -> None:
        self._real = real
        self._size = size
        self._count = count
        self.at, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.begun = 0
        self.ended: list[BaseException] = []

    def __call__(self, raw: bytes, before: Callable[[int], None]) -> Any:
        try:
            for _ in range(self._count):
                before(self._size)
                self.begun += 1
                self.at.release()
                assert self.go.acquire(timeout=20)
        except BaseException as error:
            self.ended.append(error)
            self.at.release()
            raise
        return self._real(raw)

    async def decodes(self) -> None:
        """Return once one more picture is being decoded, or the decoding of a body has ended."""
        assert await asyncio.to_thread(self.at.acquire, timeout=20)


def picture(size: tuple[int, int] = (3, 2)) -> str:
    raw = io.BytesIO()
    Image.new("1", size, 1).save(raw, "PNG")
    return base64.b64encode(raw.getvalue()).decode()


@pytest.fixture
def budget() -> Bodies:
    return Bodies(64 * MIB)


@pytest.fixture
def ask(host: Host, budget: Bodies, asgi: Callable[[Any], Any]) -> Any:
    return asgi(Dispatcher(inner, host, Keys(), HostRepository(host), ServingSettings(max_body_mb=8), bodies=budget))


@pytest.fixture
def decoder(host: Host) -> Callable[..., Pictures]:
    def put(**more: int) -> Pictures:
        served = host.lookup("bright")
        served.instances = made = Pictures(served.instances, **more)  # type: ignore[assignment] # enough of one
        return made

    return put


@contextmanager
def busy(executor: ThreadPoolExecutor) -> Iterator[None]:
    """All threads of an executor work for somebody else."""
    done = threading.Event()
    for _ in range(executor._max_workers):
        executor.submit(done.wait, 20)
    try:
        yield
    finally:
        done.set()


async def nothing_held(budget: Bodies) -> bool:
    """True once threads that nobody waits for have ended."""
    for _ in range(200):
        if not budget.held:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_picture_counts_while_it_is_decoded(ask: Any, budget: Bodies, decoder: Callable[..., Pictures]):
    pictures = decoder(count=2)
    asked = asyncio.create_task(ask("POST", PICTURES, body(picture())))
    held = []
    for _ in range(2):
        await pictures.decodes()
        held.append(budget.held // MIB)
        pictures.go.release()
    assert ((await asked).status, held, budget.held) == (200, [10, 10], 0)


async def test_without_room_for_a_picture_a_request_is_refused_unless_it_is_alone(
    ask: Any, budget: Bodies, decoder: Callable[..., Pictures]
):
    pictures = decoder(size=65 * MIB)
    alone = asyncio.create_task(ask("POST", PICTURES, body(picture())))
    await pictures.decodes()
    refused = await ask("POST", PICTURES, body(picture()))
    assert (refused.status, refused.headers["retry-after"], pictures.begun) == (429, "1", 1)
    assert "AIMASS_LIMIT_BODIES_MB" in refused.json()["detail"]
    pictures.go.release()
    assert ((await alone).status, budget.held) == (200, 0)


async def test_two_requests_decode_pictures_and_others_wait(ask: Any, decoder: Callable[..., Pictures]):
    pictures = decoder(size=MIB)
    asked = [asyncio.create_task(ask("POST", PICTURES, body(picture()))) for _ in range(4)]
    await pictures.decodes()
    await pictures.decodes()
    quick = [await ask("POST", path, raw) for path, raw in ((PREDICT, body(*[GOOD] * 300)), (INFER, infer()))]
    assert ([reply.status for reply in quick], pictures.begun) == ([200, 200], 2)
    for _ in asked:
        pictures.go.release()
    assert [(await one).status for one in asked] == [200] * 4


async def test_between_two_pictures_the_deadline_is_looked_at(
    ask: Any, budget: Bodies, decoder: Callable[..., Pictures]
):
    pictures = decoder(count=6)
    late = await ask("POST", PICTURES, body(picture()), {"x-request-timeout-ms": "500"})
    assert (late.status, pictures.begun) == (504, 1)
    pictures.go.release()
    assert await nothing_held(budget)
    assert (pictures.begun, [type(error).__name__ for error in pictures.ended]) == (1, ["DeadlineExceeded"])


async def test_between_two_pictures_it_is_seen_that_the_caller_has_gone(
    ask: Any, host: Host, budget: Bodies, decoder: Callable[..., Pictures]
):
    pictures, leave = decoder(count=6), asyncio.Event()
    asked = asyncio.create_task(ask("POST", PICTURES, body(picture()), leave=leave))
    await pictures.decodes()
    leave.set()
    assert (await asked).status == 0
    pictures.go.release()
    assert await nothing_held(budget)
    assert (pictures.begun, [type(error).__name__ for error in pictures.ended]) == (1, ["ClientGone"])
    assert host.lookup("bright").metrics.statuses == {499: 1}


@pytest.mark.parametrize(("path", "raw"), [(PREDICT, body(GOOD)), (V1, body(GOOD)), (INFER, infer())])
async def test_large_json_is_decoded_in_turn(ask: Any, budget: Bodies, path: str, raw: bytes):
    with busy(decoding._json):
        late = await ask("POST", path, LARGE + raw, {"x-request-timeout-ms": "20"})
        waits = asyncio.create_task(ask("POST", path, LARGE + raw))
        small = await ask("POST", path, LARGE[: MIB // 2] + raw)
        assert (late.status, small.status, waits.done()) == (504, 200, False)
    assert ((await waits).status, budget.held) == (200, 0)


class Looking:
    """A decoder that notes what is held while it decodes."""

    inline_bytes = 0
    pictures = False

    def __init__(self, real: Callable[..., Any], budget: Bodies) -> None:
        self._real = real
        self._budget = budget
        self.held: list[int] = []

    def __call__(self, raw: bytes, *more: Any) -> Any:
        self.held.append(self._budget.held)
        return self._real(raw, *more)


@pytest.mark.parametrize(("path", "raw"), [(PREDICT, body(GOOD)), (V1, body(GOOD)), (INFER, infer())])
async def test_what_decoding_takes_counts_among_the_bodies(ask: Any, host: Host, budget: Bodies, path: str, raw: bytes):
    served = host.lookup("churn")
    looking = Looking(served.oip.decode if path == INFER else served.instances, budget)
    if path == INFER:
        served.oip.decode = looking  # type: ignore[method-assign, assignment]
    else:
        served.instances = looking  # type: ignore[assignment]
    sent = LARGE + raw
    assert (await ask("POST", path, sent)).status == 200
    memory = decoding._BYTE * len(sent) + decoding._VALUE * sent.count(b",")
    assert (looking.held, budget.held) == ([len(sent) + memory], 0)


async def test_a_body_that_takes_more_than_the_budget_is_decoded_all_the_same(ask: Any, budget: Bodies):
    budget.most = 2 * MIB
    assert (await ask("POST", PREDICT, LARGE + body(GOOD))).status == 200
    assert budget.held == 0


@pytest.mark.parametrize(
    ("path", "raw"), [(PREDICT, LARGE + body(GOOD)), (INFER, LARGE + infer()), (PICTURES, body(picture((600, 500))))]
)
async def test_memory_is_given_back_once_nothing_is_held(
    ask: Any, budget: Bodies, monkeypatch: pytest.MonkeyPatch, path: str, raw: bytes
):
    loop, trimmed = asyncio.get_running_loop(), asyncio.Event()
    monkeypatch.setattr(bodies_module, "trim", lambda: loop.call_soon_threadsafe(trimmed.set))
    monkeypatch.setattr(bodies_module, "_QUIET_S", 0.001)
    other = budget.grow(0, MIB)
    assert (await ask("POST", path, raw)).status == 200
    await asyncio.sleep(0.05)
    assert not trimmed.is_set()
    budget.give_back(other)
    await asyncio.wait_for(trimmed.wait(), 20)
    trimmed.clear()
    assert (await ask("POST", PREDICT, body(*[GOOD] * 300))).status == 200
    await asyncio.sleep(0.05)
    assert not trimmed.is_set()  # after something small


async def test_two_bodies_are_unpacked_at_once(ask: Any, monkeypatch: pytest.MonkeyPatch):
    packed, at, go = gzip.compress(LARGE + body(GOOD)), threading.Semaphore(0), threading.Semaphore(0)
    begun: list[int] = []
    real = encodings._unpack

    def unpack(*given: Any) -> bytes:
        begun.append(1)
        at.release()
        assert go.acquire(timeout=20)
        return real(*given)

    monkeypatch.setattr(encodings, "_unpack", unpack)
    asked = [asyncio.create_task(ask("POST", PREDICT, packed, {"content-encoding": "gzip"})) for _ in range(4)]
    for _ in range(2):
        assert await asyncio.to_thread(at.acquire, timeout=20)
    await asyncio.sleep(0.05)
    assert len(begun) == 2
    for _ in asked:
        go.release()
    assert [(await one).status for one in asked] == [200] * 4


@pytest.fixture
async def serve(source: Callable[..., ModelSource], picture_folder: Path, asgi: Any) -> AsyncIterator[Any]:
    """The model of pictures where they may have so many megapixels."""
    hosts: list[Host] = []

    async def made(megapixels: float) -> Any:
        hosts.append(host := Host(ServingSettings(threads=1), image_megapixels=megapixels))
        await host.swap(await host.load(source(picture_folder, endpoint="bright", version=1)))
        return asgi(Dispatcher(inner, host, Keys(), HostRepository(host), ServingSettings()))

    yield made
    for host in hosts:
        await host.close()


async def test_the_setting_bounds_pictures_in_requests(serve: Any):
    small, large = body(picture((110, 100))), body(picture((8000, 6500)))
    refused = await (await serve(0.01))("POST", PICTURES, small)
    assert (refused.status, refused.json()["errors"][0]["loc"]) == (422, ["instances", 0])
    assert "at most 0.01 megapixels are taken (AIMASS_LIMIT_IMAGE_MEGAPIXELS)" in refused.json()["detail"]
    raised = await serve(60.0)
    assert (await raised("POST", PICTURES, large)).json()["predictions"] == [{"value": 255.0}]
    usual = await serve(50.0)
    assert ((await usual("POST", PICTURES, small)).status, (await usual("POST", PICTURES, large)).status) == (200, 422)


async def test_the_gateway_has_it_from_its_settings(
    source: Callable[..., ModelSource], picture_folder: Path, tmp_path: Path
):
    app, _ = create_app(Settings(data_dir=tmp_path, limit=LimitSettings(image_megapixels=0.01)))
    served = await app._host.load(source(picture_folder, endpoint="bright"))
    with pytest.raises(InvalidTensor, match=r"at most 0\.01 megapixels"):
        served.instances(body(picture((110, 100))))
    app._host.discard(served)
    await app._host.close()
