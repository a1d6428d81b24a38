"""The training loop of torch families, on Lightning: schedule, early stopping, checkpoints, live metrics, mishaps."""

import copy
import gc
import math
import os
import time
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from app.core.errors import InvalidSpec, MemoryExceeded
from app.specs.training import TrainingSpec
from workers.context import JobContext, Stopped
from workers.training.averages import mean_of_epochs, moving_average
from workers.training.batches import ALONE, Batch, Batches, Change, Rank, Source, Tensors
from workers.training.losses import ClassLoss
from workers.training.optimizers import make_optimizer, make_schedule, rate_of
from workers.training.range_test import find_rate
from workers.training.ranks import Fit, on_ranks
from workers.training.recompute import recomputed
from workers.training.sharing import shared_loss, shared_means, shared_norms
from workers.training.trainer import holds, make_trainer, quiet, rules

_CHECKPOINT = "torch.ckpt"
_EVALUATION_BATCH = 1024
_SAVE_S = 1.0  # between checkpoints: less is sooner learnt again than written down
_LOSS_EVERY = 20  # optimizer steps between points of the live loss curve


class _Diverged(Exception):
    """A loss is not finite."""


class _Learner(LightningModule):
    """A network with its loss, optimizer, schedule and, if wanted, the moving average of its weights."""

    def __init__(
        self, network: nn.Module, loss: nn.Module, spec: TrainingSpec, job: JobContext, rank: Rank = ALONE
    ) -> None:
        super().__init__()
        self.network, self.loss, self.spec, self.job, self.rank = network, loss, spec, job, rank
        self.learning_loss = loss
        if spec.label_smoothing:
            plain = loss if isinstance(loss, ClassLoss) else ClassLoss()
            self.learning_loss = plain.smoothed(spec.label_smoothing)
        self.average: AveragedModel | None = None
        if spec.ema is not None:
            self.average = moving_average(network, spec.ema)
        elif spec.swa is not None:
            self.average = mean_of_epochs(network)

    def __setattr__(self, name: str, value: object) -> None:
        """As a module, but for the name of the hook under way: Lightning sets it 40 times a step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, cast("nn.Module", value))

    @property
    def judged(self) -> nn.Module:
        """What validation rows judge and what is kept: the weights, or their average once there is one."""
        if self.average is None or not int(self.average.n_averaged):
            return self.network
        return self.average.module

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """As Lightning does it, which takes its time to find nothing to do on a CPU."""
        if device.type == "cpu":
            return batch
        moved: Batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved

    def training_step(self, batch: Batch, index: int) -> Tensor:
        inputs, y = batch
        loss, value = shared_loss(self.learning_loss(self.network(*inputs).float(), y), len(y), self.rank)
        if not math.isfinite(value):
            raise _Diverged
        if index % _LOSS_EVERY == 0:
            self.job.metric("train_loss", self.global_step, value)
        return loss

    def optimizer_step(self, *args: Any, **more: Any) -> None:  # noqa: ANN401 - the hook's signature
        super().optimizer_step(*args, **more)
        if self.average is not None and self.spec.ema is not None:
            self.average.update_parameters(self.network)

    def on_validation_epoch_start(self) -> None:
        late = self.spec.swa is not None and self.current_epoch >= self.spec.swa * self.spec.epochs
        if self.average is not None and late:
            self.average.update_parameters(self.network)

    def validation_step(self, batch: Batch, _index: int) -> None:
        inputs, y = batch
        answers = self.judged(*inputs).float()
        told = [self.loss(answers, y)]
        if not y.is_floating_point():
            told.append((answers.argmax(dim=1) == y).float().mean())
        # Lightning's own mean over ranks takes each to have as many rows.
        means, rows = shared_means(torch.stack(told), len(y), self.rank)
        for name, mean in zip(("validation_loss", "validation_accuracy"), means, strict=False):
            self.log(name, mean, batch_size=rows)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - one of many forms that Lightning takes
        spec, optimizer = self.spec, make_optimizer(self.network, self.spec)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = make_schedule(optimizer, spec.scheduler, rate_of(spec), steps)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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
    """Live metrics and progress; a checkpoint after epochs, announced as often as the spec says; a way to stop."""

    def __init__(self, job: JobContext, spec: TrainingSpec) -> None:
        self.job, self.spec = job, spec
        self.announced = self.started = time.monotonic()
        self.written = -math.inf
        self.first_epoch = 0
        self.saved = self.over = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - the hook's signature
        self.started, self.first_epoch = time.monotonic(), trainer.current_epoch
        if trainer.current_epoch:
            self.job.log(f"resumed from epoch {trainer.current_epoch}")
        trainer.should_stop = self.over  # Lightning's early stopping would go on for an epoch

    def on_train_batch_end(self, *_args: Any, **_more: Any) -> None:  # noqa: ANN401 - the hook's signature, unused
        if self.job.should_stop():
            self.stop()

    def stop(self) -> NoReturn:
        """Announce the last whole epoch that is on disk, and end."""
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

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.over, now = trainer.should_stop, time.monotonic()
        alone = cast("_Learner", pl_module).rank.size == 1  # ranks save together, and each has a clock of its own
        if alone and now - self.written < min(_SAVE_S, self.spec.checkpoint_every_s):
            return
        _save(trainer, self.job.checkpoint / _CHECKPOINT)
        self.saved, self.written = True, now
        if now - self.announced >= self.spec.checkpoint_every_s:
            self.announced = now
            self.job.checkpointed()

    def state_dict(self) -> dict[str, Any]:
        return {"rng": torch.get_rng_state(), "over": self.over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        torch.set_rng_state(state_dict["rng"])
        self.over = state_dict["over"]


def _save(trainer: Trainer, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.part")
    trainer.save_checkpoint(aside)
    if not trainer.is_global_zero:
        return
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)


def train(  # noqa: PLR0913, PLR0917 - a network, its data and its surroundings
    network: nn.Module, loss: nn.Module, data: Source, validation: Tensors, spec: TrainingSpec, job: JobContext,
    threads: int, device: str, change: Change | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train `network` in place and leave it on the CPU, in evaluation mode, with its best weights.

    When the device's memory is too small, batches are halved, as many more make up a step, and the run goes on from
    its checkpoint. With `spec.devices` above 1, as many processes learn, each from its rows of every batch.

    Args:
        network: maps the input tensors of `data` to logits [N, K] or values [N, 1].
        loss: of the network's answers and `y`, a mean over rows.
        data: training rows.
        validation: rows for early stopping.
        spec: epochs, optimizer, schedule and so on.
        job: gets progress, metrics and checkpoints, and says when to stop.
        threads: of torch, which several devices of a CPU share.
        device: cpu or cuda.
        change: varies training batches; the loss must take the targets that it gives.

    Returns:
        Facts for the model card: epochs run, the best one and its validation loss; the epoch that diverged, if one did;
        the size of batches, if it had to be halved; the learning rate, if it was to be found.

    Raises:
        Stopped: the job was asked to stop; its checkpoint holds the last whole epoch that was written down.
        InvalidSpec: the loss was not finite before any epoch was good; a layer is not there; fp16 on a CPU; the rows
            cannot be shared by so many devices.
        MemoryExceeded: a single row does not fit the device's memory.
        Crashed: one of several processes was killed.
    """
    torch.set_num_threads(threads)
    if spec.precision == "fp16" and device == "cpu":
        raise InvalidSpec.at("training", "precision", msg="this worker trains on a CPU, which has no fp16; use bf16")
    first, rng = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    evaluation, now = max(spec.batch_size, _EVALUATION_BATCH), spec
    while True:
        try:
            tuned = _with_rate(network, loss, Batches(data, now.batch_size, now.seed, change), now, job, device)
            fit = Fit(network, loss, data, validation, tuned, device, change, evaluation)
            facts = _run(fit, job) if spec.devices == 1 else _together(fit, job, threads)
            break
        except torch.OutOfMemoryError:
            pass  # here the frames of the failed run, which hold its memory, are gone
        now, evaluation = _halve(now, device, job), max(spec.devices, evaluation // 2)
        network.cpu().load_state_dict(first)
        torch.set_rng_state(rng)
    if tuned is not now:
        facts["lr"] = tuned.optimizer.lr
    if now is not spec:
        facts |= {"batch_size": now.batch_size, "accumulate": now.accumulate}
    return facts


def _with_rate(
    network: nn.Module, loss: nn.Module, batches: Batches, spec: TrainingSpec, job: JobContext, device: str
) -> TrainingSpec:  # fmt: skip
    """The spec with a learning rate in place of `auto`."""
    if spec.optimizer.lr != "auto":
        return spec
    with recomputed(network, wanted=spec.gradient_checkpointing):
        rate = find_rate(network, loss, batches, spec, job, device)
    job.log(f"the range test found a learning rate of {rate:.3g}")
    return spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"lr": rate})})


