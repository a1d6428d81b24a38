"""Weights that do not learn, for some epochs or at all."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from app.core.errors import InvalidSpec
from app.specs.training import FreezeSpec


class Freeze(Callback):
    """Holds the named weights still at the beginning of each epoch, and lets go of them when their epochs are over."""

    def __init__(self, network: nn.Module, spec: FreezeSpec) -> None:
        """InvalidSpec for a name that no weight begins with, or if no weight is left to learn."""
        names = [name for name, _ in network.named_parameters()]
        for at, layer in enumerate(spec.layers):
            if not any(_within(name, layer) for name in names):
                known = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
                msg = f"no weight's name begins with '{layer}'; there are {', '.join(known[:20])}"
                raise InvalidSpec.at("training", "freeze", "layers", at, msg=msg)
        self.spec, self.network = spec, network
        self.frozen = [p for name, p in network.named_parameters() if self._covers(name)]
        if len(self.frozen) == len(names):
            raise InvalidSpec.at("training", "freeze", "layers", msg="all weights are frozen; nothing could learn")
        self.modules = [
            module
            for name, module in network.named_modules()
            if name and any(_within(name, layer) for layer in spec.layers)
        ]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 - the hook's signature
        """Lightning leaves each module in the mode that it finds it in."""
        holds = self.spec.epochs is None or trainer.current_epoch < self.spec.epochs
        for weight in self.frozen:
            weight.requires_grad_(not holds)
        for module in self.modules:
            module.train(not holds)

    def _covers(self, name: str) -> bool:
        return any(_within(name, layer) for layer in self.spec.layers)


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")
