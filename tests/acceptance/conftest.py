"""What the acceptance tests share: strict JSON."""

import json
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def strict() -> Callable[[bytes], Any]:
    """Parse JSON as the standard has it: no NaN, no Infinity."""

    def parse(content: bytes) -> Any:
        return json.loads(content, parse_constant=pytest.fail)

    return parse
