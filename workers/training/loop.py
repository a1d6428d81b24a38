"""The training loop of torch families, on Lightning: schedule, early stopping, checkpoints, live metrics, mishaps."""

import copy
import gc
import logging
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from app.core.errors import InvalidSpec, MemoryExceeded
from app.specs.jobs import TrainingSpec
from workers.context import JobContext, Stopped
from workers.training.batches import Batch, Batches, Change, Source, Tensors
from workers.training.optimizers import Plateau, make_optimizer, make_schedule

_CHECKPOINT = "torch.ckpt"
_EVALUATION_BATCH = 1024
_LOSS_EVERY = 20  # optimizer steps between points of the live loss curve


class _Diverged(Exception):
    """A loss is not finite."""


class _Learner(LightningModule):
    """A network with its loss, optimizer, schedule and, if wanted, the moving average of its weights."""

    def __init__(self, network: nn.Module, loss: nn.Module, spec: TrainingSpec, job: JobContext) -> None:
        super().__init__()
        self.network, self.loss, self.spec, self.job = network, loss, spec, job
        self.learning_loss = nn.CrossEntropyLoss(label_smoothing=spec.label_smoothing) if spec.label_smoothing else loss
        self.average: AveragedModel | None = None
        if spec.ema is not None:
            self.average = _moving_average(network, spec.ema)

    @property
    def judged(self) -> nn.Module:
        """What validation rows judge and what is kept: the average of the weights, or the weights."""
        return self.network if self.average is None else self.average.module

    def training_step(self, batch: Batch, index: int) -> Tensor:
        inputs, y = batch
        loss: Tensor = self.learning_loss(self.network(*inputs).float(), y)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _Diverged
        if index % _LOSS_EVERY == 0:
            self.job.metric("train_loss", self.global_step, value)
        return loss

    def optimizer_step(self, *args: Any, **more: Any) -> None:  # noqa: ANN401 - the hook's signature
        super().optimizer_step(*args, **more)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def validation_step(self, batch: Batch, _index: int) -> None:
        inputs, y = batch
        answers = self.judged(*inputs).float()
        self.log("validation_loss", self.loss(answers, y), batch_size=len(y))
        if not y.is_floating_point():
            self.log("validation_accuracy", (answers.argmax(dim=1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - one of many forms that Lightning takes
        spec, optimizer = self.spec, make_optimizer(self.network, self.spec)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = make_schedule(optimizer, spec.scheduler, spec.optimizer.lr, steps)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """Weights and batch-norm statistics, averaged after each step; the first steps, which know little, weigh less."""

    def blend(average: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return now
        return torch.lerp(average, now, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return AveragedModel(network, avg_fn=blend, use_buffers=True).requires_grad_(requires_grad=False)


class _BestWeights(Callback):
    """Remembers the weights of the epoch with the lowest validation loss."""

    def __init__(self) -> None:
        self.loss, self.epoch, self.weights = float("inf"), -1, {}  # type: float, int, dict[str, Tensor]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = float(trainer.callback_metrics["validation_loss"])
        if not math.isfinite(loss):
            raise _Diverged
        if loss < self.loss:
            self.loss, self.epoch = loss, trainer.current_epoch
            judged = cast("_Learner", pl_module).judged.state_dict()
            self.weights = {k: v.detach().cpu().clone() for k, v in judged.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss, self.epoch, self.weights = state_dict["loss"], state_dict["epoch"], state_dict["weights"]


class _Watch(Callback):
    """Live metrics and progress; a checkpoint after each epoch, announced as often as the spec says; a way to stop."""

    def __init__(self, job: JobContext, spec: TrainingSpec) -> None:
        self.job, self.spec = job, spec
        self.announced = self.started = time.monotonic()
        self.first_epoch = 0
        self.saved = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - the hook's signature
        self.started, self.first_epoch = time.monotonic(), trainer.current_epoch
        if trainer.current_epoch:
            self.job.log(f"resumed from epoch {trainer.current_epoch}")

    def on_train_batch_end(self, *_args: Any, **_more: Any) -> None:  # noqa: ANN401 - the hook's signature, unused
        if self.job.should_stop():
            self.stop()

    def stop(self) -> NoReturn:
        """Announce the last whole epoch, which is on disk, and end."""
        if self.saved:
            self.job.checkpointed()
        raise Stopped

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - as above
        epoch = trainer.current_epoch + 1
        for name in ("validation_loss", "validation_accuracy"):
            if name in trainer.callback_metrics:
                self.job.metric(name, epoch, float(trainer.callback_metrics[name]))
        left = (time.monotonic() - self.started) / (epoch - self.first_epoch) * (self.spec.epochs - epoch)
        self.job.progress(0.1 + 0.7 * epoch / self.spec.epochs, f"epoch {epoch} of at most {self.spec.epochs}", left)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        _save(trainer, self.job.checkpoint / _CHECKPOINT)
        self.saved = True
        if time.monotonic() - self.announced >= self.spec.checkpoint_every_s:
            self.announced = time.monotonic()
            self.job.checkpointed()

    def state_dict(self) -> dict[str, Any]:
        return {"rng": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        torch.set_rng_state(state_dict["rng"])


def _save(trainer: Trainer, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.part")
    trainer.save_checkpoint(aside)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)


def train(  # noqa: PLR0913, PLR0917 - a network, its data and its surroundings
    network: nn.Module, loss: nn.Module, data: Source, validation: Tensors, spec: TrainingSpec, job: JobContext,
    threads: int, device: str, change: Change | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train `network` in place and leave it on the CPU, in evaluation mode, with its best weights.

    When the device's memory is too small, batches are halved, as many more make up a step, and the run goes on from
    its last whole epoch.

    Args:
        network: maps the input tensors of `data` to logits [N, K] or values [N, 1].
        loss: of the network's answers and `y`.
        data: training rows.
        validation: rows for early stopping.
        spec: epochs, optimizer, schedule and so on.
        job: gets progress, metrics and checkpoints, and says when to stop.
        threads: of torch.
        device: cpu or cuda.
        change: varies training batches; the loss must take the targets that it gives.

    Returns:
        Facts for the model card: epochs run, the best one and its validation loss; the epoch that diverged, if one did;
        the size of batches, if it had to be halved.

    Raises:
        Stopped: the job was asked to stop; its checkpoint holds the last whole epoch.
        InvalidSpec: the loss was not finite before any epoch was good.
        MemoryExceeded: a single row does not fit the device's memory.
    """
    torch.set_num_threads(threads)
    first, rng = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    evaluation, now = max(spec.batch_size, _EVALUATION_BATCH), spec
    while True:
        learner = _Learner(network, loss, now, job)
        rows = Batches(data, now.batch_size, now.seed, change), Batches(validation, evaluation)
        try:
            facts = _fit(learner, *rows, device)
            break
        except torch.OutOfMemoryError:
            pass  # here the frames of the failed run, which hold its memory, are gone
        now, evaluation = _halve(now, device, job), max(1, evaluation // 2)
        network.cpu().load_state_dict(first)
        torch.set_rng_state(rng)
    if now is not spec:
        facts |= {"batch_size": now.batch_size, "accumulate": now.accumulate}
    return facts


def _halve(spec: TrainingSpec, device: str, job: JobContext) -> TrainingSpec:
    """Half the batch, and as many more of them a step; frees what the failed run held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    if spec.batch_size == 1:
        raise MemoryExceeded("the device's memory is too small for one row; take a smaller network or picture")
    size = spec.batch_size // 2
    steps = -(-spec.batch_size * spec.accumulate // size)
    job.log(f"out of memory; going on with batches of {size} rows, {steps} a step", level="warning")
    return spec.model_copy(update={"batch_size": size, "accumulate": steps})


def _fit(learner: _Learner, rows: Batches, validation: Batches, device: str) -> dict[str, Any]:
    """One run, from the job's checkpoint if there is one; the facts of `train`."""
    spec, job = learner.spec, learner.job
    best, watch = _BestWeights(), _Watch(job, spec)
    resume, facts = job.checkpoint / _CHECKPOINT, {}  # type: Path, dict[str, Any]
    with _quiet():
        trainer = _trainer(spec, job, [best, *_rules(spec), watch], device)
        rows.epoch = lambda: trainer.current_epoch
        try:
            trainer.fit(learner, rows, validation, ckpt_path=resume if resume.exists() else None, weights_only=True)
        except SIGTERMException:  # Lightning looks for the signal too, and may see it before `watch` does
            watch.stop()
        except _Diverged:
            facts["diverged_in_epoch"] = trainer.current_epoch + 1
    if not best.weights:
        raise InvalidSpec.at("training", "optimizer", "lr", msg="the validation loss was never finite; lower the rate")
    if facts:
        job.log(f"the loss was not finite in epoch {facts['diverged_in_epoch']}; an earlier one is kept", "warning")
    learner.network.load_state_dict(copy.deepcopy(best.weights))
    learner.network.cpu().eval()
    return {"epochs": trainer.current_epoch, "best_epoch": best.epoch + 1, "validation_loss": best.loss, **facts}


def _rules(spec: TrainingSpec) -> list[Callback]:
    """What watches the validation loss."""
    rules: list[Callback] = [Plateau(spec.scheduler)] if spec.scheduler.name == "plateau" else []
    if (stopping := spec.early_stopping) is not None:
        rules.append(EarlyStopping("validation_loss", patience=stopping.patience, min_delta=stopping.min_delta))
    return rules


def _trainer(spec: TrainingSpec, job: JobContext, callbacks: list[Callback], device: str) -> Trainer:
    return Trainer(
        max_epochs=spec.epochs, accelerator="gpu" if device == "cuda" else "cpu", devices=1, callbacks=callbacks,
        precision="bf16-mixed" if spec.precision == "bf16" else "32-true",
        gradient_clip_val=spec.gradient_clip,
        accumulate_grad_batches=spec.accumulate, logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=job.folder,
    )  # fmt: skip


class _quiet(warnings.catch_warnings):  # noqa: N801 - used as a function
    """No banners, tips or hints of Lightning in the job's output."""

    _LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        for name in self._LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
