"""Averages of a network's weights: a moving one (EMA), and the mean over the last epochs (SWA)."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """Weights and batch-norm statistics, averaged after each step; the first steps, which know little, weigh less."""

    def blend(average: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return now
        return torch.lerp(average, now, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return AveragedModel(network, avg_fn=blend, use_buffers=True).requires_grad_(requires_grad=False)


def mean_of_epochs(network: nn.Module) -> AveragedModel:
    """Weights and batch-norm statistics, averaged after each epoch; all weigh the same (Izmailov et al. 2018)."""

    def blend(average: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        return torch.lerp(average, now, 1 / (int(count) + 1)) if average.is_floating_point() else now

    return AveragedModel(network, avg_fn=blend, use_buffers=True).requires_grad_(requires_grad=False)
