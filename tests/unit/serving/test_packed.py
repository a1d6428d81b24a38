"""Two sessions of one model have its weights in memory once."""

import gc
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
import pytest

from app.serving import served
from app.serving.packed import can_pack, packed
from app.serving.process_memory import trim
from app.serving.provider import Provider
from app.serving.runs import RunWatch
from app.serving.served import Opened, open_model
from app.serving.types import Plan
from tests.support.graphs import heavy, source

MIB = 24
ROW = (np.arange(512, dtype=np.float32) % 7)[None]


def in_memory() -> int:
    """Bytes of this process, pages that are mapped twice counted once."""
    gc.collect()
    trim()
    return int(psutil.Process().memory_full_info().pss)


def pair(onnx: Path, provider: Provider, **options: Any) -> list[ort.InferenceSession]:
    """Sessions of one thread and of two, that have answered."""
    made = [
        ort.InferenceSession(str(onnx), provider.session_options(threads, **options), providers=provider.chain)
        for threads in (1, 2)
    ]
    answers = [session.run(None, {"x": ROW})[0] for session in made]
    assert np.array_equal(*answers)
    return made


def test_sessions_of_a_packed_model_share_its_weights(tmp_path: Path):
    onnx, provider = heavy(tmp_path, MIB) / "model.onnx", Provider()
    before = in_memory()
    plain = pair(onnx, provider)
    twice = in_memory() - before
    expected = plain[0].run(None, {"x": ROW})[0]
    del plain
    before = in_memory()
    with packed(onnx, provider) as (ready, size):
        sharing = pair(ready, provider, packed=True)
        folder = ready.parent
    assert not folder.exists()
    assert size > MIB << 20
    assert np.array_equal(sharing[0].run(None, {"x": ROW})[0], expected)
    assert in_memory() - before < 0.7 * twice


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """All cores pay for one row, whatever is measured; the folder of temporary files."""
    monkeypatch.setattr(
        served,
        "choose",
        lambda narrow, open_wide, *_: Plan(narrow, lanes=2, alone=open_wide(), costs={1: 1e-3}),
    )
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def opened(folder: Path, mib: float, provider: Provider | None = None) -> Opened:
    with ThreadPoolExecutor(1) as executor:
        return open_model(
            source(heavy(folder / "model", mib), "m"), provider or Provider(), RunWatch(30.0, 0), executor, 2, 0
        )


def test_a_model_that_is_worth_two_sessions_is_counted_once(both: Path, tmp_path: Path):
    found = opened(tmp_path, MIB)
    assert found.plan.alone is not None
    assert np.array_equal(found.plan.run((ROW,))[0], found.plan.alone((ROW,))[0])
    assert MIB << 20 <= found.bytes < 1.6 * (MIB << 20)
    assert not list(both.iterdir())


def test_where_there_is_no_room_for_it_both_have_their_own(
    both: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    both.rmdir()
    caplog.set_level("INFO")
    found = opened(tmp_path, MIB)
    assert found.plan.alone is not None
    assert np.array_equal(found.plan.run((ROW,))[0], found.plan.alone((ROW,))[0])
    assert "has its weights in memory twice: " in caplog.text


def test_small_models_and_those_of_a_gpu_are_not_packed():
    assert can_pack(5 << 20, Provider())
    assert not can_pack(1 << 20, Provider())
    assert not can_pack(3 << 30, Provider())
    assert not can_pack(5 << 20, Provider([("CUDAExecutionProvider", {}), "CPUExecutionProvider"]))
