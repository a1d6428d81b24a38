"""Published picture networks that are fine-tuned, whole or by LoRA, and folders that are refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from app.core.errors import InvalidSpec
from app.specs.compression import CompressBudget
from app.specs.families import family
from app.specs.jobs import TrainSpec
from tests.unit.learning.test_compress_networks import accuracy, maker_of
from tests.unit.learning.test_resume import assert_same_when_resumed
from workers.compression.candidate import Candidate
from workers.compression.confirming import as_made
from workers.compression.measuring import Measuring
from workers.compression.recipes import Maker
from workers.data.prepare import prepare
from workers.families.base import load_family
from workers.families.picture_weights import published_network
from workers.families.weight_folders import with_their_size
from workers.jobs import train

MakeJob = Callable[..., Any]
SIDE = 16
DIGITS = [str(digit) for digit in range(10)]
PROCESSOR = {
    "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4], "size": {"height": SIDE, "width": SIDE},
}  # fmt: skip
CONFIGS: dict[str, tuple[Any, Any]] = {
    "vit": (
        ViTForImageClassification,
        ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=SIDE,
                  patch_size=4),
    ),
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    ),
    "convnext": (
        ConvNextForImageClassification,
        ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], patch_size=2, image_size=SIDE),
    ),
    "mobilenet": (MobileNetV2ForImageClassification, MobileNetV2Config(depth_multiplier=0.1, image_size=SIDE)),
}  # fmt: skip
PLAIN: dict[str, Any] = {"vit": {"dropout": 0.0}, "resnet": {}, "convnext": {"drop_path": 0.0},
                         "mobilenet": {"dropout": 0.0}}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of each family, which tell ten digits apart by random weights."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    for name, (made, config) in CONFIGS.items():
        config.num_labels = 10
        config.id2label = dict(enumerate(DIGITS))
        made(config).save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return root


def job_of(make_job: MakeJob, root: Path, frame: pl.DataFrame, name: str, **spec: Any) -> Any:
    params = {"weights": name, **PLAIN[name], **spec.pop("params", {})}
    return make_job(
        frame, data="image", family=name, target="label", params=params, limits={"threads": 1, "weights": str(root)},
        **{"training": {"epochs": 3, "batch_size": 32, "optimizer": {"lr": 0.005}}, **spec},
    )  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_it_answers_as_published(weights: Path, name: str):
    params = family(name).validate(PLAIN[name]).model_dump()
    colours = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    scaled = (colours / 255 - torch.tensor(PROCESSOR["image_mean"])[:, None, None]) / torch.tensor(
        PROCESSOR["image_std"]
    )[:, None, None]
    same = published_network(name, weights / name, (3, SIDE, SIDE), DIGITS, params).eval()
    other = published_network(name, weights / name, (3, SIDE, SIDE), DIGITS[::-1], params).eval()
    published = CONFIGS[name][0].from_pretrained(weights / name).eval()
    with torch.inference_mode():
        wanted = published(pixel_values=scaled).logits
        assert torch.allclose(same(colours), wanted, atol=1e-4)
        assert not torch.allclose(other(colours), wanted, atol=1e-2)


def test_it_learns_on_and_exports(
    make_job: MakeJob, digits: pl.DataFrame, weights: Path, capfd: pytest.CaptureFixture[str]
):
    """As a ViT does where LoRA resumes, below."""
    name = "resnet"
    job = job_of(make_job, weights, digits.head(300), name)
    result = train.run(job)
    card = json.loads((job.output / "card.json").read_text())
    losses = [e["value"] for e in job.seen if e["event"] == "metric" and e["name"] == "validation_loss"]
    assert min(losses) < losses[0]
    assert card["parity"]["label_flips"] == 0
    assert card["fit"]["fine_tuned"]["folder"] == name
    assert card["params"]["image_size"] == SIDE
    assert "oading" not in "".join(capfd.readouterr())  # of transformers
    assert [t["shape"] for t in result["signature"]["inputs"]] == [(-1, 1, SIDE, SIDE)]  # grey, shown three times


@pytest.mark.parametrize("name", [pytest.param("vit", marks=pytest.mark.slow), "resnet"])
def test_what_was_fine_tuned_is_made_smaller(
    make_job: MakeJob, digits: pl.DataFrame, weights: Path, tmp_path: Path, name: str
):
    """Channels leave it, or layers, also where LoRA has taught it; and it learns to be rounded."""
    lora = {"params": {"lora": {"rank": 4}}} if name == "vit" else {}
    training = {"epochs": 12, "batch_size": 32, "optimizer": {"lr": 0.01}}
    maker = maker_of(job_of(make_job, weights, digits[:1000], name, **lora, training=training), tmp_path)
    smaller: dict[str, Any] = {"step": "prune", "keep": 0.5, "importance": "taylor"}
    if name == "vit":
        smaller = {"step": "drop_layers", "keep": 1, "table_rank": None}
    rounded = {"step": "learn_rounding", "operators": ["Conv", "Gemm", "MatMul"]}
    told = [accuracy(maker, recipe) for recipe in ([], [smaller], [smaller, rounded])]
    assert len(maker.make([smaller])) < 0.9 * len(maker.material.model)
    assert told[0] > 0.5
    assert told[1] > 0.7 * told[0]
    assert told[2] > 0.9 * told[1]
    assert maker.material.job is not None
    elsewhere = replace(maker.material.job, spec={**maker.material.job.spec, "limits": {"threads": 1}})
    strange = Maker(replace(maker.material, job=elsewhere, _kept={}))
    measuring = Measuring(strange, maker.material.judge, "accuracy", CompressBudget())
    assert "no folder of weights" in str(as_made(Candidate([smaller]), measuring).failed)  # by another attempt


def test_lora_changes_what_it_names_by_its_rank_and_nothing_else(
    make_job: MakeJob, digits: pl.DataFrame, weights: Path
):
    lora = {"rank": 3, "alpha": 6, "target_modules": ["q_proj", "mlp.fc1"]}
    job = job_of(make_job, weights, digits.head(200), "vit", params={"lora": lora})
    spec = TrainSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"}).check_family()
    spec = with_their_size(job, spec)
    fitted: Any = load_family(family("vit"), spec.params).fit(prepare(job, spec).learning(spec, 1, "cpu"), job)
    published = ViTForImageClassification.from_pretrained(weights / "vit").state_dict()
    found = {name.removeprefix("model."): value for name, value in fitted.network.state_dict().items()}
    assert set(published) < set(found)
    changed = {name for name, value in published.items() if not torch.equal(value, found[name])}
    adapted = {f"vit.layers.{layer}.{end}.weight" for layer in (0, 1) for end in ("attention.q_proj", "mlp.fc1")}
    assert changed == {*adapted, "classifier.weight", "classifier.bias"}
    assert {int(np.linalg.matrix_rank((found[n] - published[n]).numpy(), tol=1e-5)) for n in adapted} == {3}
    told = fitted.facts()["lora"]
    assert (told["layers"], told["weights_that_learn"]) == (4, 2 * 3 * (32 + 32) + 2 * 3 * (32 + 64))


def test_lora_resumes_to_the_very_same_weights(make_job: MakeJob, digits: pl.DataFrame, weights: Path):
    training = {"epochs": 4, "batch_size": 64, "checkpoint_every_s": 0, "gradient_checkpointing": True}
    params = {"weights": "vit", "lora": {"rank": 2, "dropout": 0.1}}
    assert_same_when_resumed(make_job, digits.head(200), data="image", family="vit", target="label", params=params,
                       training=training, limits={"threads": 1, "weights": str(weights)})  # fmt: skip


def _without_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def _unknown_scale(folder: Path) -> None:
    told = {key: value for key, value in PROCESSOR.items() if key != "image_std"}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


def _no_square(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_size": [8, 16]}))


def _huge(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_size": 1024}))


def _damaged(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "x"}))


def _no_side(folder: Path) -> None:
    told = PROCESSOR | {"size": {"height": -5, "width": -5}}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("change", "params", "where", "word"),
    [
        (_damaged, {}, ("params", "weights"), "cannot be read"),
        (_no_side, {}, ("params", "weights"), "size of -5 pixels"),
        (_without_processor, {}, ("params", "weights"), r"preprocessor_config\.json"),
        (_unknown_scale, {}, ("params", "weights"), "image_std"),
        (_no_square, {}, ("params", "weights"), "no square"),
        (_huge, {}, ("params", "weights"), "1024 pixels"),
        (None, {"image_size": 32}, ("params", "image_size"), "16 pixels"),
        (None, {"weights": "resnet"}, ("params", "weights"), "of type resnet"),
        (None, {"lora": {"target_modules": ["query"]}}, ("params", "lora", "target_modules", 0), "q_proj"),
    ],
)
def test_what_is_refused(
    make_job: MakeJob, digits: pl.DataFrame, weights: Path, tmp_path: Path,
    change: Callable[[Path], None] | None, params: dict[str, Any], where: tuple[Any, ...], word: str,
):  # fmt: skip
    root = weights
    if change is not None:
        root = tmp_path / "copy"
        shutil.copytree(weights, root)
        change(root / "vit")
    with pytest.raises(InvalidSpec, match=word) as caught:
        train.run(job_of(make_job, root, digits.head(60), "vit", params=params))
    assert caught.value.errors[0].loc == where


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"params": {"lora": {}}}, ("params", "lora")),
        ({"params": {"weights": "a", "depth": 2}}, ("params",)),
        ({"params": {"weights": "a", "lora": {}}, "training": {"freeze": {"layers": ["x"]}}}, ("training", "freeze")),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_queue(spec: dict[str, Any], where: tuple[str, ...]):
    full = {"kind": "train", "model": "m", "dataset": "d@1", "task": "classification", "target": "label",
            "family": "vit", **spec}  # fmt: skip
    with pytest.raises(InvalidSpec) as caught:
        TrainSpec.model_validate(full).check_family()
    assert caught.value.errors[0].loc == where
