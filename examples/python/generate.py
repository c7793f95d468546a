"""Generate PNG images from prompts: `python generate.py "a red heart on a yellow background"`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import hart
except ImportError as error:
    sys.exit(f"error: {error}")

#: The model in this repository.
SHIPPED_MODEL = Path(__file__).resolve().parent.parent / "models" / "hart-emoji"
#: Exit code after Ctrl-C, as in shells.
INTERRUPTED = 130


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Generates images from prompts with HART.")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="description of an image; several prompts give several images")
    parser.add_argument("-m", "--model", type=Path, default=SHIPPED_MODEL, metavar="FOLDER", help="folder with llm and tokenizer")
    parser.add_argument("-o", "--out", type=Path, default=Path("out.png"), metavar="FILE", help="PNG file; further ones get -1, -2")
    parser.add_argument("-n", "--count", type=int, default=1, help="images per prompt, with consecutive seeds")
    parser.add_argument("-s", "--seed", type=int, default=0, help="seed of each prompt's first image")
    parser.add_argument("-g", "--guidance", type=float, help="guidance scale; 0 turns it off (default: the model's)")
    parser.add_argument("-q", "--quiet", action="store_true", help="hide progress")
    return parser.parse_args()


class Progress:
    """A progress display that also saves every image as soon as it is finished, so that Ctrl-C does not lose it."""

    def __init__(self, out: Path, quiet: bool) -> None:
        self.out, self.quiet = out, quiet
        # Overwrite one line on a terminal; write separate lines to a file.
        self.interactive = not quiet and sys.stderr.isatty()

    def __call__(self, event: hart.Event) -> None:
        if self.interactive:
            print(f"\r{event.fraction:4.0%} {event.stage:<12}", end="", file=sys.stderr, flush=True)
        if event.step is hart.Step.IMAGES:
            index = event.index - 1
            path = self.out if index == 0 else self.out.with_name(f"{self.out.stem}-{index}{self.out.suffix}")
            event.preview().save(path)
            self.log(f"{event.index} of {event.count} -> {path}")

    def log(self, text: str) -> None:
        if not self.quiet:
            print(f"\r{text:<18}" if self.interactive else text, file=sys.stderr)


def run(options: argparse.Namespace) -> None:
    if not options.out.parent.is_dir():
        sys.exit(f"error: --out {options.out}: there is no folder {options.out.parent}; create it first")
    progress = Progress(options.out, options.quiet)
    with hart.Model(options.model) as model:
        result = model.generate(
            options.prompts,
            images_per_prompt=options.count,
            seed=options.seed,
            guidance=options.guidance,
            on_event=progress,
        )
    for truncation in result.truncated:
        name = "the system prompt" if truncation.prompt is None else f"prompt {truncation.prompt + 1}"
        counts = f"{truncation.tokens} tokens, but the model reads only {truncation.kept}"
        print(f"warning: {name} has {counts}; ignored: {truncation.cut!r}", file=sys.stderr)
    progress.log(f"{result.timings.total:.2f} s")


def main() -> None:
    options = arguments()
    try:
        run(options)
    except KeyboardInterrupt:
        print("\ncancelled", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except hart.Error as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
