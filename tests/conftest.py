"""Fixtures that every storey shares: private real servers, and shared data where it is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import PostgresServer, ValkeyServer

_PLATFORM = "trained"  # the fixture that takes a minute: its tests stay in one process, where several share the work
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: the tests of a file stay together, and all that ask for the trained platform do."""
    for item in items:
        asked = getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group(_PLATFORM if _PLATFORM in asked else item.path.stem))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; the test is skipped where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server: AIMASS_TEST_DATABASE_URL, else a private one; databases are made in it."""
    given = os.environ.get("AIMASS_TEST_DATABASE_URL")
    if given:
        yield given
        return
    with PostgresServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis or Valkey server: AIMASS_TEST_REDIS_URL, else a private one."""
    given = os.environ.get("AIMASS_TEST_REDIS_URL")
    if given:
        yield given
        return
    with ValkeyServer() as server:
        yield server.url
