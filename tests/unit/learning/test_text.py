"""Texts: which columns they are in, how they become tokens and n-grams, and that the graph does the same."""

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import InvalidData, InvalidSpec
from app.core.signature import Tensor
from app.specs.jobs import TrainSpec
from workers.data.prepare import prepare
from workers.export.graph import Graph
from workers.export.runtime import open_session, predict
from workers.families.ngrams import Sizes
from workers.families.text_linear import TextLinear
from workers.families.tfidf import Channel, product_nodes, transform
from workers.families.tokens import Kind, Tokens, cut_nodes, fold, run_nodes, token_nodes
from workers.jobs import compress, evaluate, train

MakeJob = Callable[..., Any]
PARAMS = {"max_characters": 50, "min_rows": 1}
WIDE = str.maketrans({chr(code): chr(code + 0xFEE0) for code in range(ord("!"), ord("~"))})  # full-width forms
ODD = [
    "",
    " ",
    "\0",
    "a\0b",
    "e\u0301",
    "é",
    "\u200d",
    "👍🏽",
    "ABC".translate(WIDE),
    "ß",
    "\ufb01",
    "İ",
    "中文",
    "a中b",
]
ODD += ["\ufeff", "x" * 300]


def column(*texts: str) -> np.ndarray:
    return np.array([[text] for text in texts], object).reshape(len(texts), 1)


@cache
def tokenizer(kind: Kind, most: int) -> Any:
    graph = Graph()
    graph.add("Identity", token_nodes(graph, kind, cut_nodes(graph, most)), output="out")
    model = graph.model([Tensor("text", "BYTES", (-1, 1))], [Tensor("out", "BYTES", (-1, -1, -1))])
    return open_session(model.SerializeToString(), 1)


def tokens(kind: Kind, most: int, *texts: str) -> list[list[str]]:
    """Those of each text."""
    found = tokenizer(kind, most).run(None, {"text": column(*texts)})[0]
    return [[token for token in row if token] for row in found.reshape(len(texts), -1).tolist()]


def numbers_of(known: Tokens, texts: np.ndarray) -> np.ndarray:
    (found,) = run_nodes(lambda graph: known.to_nodes(graph, cut_nodes(graph, 1000), 1), texts, "INT64", 2)
    return found


def reviews(rows: int = 200) -> pl.DataFrame:
    """English and Chinese opinions on rooms and food; the answer is in the words."""
    rng = np.random.default_rng(5)
    good = [
        "lovely room",
        "Great food!",
        "房间很干净",
        "服务非常好",
        "would come again",
        "下次还来",
        "I don't complain",
    ]
    bad = ["dirty room", "awful FOOD", "房间太差", "服务很糟糕", "never again", "不会再来", "I do complain"]
    rest = [
        "the hotel is near the station",
        "酒店在车站旁边",
        "we stayed two nights",
        "住了两晚",
        "早餐一般",
        "on Monday",
    ]
    texts, labels = [], []
    for _ in range(rows):
        label = rng.random() < 0.5
        parts = [*rng.choice(good if label else bad, 2), *rng.choice(rest, 2)]
        texts.append(" ".join(rng.permutation(parts)))
        labels.append("good" if label else "bad")
    return pl.DataFrame({"text": texts, "target": labels}).with_columns(stars=pl.col("target").eq("good") * 3.0 + 1)


