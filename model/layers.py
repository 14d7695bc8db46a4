"""What is done with the layers of any network, whatever its class: their initial weights, and the last hidden one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.net import TaskError

INITIALISATIONS: dict[str, Callable[[Tensor], object]] = {
    "default": lambda weight: None,
    "zero_bias": lambda weight: None,
    "normal": lambda weight: nn.init.normal_(weight, std=0.01),
    "kaiming": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "xavier": nn.init.xavier_normal_,
}


@torch.no_grad()
def initialize(model: nn.Module, name: str) -> None:
    """Sets the initial weights of linear, convolutional and recurrent layers, in place.

    "default": as PyTorch does; all others set biases to zero, and "normal" draws weights from N(0, 0.01^2), "kaiming"
    (He et al. 2015) and "xavier" (Glorot and Bengio 2010) with a deviation that fits the layer's size.
    """
    if name not in INITIALISATIONS:
        raise TaskError(f"model.init is {name!r}; choose one of {', '.join(INITIALISATIONS)}")
    if name == "default":
        return
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase))]
    if not layers:
        raise TaskError(f"model.init={name} sets linear, convolutional and recurrent layers; this network has none")
    for layer in layers:
        for key, parameter in layer.named_parameters(recurse=False):
            if key.startswith("bias"):
                parameter.zero_()
            else:
                INITIALISATIONS[name](parameter)


def last_hidden(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(the last hidden layer [batch, size], the outputs) of any network.

    What `features` gives where a network has it; otherwise what goes into the last linear layer that runs.
    """
    features: Callable[[Tensor], Tensor] | None = getattr(model, "features", None)
    if features is not None:
        return features(inputs).flatten(1), model(inputs)
    seen: list[Tensor] = []
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for module in linear]
    try:
        outputs = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return (seen[-1] if seen else outputs).flatten(1), outputs
