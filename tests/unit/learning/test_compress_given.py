"""Recipes that a job names: they are measured and nothing else, and a variant's own make its file again."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from app.specs.base import field_error
from app.specs.jobs import CompressSpec
from tests.unit.learning.test_compress_search import compress_job, short_measurements  # noqa: F401 - fixtures
from workers.compression.space import _FORMS, _PRECISIONS, _PRUNED, _STORAGES
from workers.jobs import compress

HALF, MERGED = {"step": "first_trees", "share": 0.5}, {"step": "merge_leaves", "tolerance": 0.1}
WEIGHTS = {"step": "quantize", "method": "weights", "bits": 4}


def test_the_steps_of_a_variant_make_its_file_again(compress_job: Callable[..., Any]):  # noqa: F811 - the fixture
    first = compress_job(max_metric_drop=0.2)
    [variant] = compress.run(first)["variants"]
    again = compress_job("again", max_metric_drop=0.2)
    again.spec["recipes"] = [variant["recipe"]["steps"]]
    result = compress.run(again)
    [made] = result["variants"]
    assert [one["recipe"] for one in result["compression"]["candidates"]] == [variant["recipe"]["steps"]]
    assert (again.output / made["path"]).read_bytes() == (first.output / variant["path"]).read_bytes()
    assert made["metrics"] == variant["metrics"]


def test_only_what_is_named_is_measured_each_with_its_reason(compress_job: Callable[..., Any]):  # noqa: F811 - the same
    job = compress_job(max_metric_drop=0.5, max_bytes=1)
    foreign = {"step": "drop_layers", "keep": 1, "table_rank": None}
    job.spec["recipes"] = [[HALF, MERGED], [foreign], [HALF]]
    report = compress.run(job)["compression"]
    assert [one["recipe"] for one in report["candidates"]] == [[HALF, MERGED], [foreign], [HALF]]
    assert report["state"] == "not reachable"
    assert all(one["reason"] for one in report["candidates"])
    assert "cannot be made" in report["candidates"][1]["reason"]
    assert "over max_bytes" in report["candidates"][2]["reason"]


def test_what_there_was_no_time_for_says_so(compress_job: Callable[..., Any]):  # noqa: F811 - the same
    job = compress_job(max_metric_drop=0.5, time_limit_s=1e-6)
    job.spec["recipes"] = [[HALF]]
    report = compress.run(job)["compression"]
    assert [one["reason"] for one in report["candidates"]] == ["there was no time left for it; raise time_limit_s"]


@pytest.mark.parametrize(
    ("recipe", "where", "told"),
    [
        ([], (0,), "at least 1 item"),
        ([{"step": "magic"}], (0, 0, "step"), "must be one of: 'student'"),
        ([{"step": "quantize"}], (0, 0, "quantize", "method"), "required"),
        (
            [{"step": "quantize", "method": "weights", "bits": 4, "operators": ["Gemm"]}],
            (0, 0, "quantize"),
            "operators: not of",
        ),
        ([{"step": "quantize", "method": "static"}], (0, 0, "quantize"), "needs operators"),
        ([{"step": "quantize", "method": "weights", "bits": 3}], (0, 0, "quantize", "bits"), "4 or 8"),
        ([{"step": "low_rank", "energy": 1.5}], (0, 0, "low_rank", "energy"), "less than 1"),
        ([{"step": "cheapen"}], (0, 0, "cheapen"), "relu"),
        ([{"step": "half", "bits": 16}], (0, 0, "half", "bits"), "no such field"),
        ([{"step": "student", "of": "trees", "size": "half"}], (0, 0, "student"), "small, medium, large"),
        ([HALF, {"step": "prune", "keep": 0.5}], (0,), "put it first"),
        ([HALF] * 11, (0,), "at most 10"),
    ],
)
def test_a_recipe_that_is_none_is_refused_by_its_place(recipe: Any, where: tuple[Any, ...], told: str):
    with pytest.raises(ValidationError) as caught:
        CompressSpec(kind="compress", model="m", version=1, recipes=[recipe])
    [error] = map(field_error, caught.value.errors())
    assert error.loc == ("recipes", *where)
    assert told in error.msg


def test_steps_are_told_whole_without_what_is_of_other_methods():
    given = [[{"step": "prune", "keep": 0.5}], [{"step": "fuse"}, WEIGHTS]]
    spec = CompressSpec(kind="compress", model="m", version=1, recipes=given)
    assert [[step.to_json() for step in recipe] for recipe in spec.recipes] == [
        [{"step": "prune", "keep": 0.5, "importance": "taylor"}],
        [{"step": "fuse", "fast_gelu": False}, WEIGHTS],
    ]
    queued = CompressSpec.model_validate(spec.model_dump(mode="json"))  # as a job's child reads it
    assert queued == spec


@pytest.mark.parametrize("step", [*_PRECISIONS.values(), *_FORMS.values(), *_STORAGES.values(), *_PRUNED.values()])
def test_what_a_search_does_can_be_asked_for(step: Any):
    spec = CompressSpec(kind="compress", model="m", version=1, recipes=[[step]])
    assert spec.recipes[0][0].to_json().items() >= step.items()
