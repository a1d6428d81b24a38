"""Implementations of each port."""

from collections.abc import AsyncIterator

import pytest

from app.registry.session import Database
from tests.support.databases import postgres_registry, sqlite_registry


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        return sqlite_registry(tmp_path_factory.mktemp("registry"))
    return postgres_registry(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def database(registry_url: str) -> AsyncIterator[Database]:
    database = Database(registry_url)
    yield database
    await database.close()
