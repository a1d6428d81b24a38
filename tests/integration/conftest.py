"""The ports of one process over real, empty ones."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.queue.memory import MemoryWake
from app.registry.session import Database
from app.services.platform import Platform
from app.settings import Settings
from app.store.local import LocalStore
from tests.support.databases import sqlite_registry


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    url = await asyncio.to_thread(sqlite_registry, tmp_path)
    made = Platform(Settings(data_dir=tmp_path), Database(url), MemoryWake(), LocalStore(tmp_path / "store"))
    yield made
    await made.close()
