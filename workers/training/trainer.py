"""Lightning's trainer as the loop uses it, and what goes along with its epochs."""

import logging
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from app.specs.training import TrainingSpec
from workers.context import JobContext
from workers.training.batches import ALONE, Batches, Rank
from workers.training.freezing import Freeze
from workers.training.optimizers import Plateau
from workers.training.schedule_free import TwoPoints

_NOTHING = nullcontext("")
_PRECISIONS: Mapping[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"
}  # fmt: skip


def holds(network: nn.Module, spec: TrainingSpec, rows: Batches) -> list[Callback]:
    """What changes or holds weights besides the optimizer's steps."""
    found: list[Callback] = [] if spec.freeze is None else [Freeze(network, spec.freeze)]
    if spec.optimizer.name == "schedule_free":
        found.append(TwoPoints(network, rows))
    return found


def rules(spec: TrainingSpec) -> list[Callback]:
    """What watches the validation loss."""
    rules: list[Callback] = [Plateau(spec.scheduler)] if spec.scheduler.name == "plateau" else []
    if (stopping := spec.early_stopping) is not None:
        patience, least = stopping.patience, stopping.min_delta
        # With the validation, since at the end of the epoch it would come after the checkpoint, which then lacks it.
        rules.append(EarlyStopping("validation_loss", least, patience, check_on_train_epoch_end=False))
    return rules


class OwnDraws(Callback):
    """Seeds a rank's random numbers anew in every epoch, so that a run that goes on draws as one that never broke."""

    def __init__(self, seed: int, rank: Rank) -> None:
        self.seed, self.rank = seed, rank

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - the hook's signature
        """From seed, epoch and rank alone."""
        drawn = np.random.SeedSequence([self.seed, trainer.current_epoch, self.rank.number]).generate_state(1)
        torch.manual_seed(int(drawn[0]))


class _Unprofiled(PassThroughProfiler):
    """Times nothing, as the one that it is of, which makes 30 context managers in each step to do so."""

    def profile(self, action_name: str) -> AbstractContextManager[str]:  # type: ignore[override]  # a generator's there
        """Nothing, and always the same."""
        del action_name
        return _NOTHING


def make_trainer(
    spec: TrainingSpec, job: JobContext, callbacks: list[Callback], device: str, rank: Rank = ALONE
) -> Trainer:  # fmt: skip
    """One device, or this rank's of several; no files and no words of its own."""
    strategy: DDPStrategy | str = "auto"
    if rank.size > 1:
        # Weights may have no part in a step: frozen ones, for some epochs.
        strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment(), find_unused_parameters=True)
        callbacks = [*callbacks, OwnDraws(spec.seed, rank)]
    return Trainer(
        max_epochs=spec.epochs, accelerator="gpu" if device == "cuda" else "cpu", devices=rank.size,
        strategy=strategy, callbacks=callbacks, precision=_PRECISIONS[spec.precision],
        gradient_clip_val=spec.gradient_clip,
        accumulate_grad_batches=spec.accumulate, logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=job.folder, profiler=_Unprofiled(),
    )  # fmt: skip


class quiet(warnings.catch_warnings):  # noqa: N801 - used as a function
    """No banners, tips or hints of Lightning in the job's output."""

    _LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        for name in self._LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