class TestTokens:
    @given(st.lists(st.text(max_size=40), min_size=1, max_size=8))
    @settings(max_examples=25, deadline=None)
    def test_characters_are_those_of_python(self, texts: list[str]):
        found = tokens("characters", 1000, *texts)
        assert found == [[" ", *text, " "] for text in texts]

    def test_words(self):
        text = "Don't SHOUT, 请安静!ok 3 días e\u0301té 👍🏽 a_b x\0y"
        words = [
            "Don't",
            "SHOUT",
            ",",
            "请",
            "安",
            "静",
            "!",
            "ok",
            "3",
            "días",
            "été",
            "👍",
            "🏽",
            "a",
            "_",
            "b",
            "x",
            "y",
        ]
        assert tokens("words", 1000, text) == [words]

    @pytest.mark.parametrize("kind", ["words", "characters"])
    def test_case_width_and_composition_make_no_difference(self, kind: Any):
        known = Tokens.learn(kind, column("straße été hello", "straße été hello"), 100, 2, 1000)
        spelt = column(
            "straße été hello", "Straße Été HELLO", "straße e\u0301te\u0301 hello", "straße été hello".translate(WIDE)
        )
        numbers = numbers_of(known, spelt)
        assert (numbers[1] == numbers[0]).all()
        if kind == "characters":
            assert (numbers[3, : numbers[0].argmin()] == numbers[0, : numbers[0].argmin()]).all()
        else:
            assert (numbers[2] == numbers[0]).all()

    def test_a_token_of_one_row_is_not_known_and_the_most_frequent_are_kept(self):
        texts = column("one two two", "two three", "three two four")
        assert set(Tokens.learn("words", texts, 10, 2, 10).numbers) >= {"two", "three", "TWO", "Three"}
        assert {fold(token) for token in Tokens.learn("words", texts, 10, 2, 1).numbers} == {"two"}

    @pytest.mark.parametrize(("most", "length"), [(3, 2), (500, 499), (1000, 999)])
    def test_what_follows_the_last_character_to_be_read_is_not(self, most: int, length: int):
        read = "".join(tokens("characters", most, "中" + "ab" * 1499)[0])
        assert len(read.strip()) == length
        assert tokens("words", 10, "one two three") == [["one", "two", "t"]]


class TestNgrams:
    def test_they_are_those_of_a_plain_count(self):
        texts = reviews(60)["text"].to_list()
        channel = Channel.learn("characters", Sizes(2, 4), column(*texts), {**PARAMS, "max_characters": 200}, 10**6)
        seen = Counter(
            text[i : i + n]
            for text in (f" {''.join(map(fold, whole))} " for whole in texts)
            for n in (2, 3, 4)
            for i in range(len(text) - n + 1)
        )
        assert channel.size == len(seen)
        x = channel.transform(column(texts[0]))
        text = f" {''.join(map(fold, texts[0]))} "
        own = {text[i : i + n] for n in (2, 3, 4) for i in range(len(text) - n + 1)}
        assert x.nnz == len(own)

    def test_with_too_many_those_of_more_rows_are_kept(self):
        texts = column(*reviews(200)["text"].to_list())
        full = Channel.learn("words", Sizes(1, 3), texts, {**PARAMS, "max_characters": 500}, 10**6)
        cut = Channel.learn("words", Sizes(1, 3), texts, {**PARAMS, "max_characters": 500}, 90)
        assert cut.size <= 90 < full.size
        assert cut.ngrams.rows[cut.ngrams.counted].min() >= 1

    def test_columns_of_texts_do_not_run_into_one_another(self):
        texts = np.array([["ab", "cd"], ["ab", "cd"]], object)
        channel = Channel.learn("characters", Sizes(2, 3), texts, PARAMS, 100)
        assert channel.size == 2 * 5  # " a", "ab", "b ", " ab", "ab " of one column, and as many of the other

    def test_a_text_has_length_one(self):
        channel = Channel.learn("words", Sizes(1, 2), column("a b", "b c", "d"), PARAMS, 100)
        x = channel.transform(column("a b", "", "unknown"))
        assert np.allclose(x.multiply(x).sum(axis=1).ravel(), [1, 0, 0])


@pytest.fixture(scope="module")
def product() -> tuple[list[Channel], np.ndarray, Any]:
    """Channels of odd and of plain texts, weights for 20 columns, and the session of their product."""
    texts = column(*reviews(80)["text"].to_list(), *ODD, *ODD)
    channels = [
        Channel.learn("words", Sizes(1, 2), texts, PARAMS, 1000),
        Channel.learn("characters", Sizes(2, 5), texts, PARAMS, 1000),
    ]
    width = sum(len(channel.idf) for channel in channels)
    weights = np.random.default_rng(0).normal(size=(width, 20))
    graph = Graph()
    graph.add("Identity", product_nodes(graph, channels, weights), output="out")
    model = graph.model([Tensor("text", "BYTES", (-1, 1))], [Tensor("out", "FP32", (-1, 20))])
    return channels, weights, open_session(model.SerializeToString(), 1)


