"""Low-rank adaptation of published networks by peft: learnt beside their weights, merged into them at the end."""

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, LoraModel
from torch import nn

from app.core.errors import InvalidSpec

_ATTENTION = ("query", "value", "q_proj", "v_proj")  # as transformers calls what the paper adapts


def adapted(model: nn.Module, lora: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The model with low-rank matrices that learn while its own weights do not, and what the model card says.

    Args:
        model: of transformers, without the classifier.
        lora: `LoraSpec` as a dictionary.

    Raises:
        InvalidSpec: no linear layer's name ends with one of `target_modules`.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    ends = lora["target_modules"] or [end for end in _ATTENTION if _chosen(linear, end)]
    for at, end in enumerate(ends):
        if not _chosen(linear, end):
            known = ", ".join(dict.fromkeys(name.split(".")[-1] for name in linear))
            msg = f"no linear layer's name ends with '{end}'; there are {known}"
            raise InvalidSpec.at("params", "lora", "target_modules", at, msg=msg)
    chosen = sorted({name for end in ends for name in _chosen(linear, end)})
    config = LoraConfig(
        r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=chosen, bias="none"
    )
    made = LoraModel(model, config, "default")
    learning = sum(p.numel() for p in made.parameters() if p.requires_grad)
    return made, {"rank": lora["rank"], "alpha": lora["alpha"], "layers": len(chosen), "weights_that_learn": learning}


def merged(model: nn.Module) -> nn.Module:
    """The model of `adapted`, as it was made, with what it has learnt added to its weights; others stay as they are."""
    if not isinstance(model, LoraModel):
        return model
    plain: nn.Module = model.merge_and_unload(safe_merge=True)
    return plain.requires_grad_()


def _chosen(names: list[str], end: str) -> list[str]:
    return [name for name in names if name == end or name.endswith(f".{end}")]
