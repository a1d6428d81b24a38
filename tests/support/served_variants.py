"""What clients get from a variant, and whether it is what was said of it when it was measured."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from sklearn import metrics as sk

from app.core.resources import BASE_VARIANT
from app.core.version_folder import MODEL
from app.gateway.predict.dispatcher import Dispatcher
from app.serving.host import Batching, Host, ModelSource
from app.settings import ServingSettings
from app.specs.compression import CompressBudget
from tests.support.real_versions import RealVersion
from tests.support.repository import HostRepository
from tests.support.serving import Keys, inner
from workers.compression.measuring import Measuring
from workers.compression.recipes import Maker, Recipe
from workers.context import JobContext
from workers.evaluation.loss import Loss
from workers.evaluation.metrics import LOWER_IS_BETTER
from workers.jobs import compress
from workers.learning import Array

SIZES = (1, 2, 64, 5, 200, 17)  # rows of requests; those with more than MAX_BATCH are answered in parts
MAX_BATCH = 64  # the default of an endpoint
PARTS = {"validation": "decides", "test": "reports"}  # of the data set, and who judges by it
EXACT = 1e-6  # a float32 probability's last digit; in another batch its sums may be added in another order
_QUEUE = 4096
_ROOT = Path(__file__).resolve().parents[2]
_ELSEWHERE = """
import hashlib, json, sys
from pathlib import Path
from tests.support.real_versions import RealVersion
folder, version, data = map(Path, sys.argv[1:4])
makers = ((RealVersion(version, data).maker(folder / f"{at}"), one) for at, one in enumerate(json.loads(sys.argv[4])))
print(json.dumps([hashlib.sha256(maker.make(one)).hexdigest() for maker, one in makers]))
"""


@dataclass(frozen=True)
class Served:
    """What clients got for the rows of a part: predictions, and the probabilities or values in them."""

    predictions: list[Any]
    answers: Array


def served(
    version: RealVersion, raw: bytes, folder: Path, sizes: Sequence[int] = SIZES, max_batch: int = MAX_BATCH
) -> dict[str, Served]:
    """Answers by part, from a gateway's own code between a body and its answer, without the sockets.

    Args:
        version: whose variant it is.
        raw: its file; the full model's if it is that.
        folder: of the files that are served.
        sizes: rows of the requests, in turn; all are sent at once.
        max_batch: most rows of a run.
    """
    there = folder / "served"
    if not there.exists():
        shutil.copytree(version.folder, there, ignore=shutil.ignore_patterns("variants"))
    name = BASE_VARIANT if raw == version.model else "smaller"
    path = there / MODEL if name == BASE_VARIANT else there / "variants" / name / MODEL
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    source = ModelSource("real", "m", 1, name, there, path, Batching(max_batch, _QUEUE))
    rows = {part: version.instances(part) for part in PARTS}
    found = asyncio.run(_asked(source, rows, sizes))
    return {part: Served(predictions, _read(version, predictions)) for part, predictions in found.items()}


async def _asked(source: ModelSource, rows: dict[str, list[Any]], sizes: Sequence[int]) -> dict[str, list[Any]]:
    host = Host(ServingSettings(threads=1))
    try:
        await host.swap(await host.load(source))
        app = Dispatcher(inner, host, Keys(), HostRepository(host), ServingSettings())
        there = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=there, base_url="http://gateway", headers={"x-api-key": "good"}) as asks:
            return {part: await _predictions(asks, source, some, sizes) for part, some in rows.items()}
    finally:
        await host.close()


async def _predictions(
    client: httpx.AsyncClient, source: ModelSource, rows: list[Any], sizes: Sequence[int]
) -> list[Any]:
    async def ask(some: list[Any]) -> list[Any]:
        body = orjson.dumps({"instances": some})
        answer = await client.post(f"/api/v1/endpoints/{source.endpoint}/predict", content=body)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert told["variant"] == source.variant
        return list(told["predictions"])

    requests, at = [], 0
    for size in cycle(sizes):
        if at >= len(rows):
            break
        requests.append(rows[at : at + size])
        at += size
    return [one for some in await asyncio.gather(*map(ask, requests)) for one in some]


def _read(version: RealVersion, predictions: list[Any]) -> Array:
    judge = version.reports
    if version.mapping is not None:
        return judge.answering.read(np.array([one[judge.answering.output] for one in predictions], np.float32))
    if judge.task == "regression":
        return np.array([one["value"] for one in predictions])
    return np.array([[one["probabilities"][label] for label in version.labels] for one in predictions])


def by_hand(version: RealVersion, part: str, found: Served) -> dict[str, float]:
    """Metrics of what clients got and of what the data set says, without the code that the platform has for them."""
    truth = version.truth(part)
    if version.reports.task == "regression":
        return {"rmse": float(np.sqrt(np.mean((found.answers - np.array(truth)) ** 2)))}
    labels, names = [str(one) for one in truth], np.array(version.labels)
    told = [one["label"] for one in found.predictions] if version.mapping is None else None
    likeliest = names[found.answers.argmax(axis=1)].tolist()
    accuracy = float(np.mean([a == b for a, b in zip(told or likeliest, labels, strict=True)]))
    ranked = [1] if len(names) == 2 else range(len(names))  # of two classes one tells: the other's digits are cut
    areas = [sk.roc_auc_score([label == names[k] for label in labels], found.answers[:, k]) for k in ranked]
    return {"accuracy": accuracy, "roc_auc": float(np.mean(areas))}


def agree(found: Any, stored: Any) -> None:
    """Numbers, by name or alone, but for the last digits of the answers that they were made from."""
    assert found == pytest.approx(stored, rel=EXACT, abs=EXACT), f"{found} is not {stored}"


def check_numbers(version: RealVersion, raw: bytes, found: dict[str, Served]) -> None:
    """What clients got is what the file answers to the judges, and so are all metrics, and those made by hand."""
    for part, judge in PARTS.items():
        whose, got = getattr(version, judge), found[part]
        apart = np.abs(got.answers - whose.answers(raw)).max() / max(1.0, np.abs(whose.y).max())
        assert apart <= EXACT, f"answers to {part} rows differ by {apart}"
        stored, made = whose.metrics(raw), by_hand(version, part, got)
        agree(whose.score(got.answers), stored)
        agree(made, {name: stored[name] for name in made})


@dataclass(frozen=True)
class Bench:
    """A version, and what clients get from its full model, beside which its variants are set."""

    version: RealVersion
    folder: Path
    full: Served

    @classmethod
    def of(cls, version: RealVersion, folder: Path) -> "Bench":
        """With the full model's own numbers checked."""
        found = served(version, version.model, folder)
        check_numbers(version, version.model, found)
        return cls(version, folder, found["validation"])

    def makers(self, folder: Path, seed: int = 0) -> tuple[Maker, Maker]:
        """Of two jobs with the same seed."""
        return self.version.maker(folder / "once", seed), self.version.maker(folder / "again", seed)

    def made(self, recipe: Recipe, makers: tuple[Maker, Maker]) -> bytes:
        """The same file by both, which is not the full model's."""
        raw, again = (maker.make(recipe) for maker in makers)
        assert raw == again, f"another file each time: {len(raw)} and {len(again)} bytes"
        assert raw != self.version.model, "it changes nothing"
        return raw

    def check(self, recipe: Recipe, makers: tuple[Maker, Maker]) -> bytes:
        """Both make the same file, and clients get from it what is said of it."""
        raw = self.made(recipe, makers)
        found = served(self.version, raw, self.folder)
        check_numbers(self.version, raw, found)
        self.check_loss(self.measuring(makers[0]).loss(raw), found)
        return raw

    def check_whole_batches(
        self, recipe: Recipe, makers: tuple[Maker, Maker], rows: int, *, metrics: float, answers: float
    ) -> None:
        """As `check` where `rows` share a run as before the judge; smaller runs answer otherwise, by as much."""
        raw = self.made(recipe, makers)
        whole = served(self.version, raw, self.folder, sizes=(rows,), max_batch=1024)
        parts = served(self.version, raw, self.folder)
        check_numbers(self.version, raw, whole)
        self.check_loss(self.measuring(makers[0]).loss(raw), whole)
        for part, found in parts.items():
            one, other = (by_hand(self.version, part, side[part]) for side in (whole, parts))
            assert other == pytest.approx(one, abs=metrics)
            assert 0 < abs(found.answers - whole[part].answers).max() < answers

    def measuring(self, maker: Maker, allowed: float = 1.0) -> Measuring:
        """What says how much a file loses."""
        budget = CompressBudget(max_metric_drop=allowed)
        return Measuring(maker, self.version.decides, self.version.main_metric, budget)

    def check_loss(self, loss: Loss, found: dict[str, Served]) -> None:
        """It is what clients of a variant lose, beside those of the full model."""
        before, after = (by_hand(self.version, "validation", one) for one in (self.full, found["validation"]))
        lost = before[loss.metric] - after[loss.metric]
        if loss.metric in LOWER_IS_BETTER:
            lost /= -before[loss.metric]
        agree(lost, loss.measured)

    def check_jobs(self, folder: Path, **budget: Any) -> dict[str, Any]:
        """Two jobs keep the same variant of the usual recipe, and clients get what is stored of it; its entry."""
        kept = [self._kept(self.version.job(folder / name, **budget)) for name in ("once", "again")]
        (raw, variant, loss), (other, again, _) = kept
        assert raw == other
        same = [{**one, "recipe": {n: one["recipe"][n] for n in ("steps", "seed")}} for one in (variant, again)]
        assert {**same[0], "latency": {}} == {**same[1], "latency": {}}
        found = served(self.version, raw, self.folder)
        made = by_hand(self.version, "test", found["test"])
        agree(made, {name: variant["metrics"][name] for name in made})
        self.check_loss(loss, found)
        agree(variant["recipe"]["metric_drop"], round(loss.measured, 6))
        return variant

    @staticmethod
    def _kept(job: JobContext) -> tuple[bytes, dict[str, Any], Loss]:
        """The file of the one variant that the job keeps, its entry, and what was measured of its loss."""
        result = compress.run(job)
        [variant], [candidate] = result["variants"], result["compression"]["candidates"]
        assert variant["state"] == "accepted", variant["reason"]
        raw = (job.output / variant["path"]).read_bytes()
        assert (candidate["variant"], candidate["bytes"]) == (variant["name"], len(raw))
        assert candidate["sha256"] == hashlib.sha256(raw).hexdigest()
        return raw, variant, Loss(**candidate["loss"])


def check_elsewhere(version: RealVersion, recipes: Sequence[Recipe], folder: Path) -> None:
    """A process in which texts have other hashes makes the same files, as the next job's does."""
    here = [hashlib.sha256(version.maker(folder / f"{at}").make(one)).hexdigest() for at, one in enumerate(recipes)]
    given = [str(folder / "elsewhere"), str(version.folder), str(version.data), json.dumps(recipes)]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    told = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, *given], env={**os.environ, "PYTHONHASHSEED": seed}, cwd=_ROOT,
        capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    assert json.loads(told.splitlines()[-1]) == here
