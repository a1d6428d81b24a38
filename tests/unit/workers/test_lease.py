"""Heartbeats while the registry does not answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import Unavailable
from app.settings import QueueSettings, Settings
from workers import lease
from workers.lease import Heartbeat


class Waits:
    """In place of the event that ends the heartbeat: no time passes, and how long it would have is kept."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.seen.append(seconds)
        return False


class Registry:
    """Answers or raises, one after the other; `hangs` is answered late."""

    patience_s = 0.0

    def __init__(self, *answers: str | Exception) -> None:
        self._answers = list(answers)

    async def heartbeat(self, *_: object) -> str:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer == "hangs":
            await asyncio.sleep(self.patience_s)
            return "held"
        return answer

    @asynccontextmanager
    async def write(self) -> AsyncIterator[None]:
        yield

    async def close(self) -> None:
        pass


async def beats(
    folder: Path, patch: pytest.MonkeyPatch, *answers: str | Exception, lease_s: float = 30.0
) -> tuple[list[float], list[str]]:
    """What was waited for before each beat, and what was told."""
    registry, told, waits = Registry(*answers), list[str](), Waits()
    patch.setattr(lease, "Database", lambda *_: registry)
    patch.setattr(lease, "SqlLedger", lambda _: registry)

    async def seen(*_: object) -> None:
        pass

    patch.setattr(lease, "seen", seen)
    heartbeat = Heartbeat(
        Settings(data_dir=folder, queue=QueueSettings(lease_s=lease_s)),
        "w",
        on_lost=lambda: told.append("lost"),
        on_cancel=lambda: told.append("cancel"),
        on_beat=lambda: told.append("beat"),
    )
    stop: Any = waits
    heartbeat._stop = stop
    await heartbeat._run("job", 1)
    return waits.seen, told


async def test_a_beat_that_failed_is_tried_again_every_second_until_one_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    away = Unavailable("the registry is away")
    waited, told = await beats(tmp_path, monkeypatch, "held", away, away, "held", "lost")
    assert waited == [10.0, 10.0, 1.0, 1.0, 10.0]
    assert told == ["beat", "beat", "beat", "beat", "lost"]


async def test_an_error_that_nobody_thought_of_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, told = await beats(tmp_path, monkeypatch, RuntimeError("unheard of"), "cancel", "lost")
    assert told == ["beat", "beat", "cancel", "lost"]


async def test_a_child_hears_of_its_agent_while_the_registry_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Registry, "patience_s", 0.5)
    _, told = await beats(tmp_path, monkeypatch, "hangs", "lost", lease_s=0.03)
    assert len(told) > 3
    assert set(told[:-1]) == {"beat"}
