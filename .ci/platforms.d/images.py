#!/usr/bin/env python3
"""Compare the images of several platforms, pixel by pixel, and print a table in Markdown.

usage: images.py FOLDER REFERENCE

FOLDER has a folder for each platform, in it one for each precision, and in that one PNG file for each image, with the same
names everywhere. REFERENCE is the platform that the others are compared with. Needs nothing but Python.
"""

from __future__ import annotations

import math
import statistics
import struct
import sys
import zlib
from pathlib import Path


def pixels(file: Path) -> tuple[int, list[bytes]]:
    """Return the number of bytes per pixel and the rows of a PNG file of 8-bit samples, without interlacing."""
    data = file.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        sys.exit(f"images.py: {file} is not a PNG file")
    at, compressed = 8, b""
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
            if depth != 8 or colour not in (2, 6) or interlace:
                sys.exit(f"images.py: {file} is not an RGB file of 8 bits")
            size = 3 if colour == 2 else 4
        elif kind == b"IDAT":
            compressed += body
        at += 12 + length
    raw, stride = zlib.decompress(compressed), width * size
    rows, above = [], bytes(stride)
    for start in range(0, len(raw), stride + 1):
        method, row = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for i in range(stride):
            left = row[i - size] if i >= size else 0
            corner = above[i - size] if i >= size else 0
            row[i] = (row[i] + prediction(method, left, above[i], corner)) & 255
        above = bytes(row)
        rows.append(above)
    return size, rows


def prediction(method: int, left: int, up: int, corner: int) -> int:
    """Return what a filter of PNG predicts for a byte from its neighbours."""
    if method == 4:
        distances = [abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)]
        return (left, up, corner)[distances.index(min(distances))]
    return (0, left, up, (left + up) // 2)[method]


def compare(folder: Path, reference: Path) -> str:
    """Return the cell of the table for the images of a folder."""
    files = sorted(reference.glob("*.png"))
    if not files or [file.name for file in files] != sorted(file.name for file in folder.glob("*.png")):
        sys.exit(f"images.py: {folder} has other images than {reference}")
    counts, levels, ratios = [], [], []
    for file in files:
        size, want = pixels(file)
        _, got = pixels(folder / file.name)
        a, b = b"".join(want), b"".join(got)
        differences = [abs(x - y) for x, y in zip(a, b)]
        counts.append(sum(any(differences[i : i + size]) for i in range(0, len(differences), size)))
        levels.append(max(differences))
        mean = sum(difference * difference for difference in differences) / len(differences)
        ratios.append(10 * math.log10(255 * 255 / mean) if mean else math.inf)
    if not any(counts):
        return "equal"
    differing = sum(count > 0 for count in counts)
    spread = f"{max(counts)} pixels by {max(levels)} level{'s' * (max(levels) > 1)}"
    median = statistics.median(ratios)
    signal = f"PSNR {min(ratios):.0f} dB" if median == math.inf else f"PSNR {min(ratios):.0f} dB, median {median:.0f} dB"
    return f"{differing} of {len(files)}: at most {spread}; {signal}"


def main() -> None:
    """Print the table."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    root, reference = Path(sys.argv[1]), Path(sys.argv[1], sys.argv[2])
    precisions = sorted(folder.name for folder in reference.iterdir())
    print("| platform | " + " | ".join(precisions) + " |\n" + "|---" * (1 + len(precisions)) + "|")
    for platform in sorted(root.iterdir()):
        if platform != reference:
            cells = [
                compare(platform / precision, reference / precision) if (platform / precision).is_dir() else ""
                for precision in precisions
            ]
            print(f"| {platform.name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
