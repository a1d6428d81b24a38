"""Loading, proving, swapping and draining real ONNX models."""

import asyncio
import gc
import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from app.core.errors import Corrupt, NotFound, ParityFailed, Unavailable
from app.serving.host import Batching, Host, ModelSource
from app.serving.plan import buckets
from app.settings import ServingSettings
from app.telemetry.metrics import ServingMetrics

Source = Callable[..., ModelSource]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def host(registry: CollectorRegistry):
    host = Host(ServingSettings(threads=2), ServingMetrics(registry))
    yield host
    await host.close()


def numbers(age: float) -> tuple[Any, Any]:
    return np.array([[age, 0, 0]], np.float32), np.array([[""]], object)


async def test_a_loaded_model_answers_only_after_the_swap(host: Host, source: Source, table_folder: Path):
    served = await host.load(source(table_folder))
    assert (host.get("churn"), host.ready(), host.models()) == (None, False, [])
    await host.swap(served)
    assert (host.get("churn"), host.ready(), host.models()) == (served, True, [served])
    assert (host.get("churn", "3"), host.get("churn", "4"), host.get("other", "3")) == (served, None, None)
    with host.lookup("churn") as model:
        answer = await model.infer(numbers(100), 1)
    np.testing.assert_allclose(answer.outputs[0], [[0.9, 0.1]], rtol=1e-6)
    assert min(answer.queue_s, answer.batch_s, answer.compute_s) >= 0


async def test_unknown_and_not_loaded_are_different(host: Host):
    with pytest.raises(NotFound, match="Request for unknown model: 'churn' is not found"):
        host.lookup("churn")
    host.expect(["churn"])
    with pytest.raises(Unavailable) as later:
        host.lookup("churn")
    assert later.value.retry_after_s == 2.0


async def test_why_a_model_could_not_be_loaded_is_told_until_one_is(host: Host, source: Source, table_folder: Path):
    host.expect(["churn"])
    host.explain("churn", "needs 94 MiB of the 90 MiB")
    with pytest.raises(Unavailable, match="'churn' could not be loaded: needs 94 MiB of the 90 MiB") as told:
        host.lookup("churn")
    assert told.value.retry_after_s == 2.0
    await host.swap(await host.load(source(table_folder)))
    await host.remove("churn")  # unloaded
    with pytest.raises(Unavailable, match="was unloaded"):
        host.lookup("churn")


async def test_while_models_are_loaded_at_the_start_the_host_is_not_ready(
    host: Host, source: Source, table_folder: Path
):
    host.starting = True
    await host.swap(await host.load(source(table_folder)))
    assert (host.ready(), host.get("churn") is not None) == (False, True)
    host.starting = False
    assert host.ready()


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to / "copy")
    return to / "copy"


@pytest.mark.parametrize("missing", ["signature.json", "golden.json", "model.onnx"])
async def test_a_missing_file_is_named(host: Host, source: Source, table_folder: Path, tmp_path: Path, missing: str):
    folder = copy(table_folder, tmp_path)
    (folder / missing).unlink()
    with pytest.raises(Corrupt, match=missing):
        await host.load(source(folder))


