"""Networks over texts: tokens in the graph, padding that changes nothing, and what each family learns."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from app.core.errors import InvalidData, InvalidSpec
from app.core.signature import Tensor
from app.specs.augment import AugmentSpec
from app.specs.families import family
from app.specs.jobs import TrainSpec
from tests.unit.learning.test_resume import assert_same_when_resumed
from tests.unit.learning.test_text import ODD, column, reviews
from workers.export.graph import Graph
from workers.export.runtime import open_session
from workers.families.base import load_family
from workers.families.sequences import TokenNetwork
from workers.families.vocabulary import Vocabulary
from workers.jobs import train
from workers.training.token_augment import TokenAugment

MakeJob = Callable[..., Any]
TINY: dict[str, dict[str, Any]] = {
    "text_cnn": {"width": 16, "filters": 16, "windows": [1, 3], "dropout": 0.2, "max_tokens": 64},
    "rnn": {"width": 16, "units": 16, "dropout": 0.2, "max_tokens": 64},
    "transformer": {"width": 16, "depth": 1, "heads": 2, "dropout": 0.0, "max_tokens": 64},
}
OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("text_cnn", {"windows": [16]}),
    ("rnn", {"cell": "gru", "depth": 2}),
    ("rnn", {"cell": "lstm", "depth": 2, "bidirectional": False}),
)
TRAINING = {"epochs": 12, "batch_size": 16, "optimizer": {"lr": 0.01}}
WORDS = {"max_characters": 100, "min_rows": 1, "max_words": 100, "max_tokens": 12}


def params_of(name: str, **changes: Any) -> dict[str, Any]:
    return family(name).validate({**TINY[name], **changes}).model_dump(mode="json")


@pytest.fixture(scope="module")
def opinions() -> pl.DataFrame:
    return reviews()


class TestVocabulary:
    def test_texts_of_a_row_stand_one_after_the_other(self):
        seen = np.array([["b a", "中文 b"], ["a b", ""]], object)
        known = Vocabulary.learn(seen, WORDS)
        word = {w: known.words.numbers[w] + 2 for w in ("a", "b", "中", "文")}
        asked = np.array([["", "b zzz 文"], ["a", "a A a"], ["b a", ""], ["", ""]], object)
        assert known.transform(asked).tolist() == [
            [2, 2, word["b"], 1, word["文"], 0],
            [2, word["a"], 2, *[word["a"]] * 3],
            [2, word["b"], word["a"], 2, 0, 0],
            [2, 2, 0, 0, 0, 0],
        ]

    def test_a_row_is_read_as_far_as_asked(self):
        known = Vocabulary.learn(column("a b c"), {**WORDS, "max_tokens": 4})
        assert known.transform(column("a b c a b", "")).tolist() == [[2, 3, 4, 5], [2, 0, 0, 0]]
        two = Vocabulary.learn(np.array([["a b", "c"]], object), {**WORDS, "max_tokens": 4})
        assert two.transform(np.array([["a", "c b a"]], object)).tolist() == [[2, 3, 2, 5]]

    def test_texts_without_a_word(self):
        known = Vocabulary.learn(column("a b"), WORDS)
        assert known.transform(column("", "", "")).tolist() == [[2]] * 3
        with pytest.raises(InvalidData, match=r"lower params\.min_rows"):
            Vocabulary.learn(column("a", "b", ""), {**WORDS, "min_rows": 2})


def graph_of(network: TokenNetwork, known: Vocabulary) -> Any:
    graph = Graph()
    graph.add("Identity", network.to_nodes(graph, known.to_nodes(graph)), output="out")
    return open_session(
        graph.model([Tensor("text", "BYTES", (-1, 1))], [Tensor("out", "FP32", (-1, 3))]).SerializeToString(), 1
    )


@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in TINY), *OTHERS])
def test_rows_do_not_change_each_other_and_the_graph_says_the_same(
    make_job: MakeJob, name: str, changes: dict[str, Any]
):
    params = params_of(name, **changes)
    texts = column("a b c", "中文 a", *ODD, "a " * 60, "b")
    known = Vocabulary.learn(texts, {**params, "min_rows": 1})
    torch.manual_seed(1)
    network = load_family(family(name), params).make(known, 3, make_job(reviews(2))).eval()  # type: ignore[attr-defined]
    tokens = torch.from_numpy(known.transform(texts))
    with torch.inference_mode():
        together = network(tokens).numpy()
        alone = np.concatenate([network(row[None]).numpy() for row in tokens])
        padded = network.score(torch.nn.functional.pad(tokens[:, :60], (0, 4))).numpy()
        cut = network(tokens[:, :60]).numpy()
    assert np.ptp(together, axis=0).min() > 1e-3
    np.testing.assert_allclose(alone, together, atol=2e-6)
    np.testing.assert_allclose(padded, cut, atol=2e-6)
    session = graph_of(network, known)
    np.testing.assert_allclose(session.run(None, {"text": texts})[0], together, atol=2e-6)
    for row in range(len(texts)):
        np.testing.assert_allclose(session.run(None, {"text": texts[row : row + 1]})[0][0], together[row], atol=2e-6)


@pytest.mark.parametrize("name", TINY)
class TestFamilies:
    def test_it_learns_and_exports(self, make_job: MakeJob, opinions: pl.DataFrame, name: str):
        job = make_job(opinions, family=name, features={"drop": ["stars"]}, params=TINY[name], training=TRAINING,
                       compress={"max_metric_drop": 0.2}, limits={"threads": 1})  # fmt: skip
        result = train.run(job)
        card = json.loads((job.output / "card.json").read_text())
        assert result["metrics"]["accuracy"] > 0.85
        assert card["parity"]["label_flips"] == 0
        assert card["fit"]["vocabulary"] > 40
        assert card["fit"]["unknown_words"] < 0.1
        _base, int8 = result["variants"]
        assert int8["name"] == "int8"
        assert "cannot be made" not in str(int8["reason"])
        session = open_session((job.output / "model.onnx").read_bytes(), 1)
        texts = column("lovely room, 服务非常好", "awful FOOD, 房间太差")
        assert session.run(None, {"text": texts})[0].argmax(axis=1).tolist() == [1, 0]

    def test_values_from_two_columns(self, make_job: MakeJob, opinions: pl.DataFrame, name: str):
        other = pl.Series("more", np.random.default_rng(3).choice(["by train", "坐火车"], len(opinions)).tolist())
        frame = opinions.with_columns(other, stars=pl.col("stars") + pl.lit(other == "坐火车").cast(pl.Float64) * 2)
        types = {"text": "text", "more": "text"}
        job = make_job(frame.drop("target"), family=name, task="regression", target="stars", params=TINY[name],
                       features={"types": types}, training=TRAINING, limits={"threads": 1})  # fmt: skip
        assert train.run(job)["metrics"]["r2"] > 0.7


@pytest.mark.parametrize("name", ["rnn", "transformer"])
def test_it_resumes_to_the_very_same_weights(make_job: MakeJob, opinions: pl.DataFrame, name: str):
    training = {
        "epochs": 4, "batch_size": 32, "checkpoint_every_s": 0, "ema": 0.9,
        "augment": {"token_dropout": 0.2, "token_swap": 0.2},
    }  # fmt: skip
    assert_same_when_resumed(make_job, opinions.head(60), family=name, params={**TINY[name], "dropout": 0.1},
                       features={"drop": ["stars"]}, training=training, limits={"threads": 1})  # fmt: skip


class TestTokenAugment:
    TOKENS = torch.tensor([[2, *range(3, 40), 2, 50, 51, 0, 0]] * 200)

    def change(self, seed: int = 0, **spec: float) -> torch.Tensor:
        made = TokenAugment(AugmentSpec(**spec), 1, (0, 2))
        (tokens,), y = made((self.TOKENS,), torch.arange(200), np.random.default_rng(seed))
        assert y.tolist() == list(range(200))
        return tokens

    def test_dropout_makes_words_unknown(self):
        changed = self.change(token_dropout=0.3)
        special = self.TOKENS <= 2
        assert torch.equal(changed[special], self.TOKENS[special])
        words = changed[~special]
        assert (words == 1).float().mean() == pytest.approx(0.3, abs=0.02)
        assert set((words[words != self.TOKENS[~special]]).tolist()) == {1}

    def test_swaps_are_of_neighbours_of_one_text(self):
        changed = self.change(token_swap=0.3)
        assert torch.equal(changed.sort(dim=1).values, self.TOKENS.sort(dim=1).values)
        assert torch.equal((changed <= 2), (self.TOKENS <= 2))
        shift = changed[:, 1:38] - self.TOKENS[:, 1:38]
        assert set(shift.flatten().tolist()) == {-1, 0, 1}
        assert set(changed[:, 39].tolist()) == {50, 51}

    def test_a_seed_gives_the_same_again(self):
        spec = {"token_dropout": 0.2, "token_swap": 0.2}
        assert torch.equal(self.change(1, **spec), self.change(1, **spec))
        assert not torch.equal(self.change(1, **spec), self.change(2, **spec))


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"family": "rnn", "training": {"augment": {"flip": True}}}, ("training", "augment", "flip")),
        ({"family": "cnn", "training": {"augment": {"token_swap": 0.1}}}, ("training", "augment", "token_swap")),
        ({"family": "text_linear", "training": {"augment": {"token_swap": 0.1}}}, ("training", "augment")),
        ({"family": "mlp", "training": {"augment": {"token_swap": 0.1}}}, ("training", "augment")),
        ({"family": "transformer", "params": {"width": 30}}, ("params", "width")),
        ({"family": "text_cnn", "params": {"windows": []}}, ("params", "windows")),
        ({"family": "rnn", "params": {"cell": "elman"}}, ("params", "cell")),
        ({"family": "rnn", "features": {"types": {"text": "number"}}}, ("features", "types", "text")),
    ],
)
def test_what_does_not_fit_is_refused(spec: dict[str, Any], where: tuple[str, ...]):
    whole = {"kind": "train", "model": "m", "dataset": "d@1", "task": "classification", "target": "target", **spec}
    with pytest.raises(InvalidSpec) as caught:
        TrainSpec.model_validate(whole).check_family()
    assert caught.value.errors[0].loc == where