class TestProduct:
    """Of 20 columns, which are summed row by row; the families' tests have few."""

    def test_odd_texts(self, product: Any):
        channels, weights, session = product
        texts = column(*ODD, "".join(ODD))
        for batch in (1, 7, 100):
            assert np.allclose(
                predict(session, {"text": texts}, batch), transform(channels, texts) @ weights, atol=1e-4
            )

    @given(st.lists(st.text(max_size=60) | st.sampled_from(ODD), min_size=1, max_size=12))
    @settings(max_examples=25, deadline=None)
    def test_any_text(self, product: Any, texts: list[str]):
        channels, weights, session = product
        asked = column(*texts)
        assert np.allclose(predict(session, {"text": asked}), transform(channels, asked) @ weights, atol=1e-4)


@pytest.fixture(scope="module")
def opinions() -> pl.DataFrame:
    return reviews()


class TestFamily:
    def test_two_classes(self, make_job: MakeJob, opinions: pl.DataFrame):
        frame = opinions.with_columns(
            pl.when(pl.int_range(pl.len()) % 20 == 0).then(None).otherwise(pl.col("text")).alias("text")
        )
        job = make_job(frame, family="text_linear", features={"drop": ["stars"]}, compress={})
        result = train.run(job)
        assert result["metrics"]["roc_auc"] > 0.9
        assert result["signature"]["inputs"] == ({"name": "text", "datatype": "BYTES", "shape": (-1, 1)},)
        assert result["signature"]["columns"] == (
            {"name": "text", "type": "text", "tensor": "text", "index": 0, "nullable": True},
        )
        assert result["schema"]["properties"]["text"]["type"] == ["string", "null"]
        assert [v["name"] for v in result["variants"]] == ["fp32"]
        card = json.loads((job.output / "card.json").read_text())
        assert card["parity"]["label_flips"] == 0
        assert card["fit"]["characters_read_of_a_text"] == 1000
        assert set(card["fit"]["ngrams"]) == {"words", "characters"}
        sketch = json.loads((job.output / "sketch.json").read_text())
        assert sketch["inputs"]["text"]["missing"] > 0
        assert sketch["inputs"]["text"]["mean"] > 10
        self._judged_again(make_job, frame, job, result)

    def _judged_again(self, make_job: MakeJob, frame: pl.DataFrame, job: Any, result: dict[str, Any]) -> None:
        later = make_job(frame, name="evaluate", kind="evaluate")
        later.spec = {"kind": "evaluate", "model": "m", "version": 1, "dataset": "d@1", "slices": ["target"]}
        job.output.rename(later.input / "model")
        report = evaluate.run(later)
        assert report["part"] == "test"
        assert sum(part["rows"] for part in report["slices"]["target"]) == report["rows"]["judged"]
        assert report["metrics"]["fp32"]["accuracy"] == result["metrics"]["accuracy"]
        smaller = make_job(frame, name="compress", kind="compress")
        smaller.spec = {"kind": "compress", "model": "m", "version": 1}
        (later.input / "model").rename(smaller.input / "model")
        assert compress.run(smaller)["variants"] == []

    def test_many_classes_of_which_some_are_rare(self, make_job: MakeJob, opinions: pl.DataFrame):
        labels = [f"c{i % 18}" if i else "once" for i in range(len(opinions))]
        texts = [f"{text} 第{label}类 {label}" for text, label in zip(opinions["text"], labels, strict=True)]
        frame = pl.DataFrame({"text": texts, "target": labels})
        params = {"regularization": 1.0, "words": 1, "characters": 3}
        result = train.run(make_job(frame, family="text_linear", split={"method": "random"}, params=params))
        assert result["metrics"]["accuracy"] > 0.8

    def test_regression_of_two_columns(self, make_job: MakeJob, opinions: pl.DataFrame):
        frame = opinions.with_columns(title=pl.col("text").str.slice(0, 5)).drop("target")
        types = {"title": "text", "text": "text"}
        job = make_job(frame, family="text_linear", task="regression", target="stars", features={"types": types})
        result = train.run(job)
        assert result["metrics"]["r2"] > 0.5
        assert result["signature"]["inputs"] == ({"name": "text", "datatype": "BYTES", "shape": (-1, 2)},)

    def test_the_same_rows_make_the_same_graph(self, make_job: MakeJob, opinions: pl.DataFrame):
        job = make_job(opinions, family="text_linear", features={"drop": ["stars"]})
        spec = TrainSpec.model_validate(job.spec).check_family()
        data = prepare(job, spec).learning(spec, 1, "cpu")
        first, second = (TextLinear(spec.params).fit(data, job).to_onnx() for _ in range(2))
        assert first == second


