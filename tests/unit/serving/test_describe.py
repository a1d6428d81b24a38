"""What a model says of itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.serving.describe import configuration
from app.serving.host import Batching, Host
from app.settings import ServingSettings


@pytest.mark.parametrize(("limits", "most"), [(Batching(8, 64), 8), (Batching(64, 8), 8)])
async def test_no_larger_batch_is_promised_than_is_taken(
    source: Callable[..., Any], table_folder: Path, limits: Batching, most: int
):
    host = Host(ServingSettings(threads=1))
    await host.swap(await host.load(source(table_folder, batching=limits)))
    try:
        assert configuration(host.about("churn", None))["max_batch_size"] == most
    finally:
        await host.close()
