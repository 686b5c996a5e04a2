"""The two networks once more, in float64 NumPy: the oracle the PyTorch ones are tested against.

Nothing here is shared with the package. A network is a dictionary of arrays under upstream's
parameter names plus a small configuration; a layer is a function. Slow and simple on purpose.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Weights = Mapping[str, Array]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class AutoencoderSpec:
    """Sizes of the binary autoencoder; the defaults are the reference configuration."""

    in_channels: int = 4
    base: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 2
    code_channels: int = 128
    embedding: int = 256


@dataclass(frozen=True)
class DenoiserSpec:
    """Sizes of the denoiser; `attention_levels` counts downsamplings, 0 being the code's size."""

    code_channels: int = 128
    base: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (1,)
    num_timesteps: int = 1000


def named_weights(shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> dict[str, Array]:
    """Weights as a function of the parameter name (float32), `prefix` counted into the name."""
    weights: dict[str, Array] = {}
    for name, shape in shapes.items():
        key = zlib.crc32((prefix + name).encode())
        drawn = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, np.float32)
        if len(shape) > 1:
            weights[name] = drawn * np.float32(1 / math.sqrt(math.prod(shape[1:])))
        elif name.endswith("weight"):
            weights[name] = 1 + np.float32(0.1) * drawn
        else:
            weights[name] = np.float32(0.1) * drawn
    return weights


# --- layers --------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def linear(w: Weights, name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].astype(np.float64).T + w[f"{name}.bias"]


