"""Texts through the whole platform: uploaded, learnt from, served, and asked in Chinese and in English."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import JSON, Trained
from tests.acceptance.problems import check_problem
from tests.support.servers import wait_until

PREDICT = "/api/v1/endpoints/opinions/predict"
GOOD = ["lovely clean room", "Great food!", "房间很干净", "服务非常好", "we will come again", "下次还来"]
BAD = ["dirty loud room", "awful FOOD", "房间太差", "服务很糟糕", "never ever again", "不会再来"]
ASKED = {"the room was lovely": "good", "服务非常好,下次还来": "good", "AWFUL, never again": "bad", "房间太差": "bad"}


def opinions_csv(rows: int = 300) -> bytes:
    """A column of texts, of which every tenth is empty, and what they say of a hotel."""
    draw = random.Random(7)  # noqa: S311 - rows of a table
    lines = ["text,label"]
    for row in range(rows):
        good = draw.random() < 0.5
        text = f"stay {row}: {' '.join(draw.sample(GOOD if good else BAD, 2))}, {draw.choice(['住了两晚', 'by train'])}"
        lines.append(f'"{"" if row % 10 == 0 else text}",{"good" if good else "bad"}')
    return "\n".join(lines).encode()


@pytest.fixture(scope="module")
def opinions(trained: Trained) -> Iterator[dict[str, Any]]:
    """The ended job, whose version the endpoint `opinions` serves."""
    platform = trained.platform
    platform.upload("opinions", opinions_csv())
    spec = {"kind": "train", "model": "opinions", "dataset": "opinions@1", "task": "classification", "target": "label"}
    job = platform.submit(**spec, family="text_linear", deploy={"endpoint": "opinions"}, compress={})
    ended = platform.wait(job["id"], "succeeded")
    wait_until(lambda: platform.client.get("/v2/models/opinions/ready").is_success, 60, "the endpoint is loaded")
    yield ended
    platform.call("DELETE", "/api/v1/endpoints/opinions", 204)


def test_the_version_says_what_it_reads(trained: Trained, opinions: dict[str, Any]) -> None:
    assert opinions["result"]["metrics"]["accuracy"] > 0.8
    version = trained.version("opinions")
    assert version["signature"]["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
    assert [column["type"] for column in version["signature"]["columns"]] == ["text"]


@pytest.mark.usefixtures("opinions")
def test_every_protocol_gives_the_same_answer(trained: Trained) -> None:
    instances = [{"text": text} for text in ASKED]
    found = trained.predict("opinions", instances)["predictions"]
    assert [prediction["label"] for prediction in found] == list(ASKED.values())
    call = trained.platform.call
    assert call("POST", "/v1/models/opinions:predict", 200, json={"instances": instances})["predictions"] == found
    data = {"name": "text", "datatype": "BYTES", "shape": [len(ASKED), 1], "data": list(ASKED)}
    (output,) = call("POST", "/v2/models/opinions/infer", 200, json={"inputs": [data]})["outputs"]
    assert output["data"][:2] == pytest.approx(list(found[0]["probabilities"].values()), abs=1e-6)


@pytest.mark.usefixtures("opinions")
def test_odd_texts_have_an_answer_and_what_is_no_text_is_named(trained: Trained) -> None:
    odd = ["", "\0", "👍🏽", "e\u0301", "x" * 20_000, None]
    assert len(trained.predict("opinions", [{"text": text} for text in odd])["predictions"]) == len(odd)
    client = trained.platform.client
    for body, word in (
        (b'{"instances":[{"text":3}]}', "must be a text"),
        (b'{"instances":[{"text":"\\ud800"}]}', "half"),
    ):
        answer = client.post(PREDICT, content=body, headers=JSON)
        check_problem(answer, 422, "invalid_tensor", ["instances", 0, "text"], word)
    answer = client.post(PREDICT, content=b'{"instances":[{"text":"\xff"}]}', headers=JSON)
    check_problem(answer, 400, "malformed")


@pytest.mark.usefixtures("opinions")
def test_the_api_describes_the_model(trained: Trained) -> None:
    operation = trained.platform.call("GET", "/openapi.json", 200)["paths"][PREDICT]["post"]
    body = operation["requestBody"]["content"]["application/json"]
    assert body["schema"]["properties"]["instances"]["items"]["required"] == ["text"]
    assert "stay" in body["example"]["instances"][0]["text"]


@pytest.mark.usefixtures("opinions")
def test_weights_that_a_worker_does_not_have(trained: Trained) -> None:
    spec = {"kind": "train", "model": "tuned", "dataset": "opinions@1", "task": "classification", "target": "label"}
    job = trained.platform.submit(**spec, family="transformer", params={"weights": "bert-base"})
    ended = trained.platform.wait(job["id"], "failed")
    assert "AIMASS_WORKER_WEIGHTS" in json.dumps(ended["error"])


@pytest.mark.usefixtures("opinions")
def test_a_network_answers_raw_texts_as_it_did_in_training(trained: Trained) -> None:
    spec = {
        "kind": "train", "model": "read", "dataset": "opinions@1", "task": "classification", "target": "label",
        "family": "rnn", "params": {"width": 16, "units": 16}, "deploy": {"endpoint": "read"},
        "training": {"epochs": 8, "batch_size": 16, "optimizer": {"lr": 0.01}, "augment": {"token_dropout": 0.05}},
    }  # fmt: skip
    trained.platform.wait(trained.platform.submit(**spec)["id"], "succeeded")
    wait_until(lambda: trained.platform.client.get("/v2/models/read/ready").is_success, 60, "the endpoint is loaded")
    instances = [{"text": text} for text in ASKED]
    together = trained.predict("read", instances)["predictions"]
    assert [prediction["label"] for prediction in together] == list(ASKED.values())
    for instance, among in zip(instances, together, strict=True):
        (alone,) = trained.predict("read", [instance])["predictions"]
        assert alone["probabilities"] == pytest.approx(among["probabilities"], abs=1e-5)
    trained.platform.call("DELETE", "/api/v1/endpoints/read", 204)


@pytest.mark.usefixtures("opinions")
@pytest.mark.parametrize(
    ("changes", "loc", "word"),
    [
        ({"family": "gbdt"}, ["family"], "use text_linear"),
        ({"family": "transformer", "params": {"weights": "../secret"}}, ["params", "weights"], "pattern"),
        ({"family": "rnn", "training": {"augment": {"flip": True}}}, ["training", "augment", "flip"], "leave it out"),
        ({"family": "text_linear", "dataset": "tumours@1", "target": "diagnosis"}, ["family"], "has no column of text"),
        ({"family": "text_linear", "dataset": "digits@1"}, ["family"], "learns from text data"),
        (
            {"family": "text_linear", "features": {"types": {"text": "category"}}},
            ["features", "types", "text"],
            "reads text alone",
        ),
    ],
)
def test_a_family_that_does_not_fit(trained: Trained, changes: dict[str, Any], loc: list[str], word: str) -> None:
    spec = {"kind": "train", "model": "m", "dataset": "opinions@1", "task": "classification", "target": "label"}
    check_problem(
        trained.platform.client.post("/api/v1/jobs", json={**spec, **changes}), 422, "invalid_spec", loc, word
    )