@pytest.mark.parametrize("file", ["signature.json", "golden.json", "model.onnx"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00" * 100])
async def test_a_broken_file_is_named(
    host: Host, source: Source, table_folder: Path, tmp_path: Path, file: str, content: bytes
):
    folder = copy(table_folder, tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(Corrupt, match=file):
        await host.load(source(folder))


def edit(folder: Path, file: str, change: Callable[[Any], None]) -> None:
    raw = json.loads((folder / file).read_text())
    change(raw)
    (folder / file).write_text(json.dumps(raw))


async def test_another_answer_on_the_golden_rows_is_refused(
    host: Host, source: Source, table_folder: Path, tmp_path: Path
):
    folder = copy(table_folder, tmp_path)
    edit(folder, "golden.json", lambda raw: raw["outputs"]["probabilities"]["data"].__setitem__(3, 0.05))
    with pytest.raises(ParityFailed, match=r"by up to 0\.01"):
        await host.load(source(folder))
    await host.load(source(folder, variant="int8"))  # a variant may differ from fp32; its budget was checked before


async def test_a_variant_must_still_be_finite(host: Host, source: Source, picture_folder: Path, tmp_path: Path):
    folder = copy(picture_folder, tmp_path)
    edit(folder, "golden.json", lambda raw: raw["outputs"]["value"].update(shape=[2], data=[1, 2]))
    with pytest.raises(Corrupt, match="the same number of rows"):
        await host.load(source(folder, variant="int8"))


async def test_a_signature_of_another_graph_is_refused(host: Host, source: Source, table_folder: Path, tmp_path: Path):
    folder = copy(table_folder, tmp_path)
    edit(folder, "signature.json", lambda raw: raw["inputs"][0].update(datatype="FP64"))
    edit(folder, "golden.json", lambda raw: raw["inputs"]["numeric"].update(datatype="FP64"))
    with pytest.raises(Corrupt, match=r"declares input 'numeric' as FP64, model\.onnx has FP32"):
        await host.load(source(folder))


async def test_a_swap_lets_the_old_model_finish_and_then_frees_it(host: Host, source: Source, table_folder: Path):
    await host.swap(await host.load(source(table_folder, version=1)))
    old = host.get("churn")
    assert old is not None
    with old:
        await host.swap(await host.load(source(table_folder, version=2)))
        await asyncio.sleep(0.01)
        answer = await old.infer(numbers(200), 1)
        np.testing.assert_allclose(answer.outputs[0], [[0.8, 0.2]], rtol=1e-6)
    await asyncio.gather(*host._draining)
    with pytest.raises(Unavailable):
        await old.infer(numbers(200), 1)
    new = host.get("churn")
    assert new is not None
    assert new.version == "2"
    assert (await new.infer(numbers(200), 1)).outputs[0].shape == (1, 2)


async def test_an_unloaded_model_is_freed_without_the_garbage_collector(host: Host, source: Source, table_folder: Path):
    await host.swap(await host.load(source(table_folder)))
    served = host.get("churn")
    assert served is not None
    with served:
        await served.infer(numbers(1), 1)
    session = weakref.ref(served.plan.run.__self__)  # type: ignore[attr-defined]
    gc.disable()
    try:
        await host.remove("churn")
        await asyncio.gather(*host._draining)
        for _ in range(200):  # a lane's thread lets go of its last job a moment after the answer
            if session() is None:
                break
            await asyncio.sleep(0.01)
        assert session() is None
    finally:
        gc.enable()


async def test_requests_during_swaps_all_get_answers(host: Host, source: Source, table_folder: Path):
    await host.swap(await host.load(source(table_folder, version=1)))
    done = asyncio.Event()

    async def caller(age: int) -> int:
        count = 0
        while not done.is_set():
            with host.lookup("churn") as served:
                answer = await served.infer(numbers(age), 1)
            np.testing.assert_allclose(answer.outputs[0], [[1 - age / 1000, age / 1000]], rtol=1e-5)
            count += 1
        return count

    callers = [asyncio.create_task(caller(age)) for age in range(10, 200, 10)]
    for version in range(2, 6):
        await host.swap(await host.load(source(table_folder, version=version)))
    done.set()
    assert min(await asyncio.gather(*callers)) > 0


async def test_metrics_follow_the_models(host: Host, source: Source, table_folder: Path, registry: CollectorRegistry):
    served = await host.load(source(table_folder))
    await host.swap(served)
    again = await host.load(source(table_folder, batching=Batching(4, 8)))  # the same version with other limits
    await host.swap(again)
    served.metrics.answered(1e-6, 1e-5, 1e-4, 1e-6, 2e-3, 1e-5)
    served.metrics.statuses[422] += 2
    with again:
        await again.infer((np.ones((3, 3), np.float32), np.full((3, 1), "red", object)), 3)
    text = generate_latest(registry).decode()
    model = 'endpoint="churn",model="telco"'
    labels = f'{model},variant="fp32",version="3"'
    compute = 'phase="compute",variant="fp32",version="3"'
    for line in (
        f'aimass_predict_requests_total{{{model},status="200",variant="fp32",version="3"}} 1.0',
        f'aimass_predict_requests_total{{{model},status="422",variant="fp32",version="3"}} 2.0',
        f'aimass_predict_phase_seconds_bucket{{endpoint="churn",le="0.001",model="telco",{compute}}} 0.0',
        f'aimass_predict_phase_seconds_bucket{{endpoint="churn",le="0.0025",model="telco",{compute}}} 1.0',
        f"aimass_predict_batch_rows_sum{{{labels}}} 3.0",
        f"aimass_predict_queue_rows{{{labels}}} 0.0",
        'aimass_serving_model_loaded{endpoint="churn",model="telco",variant="fp32",version="3"} 1.0',
    ):
        assert text.count(line + "\n") == 1, (line, text)
    await host.remove("churn")
    await asyncio.gather(*host._draining)
    text = generate_latest(registry).decode()
    assert f'aimass_predict_requests_total{{{model},status="422",variant="fp32",version="3"}} 2.0' in text
    assert "aimass_predict_queue_rows{" not in text
    assert "aimass_serving_model_loaded{" not in text
    third = await host.load(source(table_folder))
    await host.swap(third)
    assert third.metrics is served.metrics  # it counts on
    await host.remove("churn")
    host.expect([])  # deleted, and not yet freed
    await asyncio.gather(*host._draining)
    assert "churn" not in generate_latest(registry).decode()


def test_counters_of_the_newest_released_versions_stay_until_their_endpoint_goes(registry: CollectorRegistry):
    metrics = ServingMetrics(registry)

    def errors(endpoint: str) -> dict[str, str]:
        """Version → its count."""
        found = re.findall(
            rf'aimass_predict_requests_total{{endpoint="{endpoint}",.*version="(\d+)"}} (.*)',
            generate_latest(registry).decode(),
        )
        return dict(found)

    held = metrics.bind("a", "m", 1, "fp32")
    held.statuses[500] += 1
    for version in range(2, 16):
        counted = metrics.bind("a", "m", version, "fp32")
        counted.statuses[500] += 1
        metrics.release(counted)
    other = metrics.bind("b", "m", 1, "fp32")
    other.statuses[500] += 1
    metrics.release(other)
    assert errors("a") == {str(version): "1.0" for version in (1, *range(8, 16))}
    again = metrics.bind("a", "m", 8, "fp32")
    again.statuses[500] += 1
    metrics.release(again)  # the newest now
    assert errors("a")["8"] == "2.0"
    metrics.release(held)
    assert sorted(map(int, errors("a"))) == [1, 8, *range(10, 16)]
    metrics.keep_only(frozenset({"b"}))
    assert (errors("a"), errors("b")) == ({}, {"1": "1.0"})


def test_two_models_behind_an_endpoint_are_counted_apart(registry: CollectorRegistry):
    metrics = ServingMetrics(registry)
    first, second = (metrics.bind("a", model, 1, "fp32") for model in ("m", "n"))
    first.statuses[200] += 7
    assert not second.statuses
    text = generate_latest(registry).decode()
    assert 'aimass_predict_requests_total{endpoint="a",model="m",status="200",variant="fp32",version="1"} 7.0' in text
    assert 'aimass_predict_requests_total{endpoint="a",model="n"' not in text


def test_buckets_double_up_to_the_largest_batch():
    assert buckets(1) == [1]
    assert buckets(2) == [1, 2]
    assert buckets(48) == [1, 2, 4, 8, 16, 32, 48]
    assert buckets(64) == [1, 2, 4, 8, 16, 32, 64]
