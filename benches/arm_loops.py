#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Estimate how well the inner loops of hart's ARM kernels use the processor, without an ARM processor.

usage: arm_loops.py LIBRARY [--print]

LIBRARY is a release build of libhart.so for aarch64. For each kernel, the innermost loop with the highest share of products is taken
from the disassembly, and llvm-mca computes the cycles of an iteration from LLVM's models of processors. The result is the share of the
processor's peak, with all operands in the first-level cache. `--print` prints the loops. Needs objdump for aarch64
(binutils-aarch64-linux-gnu) and llvm-mca (llvm).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

#: Kernels: a name, a pattern of the function that holds the loop, and the instructions that multiply.
KERNELS = [
    ("f32 products, many rows", r"F32MacroKernel.*AddToOutput", "fmla"),
    ("f32 products, few rows", r"gemv::Kernel", "fmla"),
    ("f32 attention", r"flash::Attend", "fmla"),
    ("f32 decoder", r"winograd::gemm::Product<f32>", "fmla"),
    ("bf16 products (bfmmla)", r"arm_pairs::bf16", "bfmmla"),
    ("bf16 attention (bfdot)", r"flash::Attend", "bfdot"),
    ("bf16 decoder (bfdot)", r"winograd::gemm::Product<.*Pair>", "bfdot"),
    ("int8 products (smmla)", r"arm_pairs::i8mm", "smmla"),
    ("int8 products (sdot)", r"arm::neon_dot", "sdot"),
    ("int8 products (smull)", r".", "smull2?|smlal2?"),
]
#: Processors of llvm-mca: how many of these instructions they start in a cycle, and which of them they lack or hart doesn't use there.
PROCESSORS = {
    "cortex-a72": (1, {"sdot", "smmla", "bfmmla", "bfdot"}),
    "neoverse-n1": (2, {"smull", "smmla", "bfmmla", "bfdot"}),
    "neoverse-n2": (2, {"smull", "sdot"}),
    "neoverse-v1": (4, {"smull", "sdot"}),
}
#: Iterations that llvm-mca simulates.
ITERATIONS = 1000


def functions(library: str) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Yield the name and the instructions of each function, with their addresses."""
    command = ["aarch64-linux-gnu-objdump", "-dC", "--no-show-raw-insn", library]
    name, code = "", []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as disassembly:
        for line in disassembly.stdout:
            if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
                yield name, code
                name, code = header[1], []
            elif instruction := re.match(r"\s+([0-9a-f]+):\t([^/]*)", line):
                code.append((int(instruction[1], 16), instruction[2].replace("\t", " ").strip()))
    yield name, code


def inner_loops(code: list[tuple[int, str]]) -> Iterator[list[str]]:
    """Yield the loops without a branch but that to their start."""
    index = {address: i for i, (address, _) in enumerate(code)}
    start = 0
    for i, (_, instruction) in enumerate(code):
        if not re.match(r"(?:b|b\.\w+|cbn?z|tbn?z|br|ret)(?: |$)", instruction):
            continue
        branch = re.search(r"\b([0-9a-f]+) <", instruction)
        target = index.get(int(branch[1], 16)) if branch else None
        if target is not None and start <= target <= i:
            yield [text for _, text in code[target:i]]
        start = i + 1


def count(loop: list[str], operation: str) -> int:
    """Return the number of instructions of a loop that match a pattern."""
    return sum(1 for text in loop if re.fullmatch(operation, text.split(" ")[0]))


def density(loop: list[str], operation: str) -> float:
    """Return the share of instructions of a loop that match a pattern."""
    return count(loop, operation) / max(len(loop), 1)


def cycles(loop: list[str], processor: str) -> float:
    """Return the cycles of an iteration."""
    with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
        file.write("\n".join(loop) + "\n")
        file.flush()
        command = ["llvm-mca", "-mtriple=aarch64-linux-gnu", f"-mcpu={processor}", "-mattr=+dotprod,+i8mm,+bf16", file.name]
        report = subprocess.run([*command, f"-iterations={ITERATIONS}"], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"Total Cycles: +(\d+)", report)[1]) / ITERATIONS


def main() -> None:
    """Print a table of kernels and processors."""
    library, show = next((a for a in sys.argv[1:] if a != "--print"), None), "--print" in sys.argv
    if library is None:
        sys.exit(__doc__)
    for tool in ("aarch64-linux-gnu-objdump", "llvm-mca"):
        if shutil.which(tool) is None:
            sys.exit(f"no {tool}: see the usage in {sys.argv[0]}")
    best: dict[str, list[str]] = {}
    for name, code in functions(library):
        for kernel, pattern, operation in KERNELS:
            if not re.search(pattern, name):
                continue
            for loop in inner_loops(code):
                if count(loop, operation) >= 16 and density(loop, operation) > density(best.get(kernel, []), operation):
                    best[kernel] = loop
    print("| kernel | products in instructions |", " | ".join(PROCESSORS), "|\n|" + "---|" * (2 + len(PROCESSORS)))
    for kernel, _, operation in KERNELS:
        loop = best.get(kernel)
        if loop is None:
            print(f"| {kernel} | not found |")
            continue
        products, first, shares = count(loop, operation), operation.split("|")[0].rstrip("2?"), []
        for processor, (rate, lacks) in PROCESSORS.items():
            shares.append("" if first in lacks else f"{100 * products / rate / cycles(loop, processor):.0f} %")
        print(f"| {kernel} | {products} of {len(loop) + 1} |", " | ".join(shares), "|")
    if show:
        for kernel, loop in best.items():
            print(f"\n{kernel}:", *loop, sep="\n  ")


if __name__ == "__main__":
    main()
