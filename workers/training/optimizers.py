"""Optimizers and learning-rate schedules of torch families."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from app.specs.training import SchedulerSpec, TrainingSpec
from workers.training.schedule_free import make_schedule_free

_RISE = 0.3  # share of steps in which the rate of a one-cycle schedule rises, unless the spec says another


class Lion(Optimizer):
    """Steps of the sign of a momentum, with decoupled weight decay; half of Adam's state (Chen et al. 2023).

    Args:
        params: tensors or groups of them.
        lr: of a step; as every weight moves by it, a third to a tenth of AdamW's.
        betas: of the step's direction, and of the momentum that is kept.
        weight_decay: is multiplied by `lr`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 - the loss
        """One step; gives what `closure` gave."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            direction, kept = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum: Tensor = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(torch.lerp(weight.grad, momentum, direction).sign_(), alpha=-group["lr"])
                momentum.lerp_(weight.grad, 1 - kept)
        return loss


def rate_of(spec: TrainingSpec) -> float:
    """The peak learning rate. ValueError if it is still to be found."""
    if spec.optimizer.lr == "auto":
        raise ValueError("the range test comes before the optimizer")
    return spec.optimizer.lr


def make_optimizer(network: nn.Module, spec: TrainingSpec) -> Optimizer:
    """Weight decay acts on matrices and filters, not on biases and norms."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": spec.optimizer.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    lr = rate_of(spec)
    fused = spec.precision == "32"  # a fifth of a small network's step less; with others Lightning then cannot clip
    match spec.optimizer.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=spec.optimizer.momentum)
        case "lion":
            return Lion(groups, lr=lr)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, fused=fused)
        case "schedule_free":
            return make_schedule_free(groups, lr)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, fused=fused)


def make_schedule(optimizer: Optimizer, spec: SchedulerSpec, peak: float, steps: int) -> LRScheduler | None:
    """A schedule over `steps` optimizer steps; None for plateau, which `Plateau` follows by epochs."""
    if spec.name == "plateau":
        return None
    if spec.name == "one_cycle":
        rise = _RISE if spec.warm_up is None else spec.warm_up
        if rise * (steps + 1) == 1:  # a rise of no steps, by which torch divides
            rise = 0.0
        return OneCycleLR(optimizer, peak, total_steps=steps + 1, pct_start=rise)
    rising = round(steps * (spec.warm_up or 0))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        if spec.name == "constant":
            return 1.0
        return (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising)))) / 2

    return LambdaLR(optimizer, factor)


class Plateau(Callback):
    """Lowers the rate when the validation loss has not improved for some epochs.

    Lightning would do so after the epoch's checkpoint, which then lacks it; this is before.
    """

    def __init__(self, spec: SchedulerSpec) -> None:
        self.spec = spec
        self._state: dict[str, Any] = {}
        self._schedule: ReduceLROnPlateau | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - the hook's signature
        """Begin, or go on from a checkpoint."""
        self._schedule = ReduceLROnPlateau(trainer.optimizers[0], factor=self.spec.factor, patience=self.spec.patience)
        self._schedule.load_state_dict(self._state)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - as above
        """Look at the epoch's loss."""
        if self._schedule is not None:
            self._schedule.step(float(trainer.callback_metrics["validation_loss"]))

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {} if self._schedule is None else self._schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint; the rate itself is the optimizer's."""
        self._state = state_dict
