"""Losses of networks."""

import numpy as np
import torch
from torch import Tensor, nn

from workers.learning import Array, LearningData


class ClassLoss(nn.Module):
    """Cross entropy of logits [N, K] and class indices [N] or shares of classes [N, K], a mean over rows.

    `weights` [K] say how much a row of each class counts. The mean is over rows and not over their weights, so that the
    means of batches of different classes add up.
    """

    weights: Tensor | None

    def __init__(self, weights: Array | None = None, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("weights", None if weights is None else torch.from_numpy(weights.astype(np.float32)))

    def smoothed(self, share: float) -> "ClassLoss":
        """The same of labels of which a share is spread over all classes."""
        return ClassLoss(None if self.weights is None else self.weights.cpu().numpy(), share)

    def forward(self, answers: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar."""
        loss: Tensor = nn.functional.cross_entropy(
            answers, y, self.weights, reduction="none", label_smoothing=self.smoothing
        )
        return loss.mean()


def class_loss(data: LearningData) -> nn.Module:
    """Of one class, weighted if the data say so; or of several labels, each by itself, a mean over labels too."""
    return nn.BCEWithLogitsLoss() if data.task == "multilabel" else ClassLoss(data.class_weights)
