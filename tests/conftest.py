"""Fixtures that every storey shares: private real servers, and shared data where it is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import PostgresServer, ValkeyServer

SHARED = Path(__file__).resolve().parents[2] / "shared"


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
