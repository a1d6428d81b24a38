"""A platform with short leases, so that crashes are noticed within a test's patience."""

from collections.abc import Iterator

import pytest

from tests.support.file_server import FileServer
from tests.support.platform import Platform, breast_cancer_csv

SHORT = {
    "AIMASS_QUEUE_LEASE_S": "3",
    "AIMASS_QUEUE_RECONCILE_S": "0.5",
    "AIMASS_QUEUE_BACKOFF_S": "0.2",
    "AIMASS_QUEUE_REPUSH_S": "2",
}


@pytest.fixture(scope="module")
def files() -> Iterator[FileServer]:
    """What the platform may fetch from."""
    with FileServer(breast_cancer_csv()) as server:
        yield server


@pytest.fixture(scope="module")
def platform(files: FileServer) -> Iterator[Platform]:
    with Platform(**SHORT, AIMASS_SOURCES_ALLOW=f"{files.url}/") as running:
        assert running.upload("tumours", breast_cancer_csv())["state"] == "ready"
        yield running