def conv(w: Weights, name: str, x: Array, stride: int = 1, padding: int = 1) -> Array:
    """Cross-correlation as one matrix product per kernel position; `padding` on all four sides."""
    kernel = w[f"{name}.weight"].astype(np.float64)
    size = kernel.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    n, c = x.shape[:2]
    h, wd = ((side - size) // stride + 1 for side in x.shape[2:])
    out = np.zeros((n, kernel.shape[0], h * wd))
    for i in range(size):
        for j in range(size):
            window = x[:, :, i : i + stride * (h - 1) + 1 : stride, j:][
                :, :, :, : stride * (wd - 1) + 1 : stride
            ]
            out += kernel[:, :, i, j] @ window.reshape(n, c, h * wd)
    return out.reshape(n, -1, h, wd) + w[f"{name}.bias"][:, None, None]


def conv1x1(w: Weights, name: str, x: Array) -> Array:
    """A convolution of size one, whether its weight was stored as [o,i,1,1] or [o,i,1]."""
    kernel = w[f"{name}.weight"].astype(np.float64)
    kernel = kernel.reshape(kernel.shape[:2])
    return np.einsum("oi,nihw->nohw", kernel, x) + w[f"{name}.bias"][:, None, None]


def group_norm(w: Weights, name: str, x: Array, eps: float) -> Array:
    grouped = x.reshape(x.shape[0], 32, -1)
    centred = grouped - grouped.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    scale, shift = w[f"{name}.weight"], w[f"{name}.bias"]
    return normed.reshape(x.shape) * scale[:, None, None] + shift[:, None, None]


def upsample(x: Array) -> Array:
    return x.repeat(2, axis=2).repeat(2, axis=3)


def attend(q: Array, k: Array, v: Array) -> Array:
    """Attention of every position [N,C,h,w] to every other, with one head over all channels."""
    shape = q.shape
    q, k, v = (part.reshape(*shape[:2], -1) for part in (q, k, v))
    logits = np.einsum("nci,ncj->nij", q, k) / math.sqrt(shape[1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nij,ncj->nci", weights, v).reshape(shape)


# --- binary autoencoder (METHOD, section 1) --------------------------------------------------

AE_EPS = 1e-6


def _ae_residual(w: Weights, name: str, x: Array) -> Array:
    h = conv(w, f"{name}.conv1", silu(group_norm(w, f"{name}.norm1", x, AE_EPS)))
    h = conv(w, f"{name}.conv2", silu(group_norm(w, f"{name}.norm2", h, AE_EPS)))
    # An unused conv_out is stored where the channels do not change.
    return h + (x if h.shape[1] == x.shape[1] else conv1x1(w, f"{name}.conv_out", x))


def _ae_attention(w: Weights, name: str, x: Array) -> Array:
    h = group_norm(w, f"{name}.norm", x, AE_EPS)
    q, k, v = (conv1x1(w, f"{name}.{part}", h) for part in "qkv")
    return x + conv1x1(w, f"{name}.proj_out", attend(q, k, v))


def encode(w: Weights, spec: AutoencoderSpec, image: Array) -> Array:
    """Bit probabilities [N,K,h,w] of images [N,C,H,W] in [0,1]."""
    x = conv(w, "encoder.blocks.0", image.astype(np.float64))
    block = 1
    for level in range(len(spec.multipliers)):
        for _ in range(spec.blocks):
            x = _ae_residual(w, f"encoder.blocks.{block}", x)
            block += 1
        if level < len(spec.multipliers) - 1:
            x = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))
            x = conv(w, f"encoder.blocks.{block}.conv", x, stride=2, padding=0)
            block += 1
    x = _ae_residual(w, f"encoder.blocks.{block}", x)
    x = _ae_attention(w, f"encoder.blocks.{block + 1}", x)
    x = _ae_residual(w, f"encoder.blocks.{block + 2}", x)
    x = group_norm(w, f"encoder.blocks.{block + 3}", x, AE_EPS)
    x = conv(w, f"encoder.blocks.{block + 4}", x)
    return sigmoid(conv1x1(w, "quantize.proj.0", x))


def decode(w: Weights, spec: AutoencoderSpec, code: Array) -> Array:
    """Image [N,C,H,W] (not clamped) of a bit or soft code [N,K,h,w]."""
    embedding = w["quantize.embed.weight"].astype(np.float64)
    x = np.einsum("bnhw,nd->bdhw", code.astype(np.float64), embedding)
    x = conv(w, "generator.blocks.1", group_norm(w, "generator.blocks.0", x, AE_EPS))
    x = _ae_residual(w, "generator.blocks.2", x)
    x = _ae_attention(w, "generator.blocks.3", x)
    x = _ae_residual(w, "generator.blocks.4", x)
    block = 5
    for level in reversed(range(len(spec.multipliers))):
        for _ in range(spec.blocks):
            x = _ae_residual(w, f"generator.blocks.{block}", x)
            block += 1
        if level > 0:
            x = conv(w, f"generator.blocks.{block}.conv", upsample(x))
            block += 1
    x = group_norm(w, f"generator.blocks.{block}", x, AE_EPS)
    return conv(w, f"generator.blocks.{block + 1}", x)


# --- denoiser (METHOD, section 3) ------------------------------------------------------------

UNET_EPS = 1e-5


def _timestep_embedding(w: Weights, spec: DenoiserSpec, t: Array) -> Array:
    half = spec.base // 2
    frequencies = np.exp(-math.log(10000) * np.arange(half) / half)
    angles = (t * (1000 / spec.num_timesteps))[:, None] * frequencies
    embedding = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    return linear(w, "time_embed.2", silu(linear(w, "time_embed.0", embedding)))


def _unet_residual(w: Weights, name: str, x: Array, emb: Array) -> Array:
    h = conv(w, f"{name}.in_layers.2", silu(group_norm(w, f"{name}.in_layers.0", x, UNET_EPS)))
    h = h + linear(w, f"{name}.emb_layers.1", silu(emb))[:, :, None, None]
    h = conv(w, f"{name}.out_layers.3", silu(group_norm(w, f"{name}.out_layers.0", h, UNET_EPS)))
    return h + (x if h.shape[1] == x.shape[1] else conv1x1(w, f"{name}.skip_connection", x))


def _unet_attention(w: Weights, name: str, x: Array) -> Array:
    qkv = conv1x1(w, f"{name}.qkv", group_norm(w, f"{name}.norm", x, UNET_EPS))
    q, k, v = np.split(qkv, 3, axis=1)
    return x + conv1x1(w, f"{name}.proj_out", attend(q, k, v))


def denoise(w: Weights, spec: DenoiserSpec, code: Array, t: int | Array) -> Array:
    """Flip probability [N,K,h,w] of a code at the original timestep(s) t."""
    x = code.astype(np.float64)
    emb = _timestep_embedding(w, spec, np.broadcast_to(np.float64(t), (len(x),)))
    x = conv(w, "input_blocks.0.0", x)
    skips, block, last = [x], 1, len(spec.multipliers) - 1
    for level in range(last + 1):
        for _ in range(spec.blocks):
            x = _unet_residual(w, f"input_blocks.{block}.0", x, emb)
            if level in spec.attention_levels:
                x = _unet_attention(w, f"input_blocks.{block}.1", x)
            skips.append(x)
            block += 1
        if level < last:
            x = conv(w, f"input_blocks.{block}.0.op", x, stride=2)
            skips.append(x)
            block += 1
    x = _unet_residual(w, "middle_block.0", x, emb)
    x = _unet_attention(w, "middle_block.1", x)
    x = _unet_residual(w, "middle_block.2", x, emb)
    block = 0
    for level in reversed(range(last + 1)):
        for i in range(spec.blocks + 1):
            x = np.concatenate([x, skips.pop()], axis=1)
            x = _unet_residual(w, f"output_blocks.{block}.0", x, emb)
            attention = level in spec.attention_levels
            if attention:
                x = _unet_attention(w, f"output_blocks.{block}.1", x)
            if level > 0 and i == spec.blocks:
                x = conv(w, f"output_blocks.{block}.{1 + attention}.conv", upsample(x))
            block += 1
    return sigmoid(conv(w, "out.2", silu(group_norm(w, "out.0", x, UNET_EPS))))
