"""Random changes to batches of training texts, as tensor operations on whole batches of tokens.

Sources: word dropout (Iyyer et al. 2015), random swaps (Wei & Zou 2019).
"""

import numpy as np
import torch
from torch import Tensor

from app.specs.augment import AugmentSpec
from workers.training.batches import Batch


class TokenAugment:
    """Changes a batch of tokens as the spec says; every draw comes from the generator that it is given."""

    def __init__(self, spec: AugmentSpec, unknown: int, fixed: tuple[int, ...]) -> None:
        """Tokens: an unknown word, and those that are no words and stay where they are."""
        self.spec, self.unknown, self.fixed = spec, unknown, torch.tensor(fixed)

    def __call__(self, inputs: tuple[Tensor, ...], y: Tensor, rng: np.random.Generator) -> Batch:
        """Changed tokens, and the targets as they were.

        Args:
            inputs: one tensor, int64 [N, L].
            y: targets [N].
            rng: where every draw comes from.
        """
        (tokens,) = inputs
        if self.spec.token_swap:
            tokens = self._swap(tokens, rng)
        if self.spec.token_dropout:
            drawn = torch.from_numpy(rng.random(tuple(tokens.shape)) < self.spec.token_dropout)
            tokens = tokens.masked_fill(drawn & self._words(tokens), self.unknown)
        return (tokens,), y

    def _swap(self, tokens: Tensor, rng: np.random.Generator) -> Tensor:
        """Drawn words change places with the next one, where both are words; no word moves twice."""
        words = self._words(tokens)
        drawn = torch.from_numpy(rng.random((len(tokens), tokens.shape[1] - 1)) < self.spec.token_swap)
        drawn &= words[:, :-1] & words[:, 1:]
        free = torch.ones(len(tokens), dtype=torch.bool)
        for place in range(drawn.shape[1]):
            drawn[:, place] &= free
            free = ~drawn[:, place]
        none = torch.zeros((len(tokens), 1), dtype=torch.bool)
        first, second = torch.cat([drawn, none], dim=1), torch.cat([none, drawn], dim=1)
        source = torch.arange(tokens.shape[1]) + first.to(torch.int64) - second.to(torch.int64)
        return tokens.gather(1, source)

    def _words(self, tokens: Tensor) -> Tensor:
        return ~torch.isin(tokens, self.fixed)
