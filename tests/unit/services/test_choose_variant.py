"""Which variant answers: one that was measured on this class of hosts, or on this GPU, else the full model."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from app.core.errors import Conflict, Misconfigured
from app.core.host import host_name
from app.core.resources import Measured, ModelVersion, Variant
from app.services.serve_version import best_where_made, choose_variant, fit_variant

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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.host.gpu_name", lambda number: ["NVIDIA H200", "NVIDIA L4"][number])


@pytest.mark.usefixtures("gpus")
def test_on_a_gpu_where_nothing_was_measured_the_full_model_answers(caplog: pytest.LogCaptureFixture):
    for known in (version(host_name()), version(host_name("cuda:0"))):
        assert choose_variant(known, None, "cuda:1").name == "fp32"
        with pytest.raises(Conflict, match=r"on hosts with cuda NVIDIA L4, .* measure with resources.device cuda on"):
            choose_variant(known, "int8", "cuda:1")
        with caplog.at_level(logging.WARNING):
            assert fit_variant(known, "int8", "cuda:1").name == "fp32"
        assert "'int8' is not known to be good on hosts with cuda NVIDIA L4" in caplog.text
        assert "run a job of kind measure with resources.device cuda there" in caplog.text


@pytest.mark.usefixtures("gpus")
def test_on_a_gpu_the_fastest_that_was_measured_on_its_kind_answers():
    known = version(host_name("cuda:0"))
    assert choose_variant(known, None, "cuda:0").name == "int8"
    assert fit_variant(known, "int8", "cuda").name == "int8"
    assert choose_variant(known, None, "cpu").name == "fp32"
    full, small = version(host_name()).variants
    there = Measured("cuda NVIDIA H200", "rejected", "slower", {}, {"host": host_name("cuda:0"), "speed_up": 0.5})
    known = replace(known, variants=(full, replace(small, elsewhere=(there,))))
    assert choose_variant(known, None, "cuda:0").name == "fp32"
    with pytest.raises(Conflict, match="was rejected: slower"):
        choose_variant(known, "int8", "cuda:0")


@pytest.mark.usefixtures("gpus")
def test_one_that_was_kept_for_its_size_alone_does_not_take_the_place_of_a_faster_full_model():
    """Of which nothing is listed there, since the job that made the other one was not the training."""
    full, small = version(host_name()).variants
    slower = replace(small, latency={"host": host_name("cuda:0"), "items_per_s": 60, "speed_up": 0.6})
    known = replace(version(host_name()), variants=(full, slower))
    assert choose_variant(known, None, "cuda:0").name == "fp32"
    faster = replace(slower, latency={**slower.latency, "speed_up": 1.6})
    assert choose_variant(replace(known, variants=(full, faster)), None, "cuda:0").name == "int8"


@pytest.mark.usefixtures("gpus")
def test_a_new_version_is_deployed_as_it_is_best_where_it_was_measured():
    assert best_where_made(version(host_name())).name == "int8"
    assert best_where_made(version(host_name("cuda:1"))).name == "int8"
    full, small = version(host_name("cuda:1")).variants
    elsewhere = replace(small, latency={**small.latency, "host": host_name()})
    assert best_where_made(replace(version(host_name()), variants=(full, elsewhere))).name == "fp32"


def test_a_gpu_whose_name_cannot_be_told_names_the_setting(monkeypatch: pytest.MonkeyPatch):
    def fails(_number: int) -> str:
        raise LookupError("no driver is there")

    monkeypatch.setattr("app.core.host.gpu_name", fails)
    with pytest.raises(Misconfigured, match="AIMASS_SERVING_PROVIDER=cuda:0: no driver is there, or set it to cpu"):
        choose_variant(version(host_name()), None, "cuda:0")


def test_an_endpoint_keeps_its_variant_where_it_is_good(caplog: pytest.LogCaptureFixture):
    assert fit_variant(version(host_name()), "int8", "cpu").name == "int8"
    assert not caplog.text
    assert fit_variant(version(ELSEWHERE), "int8", "cpu").name == "fp32"
    assert "run a job of kind measure there" in caplog.text
