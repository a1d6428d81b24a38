"""Published weights: their tokenizer inside the graph, what is taken from a folder, and what is refused."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizer

from app.core.errors import InvalidSpec
from app.specs.families import family
from app.specs.jobs import TrainSpec
from bench.texts import divisions
from tests.unit.learning.test_compress_networks import accuracy, maker_of
from tests.unit.learning.test_text import ODD, WIDE, reviews
from workers.compression.space import WEIGHTS_ALONE
from workers.data.prepare import prepare
from workers.export.torch_weights import attention_layers
from workers.families.base import load_family
from workers.families.weight_folders import find_weights
from workers.families.wordpiece import WordPiece
from workers.jobs import train

MakeJob = Callable[..., Any]
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "text"
TRAINING = {"epochs": 6, "batch_size": 16, "optimizer": {"lr": 0.003}}
MOST = 40


def tokenizer_of(texts: list[str], folder: Path, *, lower: bool = True, size: int = 400) -> BertTokenizer:
    """BERT's tokenizer with pieces learnt from `texts`."""
    made = BertWordPieceTokenizer(lowercase=lower)
    made.train_from_iterator(texts, vocab_size=size, min_frequency=2, show_progress=False)
    made.save_model(str(folder))
    return BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=lower)


def differing(tokenizer: BertTokenizer, *texts: list[str], most: int = MOST) -> list[Any]:
    """Rows, of one text or of two, whose pieces are others in the graph than by transformers."""
    pieces = WordPiece.of(tokenizer.backend_tokenizer, most, 1000)
    rows = np.array(list(zip(*texts, strict=True)), object)
    found = [[int(token) - 1 for token in row if token] for row in pieces.transform(rows)]
    # What users write is text: "[SEP]" in it is a bracket and a word.
    wanted = tokenizer(*texts, truncation=len(texts) == 1, max_length=most, split_special_tokens=True)["input_ids"]
    assert [tokens for tokens in wanted if len(tokens) > 4]
    short = [i for i, tokens in enumerate(wanted) if len(tokens) <= most]
    return [rows[i].tolist() for i in short if found[i] != wanted[i]]


