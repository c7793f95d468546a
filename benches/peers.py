#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""One transformer block of HART 0.7B at the last scales, and the decoder, with random weights, in PyTorch and OpenVINO.

`compare --parts` starts this program and sends one line of JSON for each measurement, so that hart and its peers take turns:

    {"part": "block", "queries": 1024, "keys": 1815} or {"part": "decoder", "side": 32}

The answer is a line with the seconds of one run, after a first run that is not measured: {"seconds": 2.21}. Two batch rows (guidance)
go through a block, one through the decoder. Shapes and operations are those of torch_hart.py.

Usage: peers.py eager|compile|openvino f32|bf16|int8 --threads N

int8 is OpenVINO's: weights and activations of matrix products and convolutions, quantised after training by nncf.
Requires: pip install torch numpy, and openvino nncf for OpenVINO
"""

import argparse
import json
import math
import os
import sys
import time

parser = argparse.ArgumentParser(description="Times parts of HART 0.7B in PyTorch or OpenVINO.")
parser.add_argument("engine", choices=("eager", "compile", "openvino"))
parser.add_argument("precision", choices=("f32", "bf16", "int8"))
parser.add_argument("--threads", type=int, required=True, help="number of threads")
args = parser.parse_args()
if args.precision == "int8" and args.engine != "openvino":
    parser.error("int8 is measured with openvino only")
os.environ["OMP_NUM_THREADS"] = str(args.threads)

import torch  # noqa: E402: after the number of threads
import torch.nn.functional as F  # noqa: E402

torch.set_num_threads(args.threads)
torch.manual_seed(0)
DIM, HEADS, MLP_DIM, LATENT_CHANNELS, DECODER_CHANNELS, MULTIPLIERS = 1536, 24, 4096, 32, 160, (1, 1, 2, 2, 4)
HEAD_DIM = DIM // HEADS


class Block(torch.nn.Module):
    """A block: new tokens attend to themselves and to cached keys and values."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.RMSNorm(DIM, eps=1e-6)
        self.qkv, self.proj = torch.nn.Linear(DIM, 3 * DIM), torch.nn.Linear(DIM, DIM)
        self.gate, self.up = (torch.nn.Linear(DIM, MLP_DIM, bias=False) for _ in range(2))
        self.down = torch.nn.Linear(MLP_DIM, DIM, bias=False)

    def forward(self, x, keys, values, cos, sin):
        """x [2, tokens, DIM]; keys, values [2, HEADS, cached, HEAD_DIM]; cos, sin [tokens, HEAD_DIM]"""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        rotate = lambda t: t * cos + torch.cat((-t[..., HEAD_DIM // 2 :], t[..., : HEAD_DIM // 2]), -1) * sin
        k, v = torch.cat((keys, rotate(k)), 2), torch.cat((values, v), 2)
        out = F.scaled_dot_product_attention(rotate(q), k, v, scale=0.25 / math.sqrt(HEAD_DIM))
        x = x + self.proj(out.transpose(1, 2).flatten(2))
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Residual(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.GroupNorm(32, inputs, eps=1e-6), torch.nn.GroupNorm(32, outputs, eps=1e-6)
        self.conv1, self.conv2 = torch.nn.Conv2d(inputs, outputs, 3, padding=1), torch.nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = torch.nn.Conv2d(inputs, outputs, 1) if inputs != outputs else torch.nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Attention(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = torch.nn.GroupNorm(32, channels, eps=1e-6)
        self.qkv, self.proj = torch.nn.Conv2d(channels, 3 * channels, 1), torch.nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
        out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj(out.transpose(1, 2).reshape(x.shape))


class Upsample(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def decoder():
    """Return the decoder of the visual tokenizer."""
    channels = DECODER_CHANNELS * MULTIPLIERS[-1]
    layers = [torch.nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 3, padding=1), torch.nn.Conv2d(LATENT_CHANNELS, channels, 3, padding=1)]
    layers += [Residual(channels, channels), Attention(channels), Residual(channels, channels)]
    for level in reversed(range(len(MULTIPLIERS))):
        out = DECODER_CHANNELS * MULTIPLIERS[level]
        for _ in range(3):
            layers.append(Residual(channels, out))
            channels = out
            if level == len(MULTIPLIERS) - 1:
                layers.append(Attention(out))
        if level:
            layers.append(Upsample(out))
    layers += [torch.nn.GroupNorm(32, channels, eps=1e-6), torch.nn.SiLU(), torch.nn.Conv2d(channels, 3, 3, padding=1)]
    return torch.nn.Sequential(*layers)


def block_inputs(queries, keys):
    cached = (2, HEADS, keys, HEAD_DIM)
    return torch.randn(2, queries, DIM), torch.randn(cached), torch.randn(cached), torch.randn(queries, HEAD_DIM), torch.randn(queries, HEAD_DIM)


def inputs(part):
    if part["part"] == "block":
        return block_inputs(part["queries"], part["keys"])
    return (torch.randn(1, LATENT_CHANNELS, part["side"], part["side"]),)


def in_torch(module, example):
    """Return a function that runs the module once."""
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    module = module.to(dtype).eval()
    example = [x.to(dtype) for x in example]
    if args.engine == "compile":
        module = torch.compile(module)
    return lambda: module(*example)


def in_openvino(module, example, small):
    """Return a function that runs the module once. int8 is calibrated with the small example."""
    import openvino as ov

    with torch.no_grad():
        model = ov.convert_model(module.eval(), example_input=tuple(small))
    if args.precision == "int8":
        import nncf

        nncf.set_log_level("ERROR")
        calibration = nncf.Dataset([[x.numpy() for x in small]])
        # Its progress bars would be taken for answers.
        stdout, sys.stdout = sys.stdout, sys.stderr
        model = nncf.quantize(model, calibration, subset_size=1, model_type=nncf.ModelType.TRANSFORMER)
        sys.stdout = stdout
    # Fixed shapes are at least as fast as flexible ones.
    model.reshape({port: ov.PartialShape(list(x.shape)) for port, x in zip(model.inputs, example)})
    options = {"INFERENCE_NUM_THREADS": args.threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    # Products outside of int8 stay in f32 unless bf16 is asked for.
    options["INFERENCE_PRECISION_HINT"] = "bf16" if args.precision == "bf16" else "f32"
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    for port, x in enumerate(example):
        request.set_input_tensor(port, ov.Tensor(x.numpy().copy()))
    return request.infer


def prepare(part):
    if part["part"] == "block":
        module, small = Block(), block_inputs(64, 200)
    else:
        module, small = decoder(), (torch.randn(1, LATENT_CHANNELS, 16, 16),)
    example = inputs(part)
    return in_openvino(module, example, small) if args.engine == "openvino" else in_torch(module, example)


@torch.inference_mode()
def serve():
    """Answer each line with the time of a run. What a part needs is prepared once and kept."""
    prepared, first = {}, None
    for line in sys.stdin:
        if line not in prepared:
            # One part at a time keeps memory low: all rounds of a part come together.
            prepared.clear()
            prepared[line] = prepare(json.loads(line))
            prepared[line]()
        start = time.perf_counter()
        prepared[line]()
        print(json.dumps({"seconds": round(time.perf_counter() - start, 4)}), flush=True)


serve()
