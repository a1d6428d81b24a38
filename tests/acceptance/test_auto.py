"""`auto` through the whole platform: trained, reported, served row by row and in bulk."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import Trained
from tests.acceptance.problems import check_problem
from tests.support.jobs import TUMOURS
from tests.support.servers import wait_until

SPEC: dict[str, Any] = TUMOURS | {"model": "team", "family": "auto"}
FEW = {"time_limit_s": 60, "folds": 2, "families": ["linear", "naive_bayes", "gbdt"]}


@pytest.fixture(scope="module")
def team(trained: Trained) -> Iterator[dict[str, Any]]:
    """The card of the version that the endpoint `team` serves."""
    job = trained.platform.submit(**SPEC, params=FEW, deploy={"endpoint": "team"})
    trained.platform.wait(job["id"], "succeeded")
    wait_until(lambda: trained.platform.client.get("/v2/models/team/ready").is_success, 60, "the endpoint is loaded")
    yield trained.platform.call("GET", "/api/v1/models/team/versions/1/card")
    trained.platform.call("DELETE", "/api/v1/endpoints/team", 204)


def test_the_card_says_what_was_tried_and_why_the_winner_won(team: dict[str, Any]) -> None:
    fit = team["fit"]
    assert {line["family"] for line in fit["tried"]} == set(FEW["families"])
    assert all("which it is like" in why for why in fit["given_up"].values())
    assert fit["folds"] == 2
    assert all(0.9 < line["roc_auc"] <= 1 for line in fit["tried"])
    assert set(fit["combinations"]) == {"best model", "weighted mean", "stacked"}
    assert fit["combinations"][fit["chosen"]] == max(fit["combinations"].values())
    assert f"{fit['combinations'][fit['chosen']]:.5g}" in fit["why"]
    assert team["metrics"]["test"]["roc_auc"] > 0.97
    assert team["parity"]["max_difference"] < 1e-4


def test_rows_alone_and_in_bulk_have_the_same_answers(trained: Trained, team: dict[str, Any]) -> None:
    signature = trained.version("team")["signature"]
    assert [tensor["name"] for tensor in signature["outputs"]] == ["probabilities"]
    names = [column["name"] for column in signature["columns"]]
    rows = [{name: 0.1 * (at + 1) + 0.01 * row for at, name in enumerate(names)} for row in range(5)]
    together = trained.predict("team", rows)["predictions"]
    alone = [trained.predict("team", [row])["predictions"][0] for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    assert team["data"]["classes"] == signature["classes"]


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({"families": ["cnn"]}, ["params", "families"]),
        ({"families": ["auto"]}, ["params", "families"]),
        ({"time_limit_s": 1}, ["params", "time_limit_s"]),
        ({"folds": 1}, ["params", "folds"]),
    ],
)
def test_what_it_cannot_do_is_named(trained: Trained, params: dict[str, Any], where: list[str]) -> None:
    answer = trained.platform.client.post("/api/v1/jobs", json=SPEC | {"params": params})
    check_problem(answer, 422, "invalid_spec", where)
