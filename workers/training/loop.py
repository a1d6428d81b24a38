"""The training loop of torch families, on Lightning: batches, schedule, early stopping, checkpoints, live metrics."""

import copy
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from app.core.errors import InvalidSpec
from app.specs.jobs import TrainingSpec
from workers.context import JobContext, Stopped

_CHECKPOINT = "torch.ckpt"
_EVALUATION_BATCH = 1024
_LOSS_EVERY = 20  # optimizer steps between points of the live loss curve


@dataclass(frozen=True, slots=True)
class Tensors:
    """Rows in memory: model arguments and the target, first axis = rows."""

    inputs: tuple[Tensor, ...]
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


class Batches:
    """Whole batches by index, much cheaper than collating rows. The order depends on seed and epoch alone."""

    def __init__(self, data: Tensors, size: int, seed: int | None = None) -> None:
        self.data, self.size, self.seed = data, size, seed
        self.epoch: Callable[[], int] = lambda: 0

    def __len__(self) -> int:
        return len(self._sizes())

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        count = len(self.data)
        order = torch.arange(count)
        if self.seed is not None:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed * 100_003 + self.epoch()))
        for rows in torch.split(order, self._sizes()):
            yield tuple(x[rows] for x in self.data.inputs), self.data.y[rows]

    def _sizes(self) -> list[int]:
        """Rows of each batch. A last row that is left over in training joins the batch before it."""
        whole, rest = divmod(len(self.data), self.size)
        sizes = [self.size] * whole + [rest] * bool(rest)
        if self.seed is not None and rest == 1 and whole:
            sizes[-2:] = [self.size + 1]  # batch norm cannot learn from one row
        return sizes


class _Learner(LightningModule):
    """A network with its loss, optimizer and schedule."""

    def __init__(self, network: nn.Module, loss: nn.Module, spec: TrainingSpec, job: JobContext) -> None:
        super().__init__()
        self.network, self.loss, self.spec, self.job = network, loss, spec, job

    def training_step(self, batch: tuple[tuple[Tensor, ...], Tensor], index: int) -> Tensor:
        inputs, y = batch
        loss: Tensor = self.loss(self.network(*inputs), y)
        if index % _LOSS_EVERY == 0:
            self.job.metric("train_loss", self.global_step, float(loss.detach()))
        return loss

    def validation_step(self, batch: tuple[tuple[Tensor, ...], Tensor], _index: int) -> None:
        inputs, y = batch
        answers = self.network(*inputs)
        self.log("validation_loss", self.loss(answers, y), batch_size=len(y))
        if not y.is_floating_point():
            self.log("validation_accuracy", (answers.argmax(dim=1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - one of many forms that Lightning takes
        spec, optimizer = self.spec, _optimizer(self.network, self.spec)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule: torch.optim.lr_scheduler.LRScheduler
        if spec.scheduler.name == "one_cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, spec.optimizer.lr, total_steps=steps + 1)
        elif spec.scheduler.name == "cosine":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        else:
            schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _optimizer(network: nn.Module, spec: TrainingSpec) -> torch.optim.Optimizer:
    """Weight decay acts on matrices and filters, not on biases and norms."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": spec.optimizer.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    lr = spec.optimizer.lr
    if spec.optimizer.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=spec.optimizer.momentum)
    return (torch.optim.Adam if spec.optimizer.name == "adam" else torch.optim.AdamW)(groups, lr=lr)


class _BestWeights(Callback):
    """Remembers the weights of the epoch with the lowest validation loss."""

    def __init__(self) -> None:
        self.loss, self.epoch, self.weights = float("inf"), -1, {}  # type: float, int, dict[str, Tensor]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = float(trainer.callback_metrics["validation_loss"])
        if loss < self.loss:
            self.loss, self.epoch = loss, trainer.current_epoch
            self.weights = {
                k: v.detach().cpu().clone() for k, v in cast("_Learner", pl_module).network.state_dict().items()
            }

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
    network: nn.Module, loss: nn.Module, data: Tensors, validation: Tensors, spec: TrainingSpec, job: JobContext,
    threads: int, device: str,
) -> dict[str, Any]:  # fmt: skip
    """Train `network` in place and leave it on the CPU, in evaluation mode, with its best weights.

    Args:
        network: maps the tensors of `data.inputs` to logits [N, K] or values [N, 1].
        loss: of the network's answers and `y`.
        data: training rows.
        validation: rows for early stopping.
        spec: epochs, optimizer, schedule and so on.
        job: gets progress, metrics and checkpoints, and says when to stop.
        threads: of torch.
        device: cpu or cuda.

    Returns:
        Facts for the model card: epochs run, the best one and its validation loss.

    Raises:
        Stopped: the job was asked to stop; its checkpoint holds the last whole epoch.
        InvalidSpec: the loss was not finite after any epoch.
    """
    torch.set_num_threads(threads)
    best, watch = _BestWeights(), _Watch(job, spec)
    callbacks: list[Callback] = [best]
    if spec.early_stopping is not None:
        stopping = spec.early_stopping
        callbacks.append(EarlyStopping("validation_loss", patience=stopping.patience, min_delta=stopping.min_delta))
    callbacks.append(watch)
    with _quiet():
        trainer = Trainer(
            max_epochs=spec.epochs, accelerator="gpu" if device == "cuda" else "cpu", devices=1, callbacks=callbacks,
            precision="bf16-mixed" if spec.precision == "bf16" else "32-true",
            gradient_clip_val=spec.gradient_clip,
            accumulate_grad_batches=spec.accumulate, logger=False, enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=job.folder,
        )  # fmt: skip
        batches = Batches(data, spec.batch_size, spec.seed)
        batches.epoch = lambda: trainer.current_epoch
        resume = job.checkpoint / _CHECKPOINT
        learner = _Learner(network, loss, spec, job)
        try:
            trainer.fit(
                learner, batches, Batches(validation, max(spec.batch_size, _EVALUATION_BATCH)),
                ckpt_path=resume if resume.exists() else None, weights_only=True,
            )  # fmt: skip
        except SIGTERMException:  # Lightning looks for the signal too, and may see it before `watch` does
            watch.stop()
    if not best.weights:
        raise InvalidSpec.at("training", "optimizer", "lr", msg="the validation loss was never finite; lower the rate")
    network.load_state_dict(copy.deepcopy(best.weights))
    network.cpu().eval()
    return {"epochs": trainer.current_epoch, "best_epoch": best.epoch + 1, "validation_loss": best.loss}


class _quiet(warnings.catch_warnings):  # noqa: N801 - used as a function
    """No banners, tips or hints of Lightning in the job's output."""

    _LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        for name in self._LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
