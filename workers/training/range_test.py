"""A learning rate by a range test: the rate rises from batch to batch until the loss blows up (Smith 2017)."""

import copy
import itertools
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from app.specs.training import TrainingSpec
from workers.context import JobContext, Stopped
from workers.training.batches import Batch
from workers.training.optimizers import make_optimizer

_RATES = np.geomspace(1e-6, 1.0, 100)
_SMOOTH = 0.9  # of the losses' moving average
_BLOWN = 4.0  # times the smallest loss
_CAUTION = 0.3  # of the rate at which the loss was smallest; steps at that rate are about too large
_SHORT = 10  # losses, of which no slope can be told
_USUAL = 1e-3


def find_rate(
    network: nn.Module, loss: nn.Module, batches: Iterable[Batch], spec: TrainingSpec, job: JobContext, device: str
) -> float:
    """The rate at which the loss fell fastest, but at most a third of the one at which it was smallest.

    The network and torch's random numbers are as before afterwards, and the same arguments give the same rate on a CPU.
    The curve is told as the metric `range_test_loss`, a point for each rate.
    """
    before, rng = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    network.to(device).train()
    loss.to(device)
    slow = spec.optimizer.model_copy(update={"lr": float(_RATES[0])})
    optimizer = make_optimizer(network, spec.model_copy(update={"optimizer": slow}))
    losses: list[float] = []
    average = 0.0
    for at, (rate, (inputs, y)) in enumerate(zip(_RATES, itertools.cycle(batches), strict=False)):
        if job.should_stop():
            raise Stopped
        moved = tuple(x.to(device) for x in inputs), y.to(device)
        average = _SMOOTH * average + (1 - _SMOOTH) * _step(network, loss, moved, optimizer, float(rate))
        smooth = average / (1 - _SMOOTH ** (at + 1))
        if not math.isfinite(smooth) or (losses and smooth > _BLOWN * min(losses)):
            break
        losses.append(smooth)
        job.metric("range_test_loss", at, smooth)
    network.cpu().load_state_dict(before)
    torch.set_rng_state(rng)
    return _choose(np.asarray(losses))


def _step(network: nn.Module, loss: nn.Module, batch: Batch, optimizer: Optimizer, rate: float) -> float:
    inputs, y = batch
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    value: Tensor = loss(network(*inputs).float(), y)
    value.backward()  # type: ignore[no-untyped-call]  # so it is in torch's stubs
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return float(value.detach())


def _choose(losses: npt.NDArray[np.float64]) -> float:
    """From the curve; the usual rate where it is too short."""
    if len(losses) < _SHORT:
        return _USUAL
    lowest = int(losses.argmin())
    if not lowest:
        return _USUAL
    slopes = np.gradient(losses[: lowest + 1])
    return float(min(_RATES[int(slopes.argmin())], _CAUTION * _RATES[lowest]))
