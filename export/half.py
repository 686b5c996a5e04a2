"""Networks in half precision: convolutions and products in half, what is delicate in float32."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

HALF_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

Network = TypeVar("Network", bound=nn.Module)


def halved(network: Network, dtype: torch.dtype) -> Network:
    """Return a copy that convolves and multiplies matrices in half precision.

    Group norms keep float32, and with them the SiLU that follows; so does whatever the networks
    themselves keep in float32: softmax, sigmoid and the time embedding.

    Parameters
    ----------
    network : Module
        In float32; left as it is.
    dtype : torch.dtype
        ``torch.float16`` or ``torch.bfloat16``.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            module.to(dtype).register_forward_pre_hook(_to_type_of_weight)
        elif isinstance(module, nn.Embedding):
            module.to(dtype)
        elif isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(_to_type_of_weight)
    return network


def _to_type_of_weight(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Cast what comes in: from float32 to half before a convolution, back before a norm."""
    return (inputs[0].to(module.get_parameter("weight").dtype),)
