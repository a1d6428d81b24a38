"""Schedule-free AdamW (Defazio and others 2024): it learns at one point, and is judged at the mean of its path."""

import itertools
from collections.abc import Iterable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from workers.training.batches import Batch

_BATCHES = 50  # by which the statistics of batch norms are found, as the authors do


class TwoPoints(Callback):
    """Moves the weights to the mean for validation and what follows it: the best weights, the checkpoint.

    Statistics of batch norms are of the other point, so they are found anew, by the first batches of the epoch.
    """

    def __init__(self, network: nn.Module, rows: Iterable[Batch]) -> None:
        self.network, self.rows = network, rows

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - the hook's signature
        """To where gradients are taken."""
        _of(trainer).train()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """To the mean, where the weights stay until the next epoch begins."""
        _of(trainer).eval()
        measure_norms(self.network, self.rows, pl_module.device)


def make_schedule_free(groups: list[dict[str, object]], lr: float) -> Optimizer:
    """The optimizer, ready for its first step."""
    optimizer = AdamWScheduleFree(groups, lr=lr)
    optimizer.train()
    made: Optimizer = optimizer
    return made


@torch.no_grad()
def measure_norms(network: nn.Module, rows: Iterable[Batch], device: torch.device) -> None:
    """The mean and variance that batch norms see, of weights as they are; frozen norms keep theirs."""
    norms = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.weight.requires_grad
    ]
    if not norms:
        return
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    for inputs, _ in itertools.islice(rows, _BATCHES):
        network(*(x.to(device) for x in inputs))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
        norm.eval()


def _of(trainer: Trainer) -> AdamWScheduleFree:
    return trainer.optimizers[0]