class TestWordPiece:
    @pytest.mark.parametrize("lower", [True, False])
    def test_pieces_are_those_of_transformers(self, tmp_path: Path, lower: bool):  # noqa: FBT001 - a parameter
        draw = random.Random(1)  # noqa: S311 - texts
        texts = reviews(100)["text"].to_list()
        usual = list("aAbroomßéÉİﬁΣ가房间,.'-\t\n\u200d\u0301\u00ad ")
        every = [chr(code) for code in range(0x20, 0x30000) if not 0xD800 <= code < 0xE000]
        odd = [
            "".join(draw.choice(usual if draw.random() < 0.6 else every) for _ in range(draw.randint(0, 50)))
            for _ in range(800)
        ]
        odd += [*ODD, "roomroom" * 20, "a" * 100, "a" * 101 + " b", "[SEP] [MASK]", "Room".translate(WIDE)]
        known = tokenizer_of([*texts, *usual * 3], tmp_path, lower=lower)
        assert differing(known, [*texts, *odd]) == []
        assert differing(known, texts[:50], odd[:50]) == []

    @pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data, which is not part of the repository")
    @pytest.mark.parametrize("name", ["ag-news", "thucnews"])
    def test_real_texts(self, tmp_path: Path, name: str):
        rows, judges = next(divisions(name, SHARED))
        known = tokenizer_of([text for text, _ in rows[:2000]], tmp_path, size=4000)
        assert differing(known, [text for text, _ in judges[:700]], most=64) == []

    def test_another_tokenizer_is_refused(self, tmp_path: Path):
        known = tokenizer_of(reviews(50)["text"].to_list(), tmp_path).backend_tokenizer
        told = json.loads(known.to_str())
        told["pre_tokenizer"] = {"type": "Whitespace"}
        with pytest.raises(InvalidSpec, match="only BERT's WordPiece"):
            WordPiece.of(type(known).from_str(json.dumps(told)), 8, 100)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of folders; `tiny` has a small BERT that nobody has trained, `two` one of two layers."""
    root = tmp_path_factory.mktemp("weights")
    for name, layers in (("tiny", 1), ("two", 2)):
        folder = root / name
        folder.mkdir()
        tokenizer = tokenizer_of(reviews()["text"].to_list(), folder)
        torch.manual_seed(3)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return root


def job_of(make_job: MakeJob, root: Path, weights: str = "tiny", name: str = "job", **spec: Any) -> Any:
    params = {"weights": weights, "max_tokens": MOST, "dropout": 0.0}
    spec = {"training": TRAINING, "features": {"drop": ["stars"]}, **spec, "params": params | spec.get("params", {})}
    return make_job(reviews(120), name=name, family="transformer", limits={"threads": 1, "weights": str(root)}, **spec)


def test_a_model_is_fine_tuned(make_job: MakeJob, weights: Path):
    job = job_of(make_job, weights, compress={"max_metric_drop": 0.2})
    result = train.run(job)
    assert result["metrics"]["accuracy"] > 0.85
    card = json.loads((job.output / "card.json").read_text())
    assert card["parity"]["label_flips"] == 0
    assert card["fit"]["fine_tuned"]["folder"] == "tiny"
    assert len(card["fit"]["fine_tuned"]["sha256"]) == 64
    assert card["fit"]["tokens_read_of_a_row"] == MOST


def test_it_begins_with_the_published_weights(make_job: MakeJob, weights: Path):
    job = job_of(make_job, weights)
    from workers.families.transformer import Transformer  # noqa: PLC0415 - beside its use

    made = Transformer(TrainSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"})
                         .check_family().params)  # fmt: skip
    network = made.make(made.reader(np.array([["a"]], object), job), 2, job)
    published = BertModel.from_pretrained(weights / "tiny").state_dict()
    found = network.encoder.state_dict()  # type: ignore[union-attr]
    assert found
    for name, value in found.items():
        assert torch.equal(value, published[name]), name


def test_lora_changes_queries_and_values_alone(make_job: MakeJob, weights: Path):
    job = job_of(make_job, weights, params={"lora": {"rank": 2}},
                 training={"epochs": 1, "batch_size": 16, "gradient_checkpointing": True})  # fmt: skip
    spec = TrainSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"}).check_family()
    fitted: Any = load_family(family("transformer"), spec.params).fit(prepare(job, spec).learning(spec, 1, "cpu"), job)
    published, found = BertModel.from_pretrained(weights / "tiny").state_dict(), fitted.network.encoder.state_dict()
    changed = {name for name, value in found.items() if not torch.equal(value, published[name])}
    assert changed == {f"encoder.layer.0.attention.self.{end}.weight" for end in ("query", "value")}
    assert fitted.facts()["lora"]["weights_that_learn"] == 2 * 2 * (32 + 32)


@pytest.mark.slow
def test_what_lora_has_taught_loses_layers_and_learns_to_be_rounded(make_job: MakeJob, weights: Path, tmp_path: Path):
    job = job_of(
        make_job, weights, "two", params={"lora": {"rank": 4}}, training={**TRAINING, "optimizer": {"lr": 0.01}}
    )
    maker = maker_of(job, tmp_path)
    short = {"step": "drop_layers", "keep": 1, "table_rank": 8}
    assert [attention_layers(maker.graph(recipe)) for recipe in ([], [short])] == [2, 1]
    assert accuracy(maker, [short]) > accuracy(maker, []) - 0.1
    int8 = [short, {"step": "learn_rounding", "operators": ["MatMul", "Gemm"]}, WEIGHTS_ALONE]
    assert accuracy(maker, int8) > accuracy(maker, [short]) - 0.1


def broken(root: Path, tmp_path: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(root, tmp_path / "copy")
    change(tmp_path / "copy" / "tiny")
    return tmp_path / "copy"


def _as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(BertModel(BertConfig.from_pretrained(folder)).state_dict(), folder / "pytorch_model.bin")


def _outside(folder: Path) -> None:
    shutil.move(folder, folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def _other_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))


def _more_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))


CHANGES: tuple[tuple[Callable[[Path], object], str], ...] = (
    (_as_pickle, r"has no model\.safetensors"),
    (_outside, "has no 'tiny'"),
    (_other_type, "of type gpt2"),
    (_more_layers, "weights lack 16"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" * 100), "cannot be read"),
    (lambda folder: (folder / "config.json").write_text("[]"), "not one of transformers"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "that can be read"),
    (lambda folder: [path.unlink() for path in folder.glob("*toke*")] + [(folder / "vocab.txt").unlink()], "vocab.txt"),
)


@pytest.mark.parametrize(("change", "word"), CHANGES)
def test_folders_that_are_refused(
    make_job: MakeJob, weights: Path, tmp_path: Path, change: Callable[[Path], object], word: str
):
    with pytest.raises(InvalidSpec, match=word) as caught:
        train.run(job_of(make_job, broken(weights, tmp_path, change)))
    assert caught.value.errors[0].loc == ("params", "weights")


def test_a_name_may_have_an_owner_as_on_a_hub(make_job: MakeJob, weights: Path):
    job = job_of(make_job, weights.parent, f"{weights.name}/tiny")
    assert find_weights(job, f"{weights.name}/tiny", "bert") == weights / "tiny"


def test_names_that_are_refused(make_job: MakeJob, weights: Path):
    for name in ("../tiny", "/tiny", "tiny/../tiny", "a\\b", ".", "https://x", "tiny\n"):
        with pytest.raises(InvalidSpec) as caught:
            train.run(job_of(make_job, weights, name))
        assert caught.value.errors[0].loc == ("params", "weights")
    with pytest.raises(InvalidSpec, match="has no 'big'"):
        train.run(job_of(make_job, weights, "big"))
    with pytest.raises(InvalidSpec, match="AIMASS_WORKER_WEIGHTS"):
        train.run(make_job(reviews(60), family="transformer", params={"weights": "tiny"}))
    with pytest.raises(InvalidSpec, match="64 tokens at most"):
        train.run(job_of(make_job, weights, params={"max_tokens": 65}))
    with pytest.raises(InvalidSpec) as caught:
        train.run(job_of(make_job, weights, params={"depth": 4}))
    assert "bring their own depth" in caught.value.errors[0].msg
