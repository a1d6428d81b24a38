"""What ranks share besides gradients: the mean loss of a batch, and the statistics of batch norms."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from workers.training.batches import Rank


def shared_means(values: Tensor, rows: int, rank: Rank) -> tuple[Tensor, int]:
    """Of means over this rank's rows, [K]: the means over the rows of all ranks, and how many those are.

    Every rank gets the same, NaN if one has it.
    """
    if rank.size == 1:
        return values, rows
    sums = torch.cat([values * rows, values.new_tensor([float(rows)])])
    dist.all_reduce(sums)
    return sums[:-1] / sums[-1], int(sums[-1])


def shared_loss(loss: Tensor, rows: int, rank: Rank) -> tuple[Tensor, float]:
    """Of the mean loss of this rank's rows: what to take gradients of, and the mean over all rows of the batch.

    DDP gives each rank the mean of all ranks' gradients. Ranks need not have as many rows, so each loss is scaled to
    make that the gradient of the mean over all rows.
    """
    if rank.size == 1:
        return loss, float(loss.detach())
    mean, count = shared_means(loss.detach().reshape(1), rows, rank)
    return loss * (rows * rank.size / count), float(mean)


@contextmanager
def shared_norms(network: nn.Module, rank: Rank) -> Iterator[None]:
    """Within, batch norms that learn take mean and variance of the rows of all ranks, as one process would.

    torch's SyncBatchNorm does so on GPUs alone.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)] if rank.size > 1 else []
    for norm in norms:
        # An attribute of the instance, which copies of the network (averages of weights) take along.
        norm.forward = partial(_forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        answer: Tensor = type(norm).forward(norm, x)
        return answer
    others = [axis for axis in range(x.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    wide = x.float()
    sums = torch.cat([wide.sum(dim=others), wide.new_tensor([float(x.numel() // x.shape[1])])])
    sums = _sum_of_ranks(sums)
    count = float(sums[-1].detach())
    mean = sums[:-1] / count
    centred = wide - mean.view(shape)
    variance = _sum_of_ranks(centred.square().sum(dim=others)) / count
    _remember(norm, mean.detach(), variance.detach() * (count / max(1.0, count - 1)))
    scale = torch.rsqrt(variance + norm.eps)
    if not norm.affine:
        return (centred * scale.view(shape)).to(x.dtype)
    return torch.addcmul(norm.bias.view(shape), centred, (scale * norm.weight).view(shape)).to(x.dtype)


def _sum_of_ranks(values: Tensor) -> Tensor:
    """With a gradient, which is a sum of ranks too."""
    total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]  # so it is in torch
    return total


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as torch's own batch norm does."""
    if norm.running_mean is None or norm.running_var is None:
        return
    factor = norm.momentum or 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            factor = 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, factor)
    norm.running_var.lerp_(variance, factor)
