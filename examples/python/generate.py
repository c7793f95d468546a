"""Prompt to PNG: `python generate.py "a red heart on a yellow background"`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import hart
except ImportError as error:
    sys.exit(f"error: {error}")

#: The model that is shipped with the examples.
SHIPPED_MODEL = Path(__file__).resolve().parent.parent / "models" / "hart-emoji"
#: Exit code of a run stopped by Ctrl-C, as shells have it.
INTERRUPTED = 130


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Makes pictures from prompts with HART.")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to draw; several prompts make several pictures")
    parser.add_argument("-m", "--model", type=Path, default=SHIPPED_MODEL, metavar="FOLDER", help="folder with llm and tokenizer")
    parser.add_argument("-o", "--out", type=Path, default=Path("out.png"), metavar="FILE", help="PNG file; further ones get -1, -2")
    parser.add_argument("-n", "--count", type=int, default=1, help="pictures of each prompt; their seeds count up")
    parser.add_argument("-s", "--seed", type=int, default=0, help="seed of each prompt's first picture")
    parser.add_argument("-g", "--guidance", type=float, help="strength of guidance; 0 is none (default: the model's)")
    parser.add_argument("-q", "--quiet", action="store_true", help="shows no progress")
    return parser.parse_args()


class Progress:
    """Shows how far the run is, and saves every picture as soon as it is finished: a later Ctrl-C doesn't take it."""

    def __init__(self, out: Path, quiet: bool) -> None:
        self.out, self.quiet = out, quiet
        # A bar is for people; a file gets lines.
        self.bar = not quiet and sys.stderr.isatty()

    def __call__(self, event: hart.Event) -> None:
        if self.bar:
            print(f"\r{event.fraction:4.0%} {event.stage:<12}", end="", file=sys.stderr, flush=True)
        if event.step == "images":
            number = event.index - 1
            path = self.out if number == 0 else self.out.with_name(f"{self.out.stem}-{number}{self.out.suffix}")
            event.preview().save(path)
            self.say(f"{event.index} of {event.count} -> {path}")

    def say(self, text: str) -> None:
        if not self.quiet:
            print(f"\r{text:<18}" if self.bar else text, file=sys.stderr)


def run(options: argparse.Namespace) -> None:
    if not options.out.parent.is_dir():
        sys.exit(f"error: --out {options.out}: there is no folder {options.out.parent}; make it first")
    progress = Progress(options.out, options.quiet)
    with hart.Model(options.model) as model:
        made = model.generate(
            options.prompts,
            images_per_prompt=options.count,
            seed=options.seed,
            guidance=options.guidance,
            on_event=progress,
        )
    for cut in made.truncated:
        which = "the system prompt" if cut.prompt is None else f"prompt {cut.prompt + 1}"
        print(f"warning: {which} has {cut.tokens} tokens, the model reads {cut.kept}; not read: {cut.cut!r}", file=sys.stderr)
    progress.say(f"{made.timings.total:.2f} s")


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
