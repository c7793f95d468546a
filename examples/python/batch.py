"""Generate an image for each prompt of a file: `python batch.py prompts.csv --out images`. Run it again to continue."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import time
from pathlib import Path

try:
    import hart
except ImportError as error:
    sys.exit(f"error: {error}")

#: The model in this repository.
SHIPPED_MODEL = Path(__file__).resolve().parent.parent / "models" / "hart-emoji"


def shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    return int(index), int(count)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Generates an image with HART for each prompt of a file.")
    parser.add_argument("prompts", type=Path, metavar="FILE", help=".jsonl, .csv, .tsv or .parquet, or a text file")
    parser.add_argument("-m", "--model", type=Path, default=SHIPPED_MODEL, metavar="FOLDER", help="folder with llm and tokenizer")
    parser.add_argument("-o", "--out", type=Path, default=Path("batch"), metavar="FOLDER", help="folder of the images")
    parser.add_argument("--shard", type=shard, default=(0, 1), metavar="K/N", help="generate part K, from 0, of N parts")
    parser.add_argument("--parallel", type=int, metavar="N", help="images at once (default: chosen by the model)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the model (default: one per core)")
    parser.add_argument("--max-failures", type=int, default=0, metavar="N", help="failures that are no error of the program")
    parser.add_argument("-q", "--quiet", action="store_true", help="hide progress")
    return parser.parse_args()


class Signals:
    """The first SIGINT or SIGTERM lets the images in work finish. The next ends the program."""

    def __init__(self) -> None:
        self.received = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: object) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number


def main() -> int:
    given = arguments()
    signals, began, finished, failed = Signals(), time.monotonic(), 0, 0
    show = not given.quiet and sys.stderr.isatty()
    entries = itertools.takewhile(lambda _: not signals.received, hart.read_batch(given.prompts))
    with hart.Model(given.model, threads=given.threads, parallel=given.parallel, keep_text_model=True) as model:
        for result in hart.batch(entries, model, out=given.out, shard=given.shard):
            finished += result.error is None
            if result.error is not None:
                failed += 1
                name = "" if result.id is None else f", {result.id}"
                print(f"{given.prompts}:{result.line}{name}: {result.error}", file=sys.stderr)
            if show:
                rate = (finished + failed) / (time.monotonic() - began)
                print(f"\r{finished} images, {failed} failed, {rate:.2f} per second", end="", file=sys.stderr, flush=True)
    if not given.quiet:
        seconds = time.monotonic() - began
        print(f"{os.linesep if show else ''}{finished} images in {seconds:.1f} s, {failed} failed: {given.out}", file=sys.stderr)
    if signals.received:
        print("stopped: run the same command again to continue", file=sys.stderr)
        return 128 + signals.received
    return int(failed > given.max_failures)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (hart.Error, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
