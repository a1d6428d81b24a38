"""The training loop: batches, schedules, averages, mishaps."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from torch import nn

from app.core.errors import InvalidSpec, MemoryExceeded
from app.specs.families import family
from app.specs.training import SchedulerSpec, TrainingSpec
from workers.families.base import load_family
from workers.jobs import train
from workers.training import loop
from workers.training.averages import mean_of_epochs, moving_average
from workers.training.batches import Batches, Tensors
from workers.training.loop import train as train_network
from workers.training.optimizers import Lion, Plateau, make_schedule


@given(st.integers(1, 60), st.integers(1, 20), st.sampled_from([None, 7]))
def test_there_are_as_many_batches_as_announced_and_each_row_once(rows: int, size: int, seed: int | None):
    batches = Batches(Tensors((torch.arange(rows),), torch.arange(rows)), size, seed)
    got = [y.tolist() for _, y in batches]
    assert len(got) == len(batches)
    assert sorted(row for batch in got for row in batch) == list(range(rows))
    assert max(map(len, got)) <= size + 1
    assert seed is None or len(got) == 1 or size == 1 or min(map(len, got)) > 1


@pytest.mark.parametrize("size", [1, 41])  # of 42 training rows
def test_a_row_may_be_left_over(make_job: Callable[..., Any], mixed: pl.DataFrame, size: int):
    spec = {"features": {"drop": ["amount"]}, "training": {"epochs": 1, "batch_size": size}}
    job = make_job(mixed.head(60), family="mlp", **spec)
    train.run(job)
    assert json.loads((job.output / "card.json").read_text())["split"]["rows"]["train"] == 42
    assert [e["step"] for e in job.seen if e["event"] == "metric" and e["name"] == "validation_loss"] == [1]


def test_a_loss_that_was_never_finite_names_the_learning_rate(make_job: Callable[..., Any], diabetes: pl.DataFrame):
    wild = {"optimizer": {"name": "sgd", "lr": 10.0, "momentum": 0.99}, "gradient_clip": None, "batch_size": 4}
    job = make_job(diabetes, family="mlp", task="regression", training={"epochs": 2, **wild})
    with pytest.raises(InvalidSpec, match="never finite") as caught:
        train.run(job)
    assert caught.value.errors[0].loc == ("training", "optimizer", "lr")


class Small(nn.Module):
    """Two numbers to two classes; `mishap` sees each batch of a training."""

    def __init__(self, mishap: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.mishap = mishap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layers(self.mishap(x) if self.training else x)
        return answer


def fit(job: Any, network: nn.Module, **spec: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    x = torch.randn(64, 2)
    rows = Tensors((x,), (x[:, 0] > 0).long())
    training = TrainingSpec.model_validate({"epochs": 4, "batch_size": 16, "optimizer": {"lr": 0.02}, **spec})
    return train_network(network, nn.CrossEntropyLoss(), rows, rows, training, job, 1, "cpu")


def logged(job: Any) -> list[str]:
    return [e["message"] for e in job.seen if e["event"] == "log"]


@pytest.mark.parametrize("late", [False, True])
def test_out_of_memory_halves_the_batch_and_goes_on(make_job: Callable[..., Any], mixed: pl.DataFrame, late: bool):  # noqa: FBT001 - a parameter of the test
    """At once, or in the third epoch, whose checkpoint is gone on from."""
    batches: list[int] = []

    def mishap(x: torch.Tensor) -> torch.Tensor:
        batches.append(len(x))
        if len(x) > 4 and (len(batches) > 8 or not late):
            raise torch.OutOfMemoryError
        return x

    job = make_job(mixed)
    facts = fit(job, Small(mishap), epochs=5, checkpoint_every_s=0)
    assert (facts["batch_size"], facts["accumulate"], facts["epochs"]) == (4, 4, 5)
    assert facts["validation_loss"] < 0.6
    halved = [f"out of memory; going on with batches of {size} rows, {16 // size} a step" for size in (8, 4)]
    assert [m for m in logged(job) if "memory" in m] == halved
    assert batches.count(4) == 16 * (3 if late else 5)
    assert ("resumed from epoch 2" in logged(job)) == late


def test_checkpoints_of_short_epochs_are_a_second_apart(
    make_job: Callable[..., Any], mixed: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
):
    """But for the first, and unless each is asked for: a short epoch is sooner learnt again than written down."""
    saves: list[int] = []
    monkeypatch.setattr(loop, "_save", lambda trainer, _path: saves.append(trainer.current_epoch))
    fit(make_job(mixed, name="seldom"), Small(), epochs=4)
    assert saves == [0]
    saves.clear()
    fit(make_job(mixed, name="each"), Small(), epochs=4, checkpoint_every_s=0)
    assert saves == [0, 1, 2, 3]
    monkeypatch.setattr(loop, "_SAVE_S", 0.0)
    fit(make_job(mixed, name="slow"), Small(), epochs=4)
    assert saves == 2 * [0, 1, 2, 3]


def test_a_row_that_does_not_fit_ends_the_job(make_job: Callable[..., Any], mixed: pl.DataFrame):
    def mishap(_x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(MemoryExceeded, match="too small for one row"):
        fit(make_job(mixed), Small(mishap))


def test_a_run_that_diverges_keeps_its_best_epoch(make_job: Callable[..., Any], mixed: pl.DataFrame):
    batches: list[int] = []

    def mishap(x: torch.Tensor) -> torch.Tensor:
        batches.append(len(x))
        return x * (float("nan") if len(batches) > 9 else 1)

    job, network = make_job(mixed), Small(mishap)
    facts = fit(job, network)
    assert (facts["diverged_in_epoch"], facts["epochs"], facts["best_epoch"]) == (3, 2, 2)
    assert "the loss was not finite in epoch 3; an earlier one is kept" in logged(job)
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    with pytest.raises(InvalidSpec, match="never finite"):
        fit(make_job(mixed, name="at once"), Small(lambda x: x * float("nan")))


def test_lion_steps_by_signs():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0, 3.0]]))
    lion = Lion([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.tensor([[0.3, -5.0, 0.0]])
    lion.step()
    assert torch.allclose(weight.detach(), torch.tensor([[0.85, -1.8, 2.85]]))
    weight.grad = torch.tensor([[-0.1, 1.0, 0.0]])
    lion.step()  # the momentum, a hundredth of the first gradient, is too small to turn the new one's sign
    assert torch.allclose(weight.detach(), torch.tensor([[0.9075, -1.81, 2.7075]]))


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("warm_up", [None, 0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 9, 100])
def test_rates_rise_to_the_peak_and_fall(name: str, warm_up: float | None, steps: int):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    schedule = make_schedule(optimizer, SchedulerSpec.model_validate({"name": name, "warm_up": warm_up}), 0.5, steps)
    assert schedule is not None
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert 0 < max(rates) <= 0.5
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if steps == 100:
        rise = {None: 0.3 if name == "one_cycle" else 0.0}.get(warm_up, warm_up) or 0.0
        assert top == pytest.approx(100 * rise, abs=1)
        assert max(rates) == pytest.approx(0.5, rel=0.01)
        assert name == "constant" or rates[-1] < 0.1


def test_a_plateau_lowers_the_rate():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    plateau = Plateau(SchedulerSpec(name="plateau", factor=0.1, patience=1))
    trainer: Any = SimpleNamespace(optimizers=[optimizer], callback_metrics={"validation_loss": torch.tensor(1.0)})
    plateau.on_train_start(trainer, LightningModule())
    rates = []
    for _ in range(5):
        plateau.on_validation_end(trainer, LightningModule())
        rates.append(round(optimizer.param_groups[0]["lr"], 6))
    assert rates == [0.5, 0.5, 0.05, 0.05, 0.005]


def test_the_average_has_the_statistics_of_batch_norm_too():
    network = nn.BatchNorm1d(1)
    average = moving_average(network, 0.5)
    for value in (4.0, 8.0, 16.0):
        for tensor in (network.weight.data, network.running_mean):
            tensor.fill_(value)  # type: ignore[union-attr]  # there are statistics
        network.num_batches_tracked += 1  # type: ignore[operator]  # the same
        average.update_parameters(network)
    # The first state is taken whole; the share that is kept of it rises from 2/11 to the decay.
    expected = (4 * 2 / 11 + 8 * 9 / 11) * 3 / 12 + 16 * 9 / 12
    assert float(average.module.weight) == pytest.approx(expected)
    assert float(average.module.running_mean) == pytest.approx(expected)
    assert int(average.module.num_batches_tracked) == 3


def test_what_is_kept_is_the_average(make_job: Callable[..., Any], mixed: pl.DataFrame):
    made = []
    for name, ema in (("plain", None), ("averaged", 0.99)):
        network = Small()
        fit(make_job(mixed, name=name), network, ema=ema, early_stopping=None)
        made.append(network.layers[0].weight.detach().clone())
    assert not torch.equal(*made)


def test_smoothed_labels_make_modest_answers(make_job: Callable[..., Any], mixed: pl.DataFrame):
    tops = []
    for name, smoothing in (("plain", 0.0), ("smooth", 0.4)):
        network = Small()
        fit(make_job(mixed, name=name), network, label_smoothing=smoothing, epochs=20)
        tops.append(float(network(torch.randn(50, 2)).softmax(dim=1).amax(dim=1).mean().detach()))
    assert tops[1] < tops[0] - 0.05


def test_the_mean_of_epochs_weighs_all_the_same() -> None:
    network = Small()
    average = mean_of_epochs(network)
    seen = []
    for value in (1.0, 4.0, 7.0):
        with torch.no_grad():
            for weight in [*network.parameters(), network.layers[1].running_mean]:  # type: ignore[list-item]  # a buffer
                weight.fill_(value)
        average.update_parameters(network)
        seen.append(value)
    assert torch.allclose(average.module.layers[0].weight, torch.tensor(sum(seen) / 3))
    assert torch.allclose(average.module.layers[1].running_mean, torch.tensor(sum(seen) / 3))


def test_late_epochs_are_judged_and_kept_as_their_mean(make_job: Callable[..., Any], mixed: pl.DataFrame):
    """Of five epochs the last three; the rate is so high that single epochs jump about."""
    spec = {
        "epochs": 5,
        "optimizer": {"name": "sgd", "lr": 0.5},
        "scheduler": {"name": "constant"},
        "early_stopping": None,
    }
    plain, meant = Small(), Small()
    fit(make_job(mixed, name="plain"), plain, **spec)
    facts = fit(make_job(mixed, name="meant"), meant, swa=0.4, **spec)
    assert facts["validation_loss"] < 0.7
    assert not torch.equal(plain.layers[0].weight, meant.layers[0].weight)  # type: ignore[arg-type]  # a tensor


@pytest.mark.parametrize("epochs", [None, 2])
def test_frozen_layers_keep_their_weights(make_job: Callable[..., Any], mixed: pl.DataFrame, epochs: int | None):
    network, before = Small(), Small().state_dict()
    fit(make_job(mixed), network, freeze={"layers": ["layers.0", "layers.1"], "epochs": epochs}, early_stopping=None)
    same = {name: torch.equal(value, before[name]) for name, value in network.state_dict().items()}
    assert not same["layers.3.weight"]
    names = "layers.0.weight", "layers.1.weight", "layers.1.running_mean"
    assert {name: same[name] for name in names} == dict.fromkeys(names, epochs is None)


@pytest.mark.parametrize(("layers", "told"), [(["layers.7"], "layers.0"), (["layers"], "nothing could learn")])
def test_what_cannot_be_frozen_is_named(
    make_job: Callable[..., Any], mixed: pl.DataFrame, layers: list[str], told: str
):
    with pytest.raises(InvalidSpec, match=told) as caught:
        fit(make_job(mixed), Small(), freeze={"layers": layers})
    assert caught.value.errors[0].loc[:3] == ("training", "freeze", "layers")


def test_a_range_test_finds_a_rate_that_learns(make_job: Callable[..., Any], mixed: pl.DataFrame):
    """The same twice, and the network starts as if there had been none."""
    found = []
    for name in ("once", "again"):
        job = make_job(mixed, name=name)
        facts = fit(job, Small(), optimizer={"lr": "auto"}, epochs=8)
        curve = [e["value"] for e in job.seen if e["event"] == "metric" and e["name"] == "range_test_loss"]
        assert len(curve) > 30
        found.append((facts["lr"], facts["validation_loss"]))
    assert found[0] == found[1]
    assert 1e-4 < found[0][0] < 0.5
    assert found[0][1] < 0.5
    job = make_job(mixed, name="given")
    assert fit(job, Small(), optimizer={"lr": found[0][0]}, epochs=8)["validation_loss"] == found[0][1]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "lion", "schedule_free"])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_every_optimizer_learns_in_every_precision_with_clipped_gradients(
    make_job: Callable[..., Any], mixed: pl.DataFrame, optimizer: str, precision: str
):
    spec = {"optimizer": {"name": optimizer, "lr": 0.02}, "precision": precision, "gradient_clip": 1.0, "epochs": 10}
    assert fit(make_job(mixed), Small(), **spec)["validation_loss"] < 0.6


def test_fp16_needs_a_gpu(make_job: Callable[..., Any], mixed: pl.DataFrame):
    with pytest.raises(InvalidSpec, match="bf16") as caught:
        fit(make_job(mixed), Small(), precision="fp16")
    assert caught.value.errors[0].loc == ("training", "precision")


@pytest.mark.gpu
def test_fp16_learns_on_a_gpu(make_job: Callable[..., Any], mixed: pl.DataFrame):
    rows = Tensors((torch.randn(256, 2, generator=torch.Generator().manual_seed(1)),), torch.arange(256) % 2)
    rows = Tensors(rows.inputs, (rows.inputs[0][:, 0] > 0).long())
    spec = TrainingSpec.model_validate({"epochs": 10, "batch_size": 32, "precision": "fp16", "optimizer": {"lr": 0.02}})
    facts = train_network(Small(), nn.CrossEntropyLoss(), rows, rows, spec, make_job(mixed), 1, "cuda")
    assert facts["validation_loss"] < 0.4


BLOCKS: dict[str, dict[str, Any]] = {
    "resnet": {"widths": [8, 16], "dropout": 0.1}, "vit": {"width": 16, "depth": 2, "heads": 2, "dropout": 0.1},
    "convnext": {"widths": [8, 16], "depth": 1, "drop_path": 0.3}, "mobilenet": {"width": 0.1},
}  # fmt: skip


def pictures(family_name: str, side: int, params: dict[str, Any]) -> tuple[nn.Module, Tensors]:
    """A network with the same weights at each call, and rows for it."""
    torch.manual_seed(3)
    made = load_family(family(family_name), family(family_name).validate(params).model_dump())
    rows = torch.randint(0, 256, (64, 1, side, side), dtype=torch.uint8)
    return made.network((1, side, side), 2), Tensors((rows,), torch.arange(64) % 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", BLOCKS)
def test_gradient_checkpointing_changes_no_bit(make_job: Callable[..., Any], mixed: pl.DataFrame, name: str):
    """Neither weights nor statistics of batch norms nor dropout, and the average of weights goes with it."""
    found = []
    for wanted in (False, True):
        network, rows = pictures(name, 16, BLOCKS[name])
        calls: list[int] = []
        inner = next(m for m in network.recomputable()[-1].modules() if isinstance(m, nn.Linear | nn.Conv2d))  # type: ignore[operator]
        inner.register_forward_hook(lambda module, *_, calls=calls: calls.append(module.training))
        spec = {"epochs": 2, "batch_size": 16, "gradient_checkpointing": wanted, "ema": 0.9}
        job = make_job(mixed, name=str(wanted))
        train_network(network, nn.CrossEntropyLoss(), rows, rows, TrainingSpec.model_validate(spec), job, 1, "cpu")
        found.append((network.state_dict(), sum(calls)))
        assert "forward" not in vars(network.recomputable()[0])  # type: ignore[operator]  # what is exported is plain
    assert [times for _, times in found] == [8, 16]
    for key, value in found[0][0].items():
        assert torch.equal(value, found[1][0][key]), key


@pytest.mark.gpu
def test_gradient_checkpointing_saves_memory_on_a_gpu(make_job: Callable[..., Any], mixed: pl.DataFrame):
    peaks = []
    for wanted in (False, True):
        network, rows = pictures("vit", 64, {"width": 256, "depth": 12, "patch": 4})
        spec = {"epochs": 1, "batch_size": 64, "gradient_checkpointing": wanted}
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        job = make_job(mixed, name=str(wanted))
        train_network(network, nn.CrossEntropyLoss(), rows, rows, TrainingSpec.model_validate(spec), job, 1, "cuda")
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.5 * peaks[0]


def test_schedule_free_keeps_the_mean_of_its_path_and_that_norms_know_it(
    make_job: Callable[..., Any], mixed: pl.DataFrame
):
    job, network = make_job(mixed), Small()
    asked = {"optimizer": {"name": "schedule_free", "lr": 0.05}, "epochs": 6, "batch_size": 64, "checkpoint_every_s": 0}
    facts = fit(job, network, **asked)
    assert facts["validation_loss"] < 0.45
    assert facts["best_epoch"] == 6
    torch.manual_seed(1)
    x = torch.randn(64, 2)
    with torch.inference_mode():
        norm, linear = network.layers[1], network.layers[0]
        assert torch.allclose(norm.running_mean, linear(x).mean(0), atol=1e-5)  # type: ignore[operator, arg-type]
        kept = float(nn.functional.cross_entropy(network(x), (x[:, 0] > 0).long()))
    assert kept == pytest.approx(facts["validation_loss"], abs=1e-6)
    saved = torch.load(job.checkpoint / "torch.ckpt", weights_only=True)
    group = saved["optimizer_states"][0]["param_groups"][0]
    assert (group["train_mode"], group["k"]) == (False, 6)


@pytest.mark.parametrize("more", [{"scheduler": {"name": "cosine"}}, {"ema": 0.9}, {"swa": 0.5}])
def test_schedule_free_takes_no_schedule_and_no_average(more: dict[str, Any]):
    with pytest.raises(ValueError, match="schedule_free"):
        TrainingSpec.model_validate({"optimizer": {"name": "schedule_free"}, **more})
    spec = TrainingSpec.model_validate({"optimizer": {"name": "schedule_free"}})
    assert spec.scheduler.name == "constant"
    assert TrainingSpec.model_validate(spec.model_dump()) == spec
