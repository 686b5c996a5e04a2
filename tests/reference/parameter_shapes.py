"""Names and shapes of the parameters both networks have, written down from the method's text."""

from __future__ import annotations

from numpy_networks import AutoencoderSpec, DenoiserSpec, Shapes


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _conv(name: str, n_in: int, n_out: int, *size: int) -> Shapes:
    return {f"{name}.weight": (n_out, n_in, *(size or (3, 3))), f"{name}.bias": (n_out,)}


def _linear(name: str, n_in: int, n_out: int) -> Shapes:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def _ae_residual(name: str, n_in: int, n_out: int) -> Shapes:
    return {
        **_norm(f"{name}.norm1", n_in),
        **_conv(f"{name}.conv1", n_in, n_out),
        **_norm(f"{name}.norm2", n_out),
        **_conv(f"{name}.conv2", n_out, n_out),
        **_conv(f"{name}.conv_out", n_in, n_out, 1, 1),
    }


def _ae_attention(name: str, channels: int) -> Shapes:
    parts = ("q", "k", "v", "proj_out")
    shapes = _norm(f"{name}.norm", channels)
    for part in parts:
        shapes |= _conv(f"{name}.{part}", channels, channels, 1, 1)
    return shapes


def autoencoder_shapes(spec: AutoencoderSpec) -> Shapes:
    """Every array of upstream's autoencoder (without the `ae.` prefix), unused ones included."""
    widths = [spec.base * m for m in spec.multipliers]
    wide = widths[-1]
    name = "encoder.blocks.{}".format
    shapes = _conv(name(0), spec.in_channels, spec.base)
    channels, block = spec.base, 1
    for level, width in enumerate(widths):
        for _ in range(spec.blocks):
            shapes |= _ae_residual(name(block), channels, width)
            channels, block = width, block + 1
        if level < len(widths) - 1:
            shapes |= _conv(f"{name(block)}.conv", width, width)
            block += 1
    shapes |= _ae_residual(name(block), wide, wide) | _ae_attention(name(block + 1), wide)
    shapes |= _ae_residual(name(block + 2), wide, wide) | _norm(name(block + 3), wide)
    shapes |= _conv(name(block + 4), wide, spec.embedding)
    shapes |= _conv("quantize.proj.0", spec.embedding, spec.code_channels, 1, 1)
    shapes |= {"quantize.embed.weight": (spec.code_channels, spec.embedding)}
    name = "generator.blocks.{}".format
    shapes |= _norm(name(0), spec.embedding) | _conv(name(1), spec.embedding, wide)
    shapes |= _ae_residual(name(2), wide, wide) | _ae_attention(name(3), wide)
    shapes |= _ae_residual(name(4), wide, wide)
    channels, block = wide, 5
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(spec.blocks):
            shapes |= _ae_residual(name(block), channels, width)
            channels, block = width, block + 1
        if level > 0:
            shapes |= _conv(f"{name(block)}.conv", width, width)
            block += 1
    shapes |= _norm(name(block), channels) | _conv(name(block + 1), channels, spec.in_channels)
    shapes |= _conv("generator.logsigma.0", channels, channels)
    return shapes | _conv("generator.logsigma.2", channels, spec.in_channels, 1, 1)


def _unet_residual(name: str, n_in: int, n_out: int, emb: int) -> Shapes:
    return {
        **_norm(f"{name}.in_layers.0", n_in),
        **_conv(f"{name}.in_layers.2", n_in, n_out),
        **_linear(f"{name}.emb_layers.1", emb, n_out),
        **_norm(f"{name}.out_layers.0", n_out),
        **_conv(f"{name}.out_layers.3", n_out, n_out),
        **({} if n_in == n_out else _conv(f"{name}.skip_connection", n_in, n_out, 1, 1)),
    }


def _unet_attention(name: str, channels: int) -> Shapes:
    return {
        **_norm(f"{name}.norm", channels),
        **_conv(f"{name}.qkv", channels, 3 * channels, 1),
        **_conv(f"{name}.proj_out", channels, channels, 1),
    }


def denoiser_shapes(spec: DenoiserSpec) -> Shapes:
    """Every array of upstream's UNet."""
    widths = [spec.base * m for m in spec.multipliers]
    emb, last = 4 * spec.base, len(widths) - 1
    shapes = _linear("time_embed.0", spec.base, emb) | _linear("time_embed.2", emb, emb)
    shapes |= _conv("input_blocks.0.0", spec.code_channels, spec.base)
    channels, block, skips = spec.base, 1, [spec.base]
    for level, width in enumerate(widths):
        for _ in range(spec.blocks):
            shapes |= _unet_residual(f"input_blocks.{block}.0", channels, width, emb)
            if level in spec.attention_levels:
                shapes |= _unet_attention(f"input_blocks.{block}.1", width)
            channels, block = width, block + 1
            skips.append(width)
        if level < last:
            shapes |= _conv(f"input_blocks.{block}.0.op", width, width)
            skips.append(width)
            block += 1
    shapes |= _unet_residual("middle_block.0", channels, channels, emb)
    shapes |= _unet_attention("middle_block.1", channels)
    shapes |= _unet_residual("middle_block.2", channels, channels, emb)
    block = 0
    for level, width in reversed(list(enumerate(widths))):
        for i in range(spec.blocks + 1):
            name = f"output_blocks.{block}"
            shapes |= _unet_residual(f"{name}.0", channels + skips.pop(), width, emb)
            attention = level in spec.attention_levels
            if attention:
                shapes |= _unet_attention(f"{name}.1", width)
            if level > 0 and i == spec.blocks:
                shapes |= _conv(f"{name}.{1 + attention}.conv", width, width)
            channels, block = width, block + 1
    return shapes | _norm("out.0", channels) | _conv("out.2", channels, spec.code_channels)
