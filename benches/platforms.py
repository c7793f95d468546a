#!/usr/bin/env python3
"""Compare the images of ten prompts between platforms, pixel by pixel.

    python3 benches/platforms.py NAME=COMMAND NAME=COMMAND ...

Each COMMAND runs a program with the options of `generate`; the images of the others are compared with those of the first. Instruction
sets are chosen by emulating a processor without the others. For example, on a processor with AVX-512:

    python3 benches/platforms.py \\
        "x86-64, AVX-512=target/release/generate" \\
        "x86-64, AVX2=qemu-x86_64-static -cpu Haswell target/release/generate" \\
        "x86-64, SSE2=qemu-x86_64-static -cpu Nehalem target/release/generate" \\
        "ARM64, Cortex-A72=qemu-aarch64-static -cpu cortex-a72 -L /usr/aarch64-linux-gnu arm64/generate" \\
        "Windows=wine windows/generate.exe" \\
        "wasm=node examples/browser/generate.mjs --threads 1"

The exit status is 1 if a command fails, or if an image's PSNR is below --psnr.
"""

import argparse
import math
import shlex
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

PROMPTS = [
    "a red heart on a yellow background",
    "a blue star",
    "a green apple",
    "a smiling face with sunglasses",
    "a cat with orange stripes",
    "a house with a red roof",
    "a purple flower",
    "a rocket in space",
    "a slice of pizza",
    "a clock showing three",
]


def pixels(path: Path) -> bytes:
    """Return the pixels of a PNG file in 8-bit RGB."""
    png = path.read_bytes()
    data, at, width = b"", 8, 0
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
            if (depth, colour, interlace) != (8, 2, 0):
                sys.exit(f"{path}: expected a PNG file in 8-bit RGB")
        elif kind == b"IDAT":
            data += body
        at += 12 + length
    raw, stride = zlib.decompress(data), 3 * width
    image, above = b"", bytes(stride)
    for start in range(0, len(raw), stride + 1):
        kind, row = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for x in range(stride):
            a, b, c = (row[x - 3] if x >= 3 else 0), above[x], (above[x - 3] if x >= 3 else 0)
            nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            row[x] = (row[x] + (0, a, b, (a + b) // 2, nearest)[kind]) & 0xFF
        above = bytes(row)
        image += above
    return image


def generate(command: str, model: str | None, seed: int) -> tuple[list[bytes], float]:
    """Run a command for all prompts, and return the pixels of their images and the seconds that it took."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        # A relative path, which Windows programs under wine understand too.
        pattern = f"{Path(folder).name}/{{n}}.png"
        options = ["--seed", str(seed), "--out", pattern, "--quiet", *(["--model", model] if model else [])]
        start = time.monotonic()
        done = subprocess.run([*shlex.split(command), *PROMPTS, *options], capture_output=True, text=True)
        seconds = time.monotonic() - start
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip() or f"exit status {done.returncode}")
        return [pixels(Path(folder) / f"{index}.png") for index in range(len(PROMPTS))], seconds


def psnr(a: bytes, b: bytes) -> float:
    """Return the peak signal-to-noise ratio of two images in dB."""
    error = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def row(name: str, images: list[bytes], first: list[bytes], seconds: float) -> tuple[str, float]:
    """Return a line of the table, and the lowest PSNR."""
    identical = sum(a == b for a, b in zip(images, first))
    different, largest = 0, 0
    for image, other in zip(images, first):
        differences = [abs(x - y) for x, y in zip(image, other, strict=True)]
        different += sum(any(differences[i : i + 3]) for i in range(0, len(differences), 3))
        largest = max(largest, *differences)
    lowest = min(psnr(a, b) for a, b in zip(images, first))
    total = sum(len(image) // 3 for image in images)
    ratio = "" if lowest == math.inf else f"{lowest:.1f} dB"
    return f"| {name} | {identical} of {len(images)} | {different} of {total} | {largest} | {ratio} | {seconds:.1f} s |", lowest


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=COMMAND", help="name of a platform, and how `generate` is run on it")
    parser.add_argument("--model", help="model folder (default: the programs' own)")
    parser.add_argument("--seed", type=int, default=7, help="seed of each image (default: 7)")
    parser.add_argument("--psnr", type=float, default=40.0, help="lowest PSNR that passes, in dB (default: 40)")
    arguments = parser.parse_args()
    print("| platform | identical images | differing pixels | largest difference | lowest PSNR | time |")
    print("|---|---|---|---|---|---|")
    first, failed = None, False
    for run in arguments.runs:
        name, separator, command = run.partition("=")
        if not separator:
            parser.error(f"{run}: expected NAME=COMMAND")
        try:
            images, seconds = generate(command, arguments.model, arguments.seed)
        except (OSError, RuntimeError) as error:
            print(f"| {name} | failed: {error} |", flush=True)
            failed = True
            continue
        first = first or images
        line, lowest = row(name, images, first, seconds)
        print(line, flush=True)
        failed |= lowest < arguments.psnr
    sys.exit(failed)


if __name__ == "__main__":
    main()
