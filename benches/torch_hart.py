#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""HART 0.7B in plain PyTorch with random weights: the baseline that hart's speed is compared with.

The program measures time only. It has the shapes and operation counts of the published model and runs eager PyTorch with its own
fused attention. The text encoder is left out: the context is random. Every run prints one line of JSON:

    {"res": 512, "batch": 1, "dtype": "f32", "device": "cpu", "threads": 2, "context_s": .., "transformer_s": .., "sampling_s": ..,
     "diffusion_s": .., "decode_s": .., "total_s": .., "peak_rss_gb": ..}

Usage: torch_hart.py --res 256|512|1024 [--dtype f32|bf16|f16] [--device cpu|cuda] [--threads N] [--repeat N] [--batch B]

Requires: pip install torch numpy
"""

import argparse
import json
import math
import resource
import time

import torch
import torch.nn.functional as F

# Sides of the scales in latent positions, by image size.
SCALES = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
# Transformer and codebook.
EMBED_DIM, DEPTH, HEADS, CONTEXT_TOKENS, LATENT_CHANNELS, CODEBOOK_SIZE, MLP_DIM = 1536, 24, 24, 300, 32, 4096, 4096
# Residual diffusion.
RESIDUAL_DIM, RESIDUAL_DEPTH, STEPS, GUIDANCE = 1024, 6, 8, 4.5
# Decoder of the visual tokenizer.
DECODER_CHANNELS, MULTIPLIERS = 160, (1, 1, 2, 2, 4)

parser = argparse.ArgumentParser(description="Times HART 0.7B with random weights in eager PyTorch.")
parser.add_argument("--res", type=int, default=512, choices=SCALES, help="side of the image in pixels")
parser.add_argument("--dtype", default="f32", choices=("f32", "bf16", "f16"), help="precision")
parser.add_argument("--device", default="cpu", help="cpu or cuda")
parser.add_argument("--threads", type=int, default=0, help="number of threads; 0 is PyTorch's default")
parser.add_argument("--repeat", type=int, default=1, help="number of runs, one after the other")
parser.add_argument("--batch", type=int, default=1, help="images in a batch")
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[args.dtype]
device = torch.device(args.device)
generator = torch.Generator(device=device).manual_seed(0)


def random_weight(*shape):
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
    return (torch.randn(*shape, generator=generator, device=device) / math.sqrt(fan_in)).to(dtype)


def zeros(size):
    return torch.zeros(size, device=device, dtype=dtype)


def linear(inputs, outputs, bias=True):
    """Return weight and bias of a linear layer."""
    return (random_weight(outputs, inputs), zeros(outputs) if bias else None)


def conv(inputs, outputs, kernel=3):
    """Return weight, bias and padding of a convolution."""
    return (random_weight(outputs, inputs, kernel, kernel), zeros(outputs), kernel // 2)


def apply_conv(x, layer):
    return F.conv2d(x, layer[0], layer[1], padding=layer[2])


def rms_norm(x, weight):
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


class Weights:
    pass


def build():
    """Return a model with random weights."""
    model = Weights()
    ones = lambda size: torch.ones(size, device=device, dtype=dtype)
    # Embeddings of the context, of image tokens and of scales.
    model.context, model.context_norm, model.word, model.level = (
        linear(EMBED_DIM, EMBED_DIM),
        ones(EMBED_DIM),
        linear(LATENT_CHANNELS, EMBED_DIM),
        [linear(256, EMBED_DIM), linear(EMBED_DIM, EMBED_DIM)],
    )
    model.blocks = [
        dict(
            norm=ones(EMBED_DIM),
            qkv=linear(EMBED_DIM, 3 * EMBED_DIM),
            proj=linear(EMBED_DIM, EMBED_DIM),
            gate=linear(EMBED_DIM, MLP_DIM, False),
            up=linear(EMBED_DIM, MLP_DIM, False),
            down=linear(MLP_DIM, EMBED_DIM, False),
        )
        for _ in range(DEPTH)
    ]
    model.head, model.head_modulation, model.head_norm = (
        linear(EMBED_DIM, CODEBOOK_SIZE),
        linear(EMBED_DIM, 2 * EMBED_DIM),
        ones(EMBED_DIM),
    )
    model.phi, model.codebook = conv(LATENT_CHANNELS, LATENT_CHANNELS), random_weight(CODEBOOK_SIZE, LATENT_CHANNELS)
    # MLP of the residual diffusion.
    model.residual_in, model.residual_condition, model.residual_step = (
        linear(LATENT_CHANNELS, RESIDUAL_DIM),
        linear(EMBED_DIM, RESIDUAL_DIM),
        [linear(256, RESIDUAL_DIM), linear(RESIDUAL_DIM, RESIDUAL_DIM)],
    )
    model.residual_blocks = [
        dict(
            fc1=linear(RESIDUAL_DIM, RESIDUAL_DIM),
            fc2=linear(RESIDUAL_DIM, RESIDUAL_DIM),
            modulation=linear(RESIDUAL_DIM, 3 * RESIDUAL_DIM),
        )
        for _ in range(RESIDUAL_DEPTH)
    ]
    model.residual_out, model.residual_out_modulation = (
        linear(RESIDUAL_DIM, 2 * LATENT_CHANNELS),
        linear(RESIDUAL_DIM, 2 * RESIDUAL_DIM),
    )
    # Decoder.
    channels = DECODER_CHANNELS * MULTIPLIERS[-1]
    group_norm = lambda size: (ones(size), zeros(size))
    res = lambda inputs, outputs: dict(
        norm1=group_norm(inputs),
        conv1=conv(inputs, outputs),
        norm2=group_norm(outputs),
        conv2=conv(outputs, outputs),
        shortcut=conv(inputs, outputs, 1) if inputs != outputs else None,
    )
    attention = lambda size: dict(norm=group_norm(size), qkv=conv(size, 3 * size, 1), proj=conv(size, size, 1))
    model.post_quant, model.conv_in, model.mid = (
        conv(LATENT_CHANNELS, LATENT_CHANNELS),
        conv(LATENT_CHANNELS, channels),
        (res(channels, channels), attention(channels), res(channels, channels)),
    )
    model.up, current = [], channels
    for level in reversed(range(len(MULTIPLIERS))):
        out, blocks = DECODER_CHANNELS * MULTIPLIERS[level], []
        for _ in range(3):
            blocks.append((res(current, out), attention(out) if level == len(MULTIPLIERS) - 1 else None))
            current = out
        model.up.append((blocks, conv(current, current) if level else None))
    model.norm_out, model.conv_out = group_norm(current), conv(current, 3)
    return model


def rope(x, cos, sin):
    """Apply rotary position embeddings."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def sinusoidal(position, dim=256):
    """Return the sinusoidal embedding of a number, `[1, dim]`."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(dim // 2, device=device) / (dim // 2))
    angles = torch.tensor([[float(position)]], device=device) * frequencies
    return torch.cat((angles.cos(), angles.sin()), -1).to(dtype)


def res_block(x, block):
    h = apply_conv(F.silu(F.group_norm(x, 32, *block["norm1"], eps=1e-6)), block["conv1"])
    h = apply_conv(F.silu(F.group_norm(h, 32, *block["norm2"], eps=1e-6)), block["conv2"])
    return h + (apply_conv(x, block["shortcut"]) if block["shortcut"] else x)


def attention_block(x, block):
    batch, channels, height, width = x.shape
    q, k, v = (
        apply_conv(F.group_norm(x, 32, *block["norm"], eps=1e-6), block["qkv"])
        .reshape(batch, 3, channels, height * width)
        .transpose(2, 3)
        .unbind(1)
    )  # each [batch, tokens, channels]
    out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    return x + apply_conv(out.transpose(1, 2).reshape(batch, channels, height, width), block["proj"])


def decode(model, latent):
    """Decode a latent `[batch, channels, side, side]` into pixels `[batch, 3, 16 side, 16 side]`."""
    h = apply_conv(apply_conv(latent, model.post_quant), model.conv_in)
    h = res_block(attention_block(res_block(h, model.mid[0]), model.mid[1]), model.mid[2])
    for blocks, up in model.up:
        for res, attention in blocks:
            h = res_block(h, res)
            h = attention_block(h, attention) if attention else h
        h = apply_conv(F.interpolate(h, scale_factor=2, mode="nearest"), up) if up else h
    return apply_conv(F.silu(F.group_norm(h, 32, *model.norm_out, eps=1e-6)), model.conv_out).clamp(-1, 1)


def diffuse(model, hidden, guidance):
    """Sample the residual of every token, `[tokens, latent channels]`, from hidden states `[2 tokens, embed_dim]`."""
    tokens = hidden.shape[0] // 2
    x = torch.randn(tokens, LATENT_CHANNELS, generator=generator, device=device).to(dtype).repeat(2, 1)
    condition = F.linear(hidden, *model.residual_condition)
    for step in range(STEPS):
        embedding = F.linear(F.silu(F.linear(sinusoidal(1000 - 125 * step), *model.residual_step[0])), *model.residual_step[1])
        y = F.silu(condition + embedding)
        h = F.linear(torch.cat((x[:tokens], x[:tokens])), *model.residual_in)
        for block in model.residual_blocks:
            shift, scale, gate = F.linear(y, *block["modulation"]).chunk(3, -1)
            u = F.layer_norm(h, (RESIDUAL_DIM,), eps=1e-6) * (1 + scale) + shift
            h = h + gate * F.linear(F.silu(F.linear(u, *block["fc1"])), *block["fc2"])
        shift, scale = F.linear(y, *model.residual_out_modulation).chunk(2, -1)
        h = F.layer_norm(h, (RESIDUAL_DIM,), eps=1e-6) * (1 + scale) + shift
        noise, variance = F.linear(h, *model.residual_out).chunk(2, -1)
        noise = ((1 + guidance) * noise[:tokens] - guidance * noise[tokens:]).repeat(2, 1)
        # The operations of a step of the published schedule, with constant coefficients.
        fresh = torch.randn(x.shape, generator=generator, device=device).to(dtype)
        x = (x - 0.1 * noise).clamp(-1, 1) + 0.05 * torch.exp(0.5 * variance.clamp(-1, 1)) * fresh
    return x[:tokens] * 0.6


def now():
    """Return the time in seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def generate(model):
    """Generate a batch of images and return the seconds spent in every stage."""
    batch, sides, head_dim = args.batch, SCALES[args.res], EMBED_DIM // HEADS
    scales, last_side = len(sides), sides[-1]
    times = dict(context_s=0.0, transformer_s=0.0, sampling_s=0.0, diffusion_s=0.0, decode_s=0.0)
    begin = start = now()
    # Guidance doubles the batch: first the conditional rows, then the unconditional ones.
    context = torch.randn(batch, CONTEXT_TOKENS, EMBED_DIM, generator=generator, device=device).to(dtype)
    condition = F.linear(rms_norm(torch.cat((context, torch.zeros_like(context))), model.context_norm), *model.context)
    head_modulation = F.linear(F.silu(condition.amax(1, keepdim=True)), *model.head_modulation).chunk(2, -1)
    cache, latent, x, last_position = (
        [None] * DEPTH,
        torch.zeros(batch, LATENT_CHANNELS, last_side, last_side, device=device, dtype=dtype),
        condition,
        39.0,
    )
    times["context_s"] += now() - start
    for scale, side in enumerate(sides):
        start = now()
        x = x + F.linear(F.silu(F.linear(sinusoidal(scale), *model.level[0])), *model.level[1])
        if scale == 0:
            # Positions of the text.
            positions = torch.arange(CONTEXT_TOKENS, device=device).float().clamp(max=last_position)
            half = positions[:, None] * 10000 ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
            angles = torch.cat((half, half), -1)
        else:
            # Positions in the image, by row and column.
            frequencies = 10000 ** (-torch.arange(0, head_dim, 4, device=device) / head_dim)
            grid = torch.arange(side, device=device) / side * last_side + last_position
            row, column = (grid.repeat_interleave(side)[:, None] * frequencies, grid.repeat(side)[:, None] * frequencies)
            angles = torch.cat((row, row, column, column), -1)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        for index, block in enumerate(model.blocks):
            # Attention, with the scale of the published model.
            q, k, v = (
                F.linear(rms_norm(x, block["norm"]), *block["qkv"]).view(2 * batch, -1, 3, HEADS, head_dim).permute(2, 0, 3, 1, 4)
            )  # each [2 batch, heads, tokens, head_dim]
            q, k = rope(q, cos, sin), rope(k, cos, sin)
            if cache[index] is not None:
                k, v = torch.cat((cache[index][0], k), 2), torch.cat((cache[index][1], v), 2)
            cache[index] = (k, v)
            out = F.scaled_dot_product_attention(q, k, v, scale=0.25 / math.sqrt(head_dim))
            x = x + F.linear(out.transpose(1, 2).reshape(2 * batch, -1, EMBED_DIM), *block["proj"])
            # SwiGLU. It shares the norm's weight with the attention.
            h = rms_norm(x, block["norm"])
            x = x + F.linear(F.silu(F.linear(h, *block["gate"])) * F.linear(h, *block["up"]), *block["down"])
        h = rms_norm(x, model.head_norm) * (1 + head_modulation[0]) + head_modulation[1]
        logits = F.linear(h if scale else h[:, -1:], *model.head).float()
        times["transformer_s"] += now() - start
        start = now()
        # Guidance, top-k, and Gumbel-softmax smoothing.
        ratio = (scale if scale < scales - 1 else scales - 2) / (scales - 1)
        guidance = GUIDANCE * ratio
        logits = (1 + guidance) * logits[:batch] - guidance * logits[batch:]
        k = 600 if scale < 7 else 300
        logits = logits.masked_fill(logits < logits.topk(k, -1)[0].amin(-1, keepdim=True), -torch.inf)
        codes = torch.multinomial(logits.softmax(-1).view(-1, CODEBOOK_SIZE), 1, generator=generator).view(batch, -1)
        gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
        h = ((logits * (1 + ratio) + gumbel) / max(0.27 * (1 - 0.95 * ratio), 0.005)).softmax(-1).to(dtype) @ model.codebook
        if scale < scales - 1:
            # Add the upsampled codes to the latent, and downsample it to the next input.
            upsampled = F.interpolate(
                h.transpose(1, 2).reshape(batch, LATENT_CHANNELS, side, side).float(), (last_side, last_side), mode="bicubic"
            ).to(dtype)
            latent = latent + 0.5 * upsampled + 0.5 * apply_conv(upsampled, model.phi)
            following = F.interpolate(latent, (sides[scale + 1], sides[scale + 1]), mode="area").flatten(2).transpose(1, 2)
            x = F.linear(following, *model.word).repeat(2, 1, 1)
            times["sampling_s"] += now() - start
        else:
            times["sampling_s"] += now() - start
            start = now()
            # Add the residual of the last scale.
            hidden = rms_norm(
                x + F.linear(F.embedding(codes, model.codebook), *model.word).repeat(2, 1, 1), model.head_norm
            ).reshape(-1, EMBED_DIM)
            h = h + diffuse(model, hidden, guidance).view(batch, -1, LATENT_CHANNELS)
            latent = latent + h.transpose(1, 2).reshape(batch, LATENT_CHANNELS, last_side, last_side)
            times["diffusion_s"] += now() - start
    start = now()
    images = decode(model, latent)
    times["decode_s"] += now() - start
    times["total_s"] = now() - begin
    assert images.shape == (batch, 3, args.res, args.res) and bool(torch.isfinite(images).all())
    return times


model = build()
for _ in range(args.repeat):
    result = dict(res=args.res, batch=args.batch, dtype=args.dtype, device=args.device, threads=torch.get_num_threads())
    result.update({name: round(value, 4) for name, value in generate(model).items()})
    result["peak_rss_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    if device.type == "cuda":
        result["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    print(json.dumps(result), flush=True)
