"""Gradient checkpointing: blocks keep their input alone, and are computed once more for the gradient (Chen 2016)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@runtime_checkable
class Recomputable(Protocol):
    """A network with blocks of which each can be computed anew from what comes in."""

    def recomputable(self) -> list[nn.Module]:
        """The blocks, in their order."""


@contextmanager
def recomputed(network: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Within, training steps keep the inputs of the network's blocks alone.

    Answers, gradients, random numbers and statistics of batch norms are the same as without it. TypeError if it has no
    blocks.
    """
    if not wanted:
        yield
        return
    if not isinstance(network, Recomputable):
        raise TypeError(f"{type(network).__name__} has no blocks to compute anew")
    blocks = network.recomputable()
    for block in blocks:
        # An attribute of the instance, which copies of the network (averages of weights) take along.
        block.forward = partial(_forward, block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _forward(block: nn.Module, *inputs: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the block takes and gives
    run = partial(type(block).forward, block, **named)
    if not (block.training and torch.is_grad_enabled()):
        return run(*inputs)
    return checkpoint(run, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _counted_once(block)))


@contextmanager
def _counted_once(block: nn.Module) -> Iterator[None]:
    """Batch norms do not count a batch again: their statistics move by nothing."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    usual = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, usual, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
