"""Which variant answers: one that was measured on this class of hosts, and on a GPU the full model."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from app.core.errors import Conflict
from app.core.host import host_name
from app.core.resources import ModelVersion, Variant
from app.services.serve_version import choose_variant, fit_variant

ELSEWHERE = "another processor (sve)"


def variant(name: str, host: str, rate: float, state: Any = "accepted") -> Variant:
    latency = {"host": host, "items_per_s": rate}
    return Variant(name, state, None, {}, f"variants/{name}/model.onnx", 10, {}, latency)


def version(host: str) -> ModelVersion:
    variants = variant("fp32", host, 100), variant("int8", host, 300)
    return ModelVersion(
        "id", "m", 1, "ready", "classification", "mlp", "accuracy", {}, {}, {}, {}, "f" * 64, 0.0, variants
    )


def test_the_fastest_that_was_measured_here():
    assert choose_variant(version(host_name()), None, "cpu").name == "int8"
    assert choose_variant(version(ELSEWHERE), None, "cpu").name == "fp32"


def test_how_much_faster_it_is_by_turns_counts_and_not_the_luck_of_the_full_model():
    known = version(host_name())
    full, small = known.variants
    lucky = replace(full, latency={**full.latency, "items_per_s": 400})
    by_turns = replace(small, latency={**small.latency, "speed_up": 1.2})
    assert choose_variant(replace(known, variants=(lucky, by_turns)), None, "cpu").name == "int8"
    slower = replace(by_turns, latency={**small.latency, "speed_up": 0.9})
    assert choose_variant(replace(known, variants=(full, slower)), None, "cpu").name == "fp32"


def test_what_was_not_timed_by_turns_is_compared_by_rows_a_second_as_all_are_then():
    known = version(host_name())
    full, small = known.variants
    timed = replace(small, name="timed", latency={**small.latency, "items_per_s": 500, "speed_up": 2.0})
    assert choose_variant(replace(known, variants=(full, small, timed)), None, "cpu").name == "timed"
    assert choose_variant(replace(known, variants=(small, timed)), None, "cpu").name == "timed"


def test_one_that_was_measured_elsewhere_is_refused():
    with pytest.raises(Conflict, match="run a job of kind measure"):
        choose_variant(version(ELSEWHERE), "int8", "cpu")


def test_on_a_gpu_the_full_model_answers(caplog: pytest.LogCaptureFixture):
    known = version(host_name())
    assert choose_variant(known, None, "cuda:1").name == "fp32"
    with pytest.raises(Conflict, match=r"not been measured on hosts with cuda, .* there; take fp32$"):
        choose_variant(known, "int8", "cuda:1")
    with caplog.at_level(logging.WARNING):
        assert fit_variant(known, "int8", "cuda:1").name == "fp32"
    assert "'int8' is not known to be good on hosts with cuda" in caplog.text


def test_an_endpoint_keeps_its_variant_where_it_is_good(caplog: pytest.LogCaptureFixture):
    assert fit_variant(version(host_name()), "int8", "cpu").name == "int8"
    assert not caplog.text
    assert fit_variant(version(ELSEWHERE), "int8", "cpu").name == "fp32"
    assert "run a measure job" in caplog.text