def _profiled(job: Any, **kinds: str) -> Any:
    """The job with these column types in its profile."""
    path: Path = job.input / "dataset" / "profile.json"
    profile = json.loads(path.read_text())
    for entry in profile["columns"]:
        entry["type"] = kinds.get(entry["name"], entry["type"])
    path.write_text(json.dumps(profile))
    return job


class TestColumns:
    def test_texts_are_read_and_the_others_are_named(self, make_job: MakeJob, opinions: pl.DataFrame):
        frame = opinions.with_columns(
            code=pl.lit("id-") + pl.int_range(pl.len()).cast(pl.String), city=pl.lit("Oslo"), empty=pl.lit("")
        )
        job = _profiled(make_job(frame, family="text_linear"), text="text", code="text", empty="text")
        prepared = prepare(job, TrainSpec.model_validate(job.spec).check_family())
        assert [column.name for column in prepared.signature.columns] == ["text"]
        warnings = prepared.notes.warnings
        for name in ("code", "city", "empty", "stars"):
            assert any(f"column '{name}' is left out" in warning for warning in warnings)

    def test_a_column_that_divides_rows_is_no_text(self, make_job: MakeJob, opinions: pl.DataFrame):
        parts = pl.Series("part", ["test" if i % 4 == 0 else "train" for i in range(len(opinions))])
        made = make_job(opinions.with_columns(parts), family="text_linear", split={"column": "part"})
        job = _profiled(made, text="text", part="text")
        prepared = prepare(job, TrainSpec.model_validate(job.spec).check_family())
        assert [column.name for column in prepared.signature.columns] == ["text"]
        assert prepared.split.test.tolist() == list(range(0, len(opinions), 4))

    @pytest.mark.parametrize(
        ("change", "error", "where", "words"),
        [
            ({"features": {"drop": ["text"]}}, InvalidData, ("features",), "no column of text is left"),
            ({"features": {"types": {"stars": "number"}}}, InvalidSpec, ("features", "types", "stars"), "text alone"),
            (
                {"features": {"steps": [{"step": "clip", "columns": ["stars"], "low": 1}]}},
                InvalidSpec,
                ("features", "steps", 0),
                "families of tables",
            ),
            (
                {"features": {"types": {"text": "text"}}, "family": "gbdt"},
                InvalidSpec,
                None,
                "use the family text_linear",
            ),
            ({"features": {"drop": ["stars"]}, "family": "gbdt"}, InvalidData, ("features",), "text_linear reads text"),
            ({"params": {"words": 0, "characters": 1}}, InvalidSpec, ("params",), "at least 2"),
        ],
    )
    def test_what_does_not_fit_is_named(
        self, make_job: MakeJob, opinions: pl.DataFrame, change: dict[str, Any], error: Any, where: Any, words: str
    ):
        job = _profiled(make_job(opinions, **{"family": "text_linear", **change}), text="text")
        with pytest.raises(error) as caught:
            train.run(job)
        assert where is None or caught.value.errors[0].loc == where
        assert words in caught.value.errors[0].msg

    def test_texts_without_a_difference(self, make_job: MakeJob, opinions: pl.DataFrame):
        frame = opinions.with_columns(text=pl.lit(None, pl.String)).drop("stars")
        with pytest.raises(InvalidData, match="are empty or the same"):
            train.run(make_job(frame, family="text_linear"))

    def test_texts_without_a_common_character(self, make_job: MakeJob):
        texts = [chr(0x4E00 + i) for i in range(40)]
        frame = pl.DataFrame({"text": texts, "target": ["a", "b"] * 20})
        with pytest.raises(InvalidData, match="lower params"):
            train.run(make_job(frame, family="text_linear"))
