#!/usr/bin/env python3
"""Compare the estimated with the measured memory of whole runs, opening and text model included.

Build the library first (`cargo build --release --workspace`), and make checkpoints with `make_checkpoint` and `convert`:

    python3 benches/memory.py FOLDER[:PRECISION] ...

Each run is a process of its own, which opens the model and generates one image. The peak is what `/usr/bin/time -v` calls the
maximum resident set size. The exit status is 1 if a peak differs by more than 10 % from the estimate.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a parrot on a branch"


def run(model: str) -> None:
    """Open one model, generate an image, and print the figures."""
    sys.path.insert(0, str(ROOT / "examples/python"))
    import hart

    folder, _, precision = model.partition(":")
    before = peak()
    start = time.monotonic()
    with hart.Model(folder, precision=precision or "auto", device="cpu") as opened:
        opening, opened_peak = time.monotonic() - start, peak()
        estimate = opened.memory(PROMPT).peak
        start = time.monotonic()
        opened.generate(PROMPT)
        generating = time.monotonic() - start
    # The interpreter and the library's code are not the model's.
    print(opening, opened_peak - before, estimate, peak() - before, generating)


def peak() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Measure every model that is named on the command line."""
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        run(sys.argv[2])
        return 0
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 2
    status = 0
    print("| model | opening, s | after opening, GB | estimate, GB | measured, GB | measured / estimate | image, s |")
    print("|---|---|---|---|---|---|---|")
    for model in sys.argv[1:]:
        output = subprocess.run([sys.executable, __file__, "--one", model], check=True, capture_output=True, text=True).stdout
        opening, opened, estimate, measured, generating = map(float, output.split())
        ratio = measured / estimate
        status |= not 0.9 <= ratio <= 1.1
        print(f"| {model} | {opening:.2f} | {opened / 1e9:.2f} | {estimate / 1e9:.2f} | {measured / 1e9:.2f} | {ratio:.2f} | {generating:.1f} |", flush=True)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