def _halve(spec: TrainingSpec, device: str, job: JobContext) -> TrainingSpec:
    """Half the batch, and as many more of them a step; frees what the failed run held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    if spec.batch_size < 2 * spec.devices:
        raise MemoryExceeded("the device's memory is too small for one row; take a smaller network or picture")
    size = spec.batch_size // 2
    steps = -(-spec.batch_size * spec.accumulate // size)
    job.log(f"out of memory; going on with batches of {size} rows, {steps} a step", level="warning")
    return spec.model_copy(update={"batch_size": size, "accumulate": steps})


def _together(fit: Fit, job: JobContext, threads: int) -> dict[str, Any]:
    """`_run` on several devices. When the job is to stop, its last whole epoch, which is on disk, is announced."""
    try:
        return on_ranks(_run, fit, job, threads)
    except Stopped:
        path = job.checkpoint / _CHECKPOINT
        path.with_name(f"{path.name}.part").unlink(missing_ok=True)
        if path.exists():
            job.checkpointed()
        raise


def _run(fit: Fit, job: JobContext, rank: Rank = ALONE) -> dict[str, Any]:
    """One run on one device, alone or as one of several ranks; the facts of `train`."""
    network, spec = fit.network, fit.spec
    with recomputed(network, wanted=spec.gradient_checkpointing), shared_norms(network, rank):
        learner = _Learner(network, fit.loss, spec, job, rank)
        rows = Batches(fit.data, spec.batch_size, spec.seed, fit.change, rank)
        return _fit(learner, rows, Batches(fit.validation, fit.evaluation, rank=rank), fit.device)


def _fit(learner: _Learner, rows: Batches, validation: Batches, device: str) -> dict[str, Any]:
    """One run, from the job's checkpoint if there is one; the facts of `train`."""
    spec, job = learner.spec, learner.job
    best, watch = _BestWeights(), _Watch(job, spec)
    resume, facts = job.checkpoint / _CHECKPOINT, {}  # type: Path, dict[str, Any]
    with quiet():
        callbacks = [best, *rules(spec), *holds(learner.network, spec, rows), watch]
        trainer = make_trainer(spec, job, callbacks, device, learner.rank)
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
