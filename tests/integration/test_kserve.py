"""KServe's inference client, REST (V1 and V2) and gRPC, against a live server on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.oip import serve, sum_source

pytestmark = pytest.mark.enable_socket
ROOT = Path(__file__).parents[2]


def test_kserves_client_gets_what_it_asks_for(tmp_path: Path):
    with serve(sum_source(tmp_path)) as addresses:
        ran = subprocess.run(
            [sys.executable, "-m", "tests.support.kserve_client", addresses.http, addresses.grpc],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert ran.returncode == 0, ran.stderr
    answers = json.loads(ran.stdout)
    assert answers.pop("ready") == [True] * 4
    assert answers.pop("grpc ready") == [True] * 2
    assert answers.pop("grpc model ready") is True
    assert answers.pop("v1") == {"predictions": [{"value": 106.0}, {"value": 15.0}]}
    expected = ["r-1", [106.0, 15.0], ["red", "blue"]]
    assert answers == dict.fromkeys(
        ("rest binary=True", "rest binary=False", "grpc binary=True", "grpc binary=False"), expected
    )
