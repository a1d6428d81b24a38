"""What networks over tables share: their tensors, their loss, and what an unseen category means to them."""

import torch
from torch import Tensor, nn

from workers.families.encoding import DenseEncoder
from workers.learning import Array, LearningData, Part
from workers.training.batches import Tensors


class ColumnLoss(nn.Module):
    """Mean squared error of answers [N, 1] and targets [N]."""

    def forward(self, answers: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar."""
        return nn.functional.mse_loss(answers[:, 0], y)


def loss_of(data: LearningData) -> nn.Module:
    """Squared error of values, cross entropy of classes."""
    return ColumnLoss() if data.task == "regression" else nn.CrossEntropyLoss()


def outputs_of(data: LearningData) -> int:
    """Columns of a network's answer: one value, or a logit for each class."""
    return 1 if data.task == "regression" else data.n_classes


def tensors_of(encoder: DenseEncoder, part: Part) -> Tensors:
    """Dense FP32 [N, width], table rows int64 [N, columns], and the target."""
    dense, rows = encoder.transform(part.inputs)
    y = torch.from_numpy(part.y)
    return Tensors((torch.from_numpy(dense), torch.from_numpy(rows)), y.float() if y.is_floating_point() else y)


def settle_unseen(table: nn.Embedding, encoder: DenseEncoder, rows: Tensor) -> None:
    """An unseen category gets its column's mean embedding, for training never met it."""
    with torch.no_grad():
        for column, row in enumerate(encoder.unseen_rows().tolist()):
            table.weight[row] = table(rows[:, column]).mean(dim=0)


def numbers(tensor: Tensor) -> Array:
    """A parameter as numpy."""
    array: Array = tensor.detach().numpy()
    return array
