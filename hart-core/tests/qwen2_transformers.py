"""Compares the hidden states of hart's text encoder with those of transformers' Qwen2Model: qwen2_transformers.py CHECKPOINT...

Tokens, padding and masks are made here, with the library `tokenizers`, as section 1 of docs/specification.md says. The only part of
hart that takes part is `Model.encode`. Both compute in f32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import hart
import numpy
import tokenizers
import torch
import transformers

#: Maximum difference of a value, in standard deviations of all values: the bound of hart-core/tests/golden.rs for recorded values.
MAX_ERROR = 1e-4
#: Minimum cosine of the hidden states of a token.
MIN_COSINE = 1 - 1e-6
#: The last prompt is longer than any model's limit.
PROMPTS = [
    "a parrot",
    "a green parrot playing a bass guitar, studio light",
    "two red circles above a blue square; \U0001f99c caf\u00e9, \u5fc3",
    "word " * 2000,
]
SYSTEM_PROMPTS = ["", "Describe the picture in detail.\nUser Prompt:\n"]


class Tokenizer:
    """The tokenizer of a text model's folder, with its settings."""

    def __init__(self, folder: Path, limit: int) -> None:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        special = folder / "special_tokens_map.json"
        pad = settings.get("pad_token") or json.loads(special.read_text(encoding="utf-8"))["pad_token"]
        self.bpe = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.bpe.no_truncation()
        self.bpe.no_padding()
        self.pad = self.bpe.token_to_id(pad if isinstance(pad, str) else pad["content"])
        self.left_padding = settings.get("padding_side", "right") == "left"
        self.left_truncation = settings.get("truncation_side", "right") == "left"
        self.limit = limit

    def truncated(self, text: str) -> list[int]:
        """Return the ids of a text, at most as many as the model reads."""
        ids = self.bpe.encode(text).ids
        return ids[max(len(ids) - self.limit, 0) :] if self.left_truncation else ids[: self.limit]

    def padded(self, text: str) -> list[int]:
        """Return the ids of a text, exactly as many as the model reads."""
        ids = self.truncated(text)
        padding = [self.pad] * (self.limit - len(ids))
        return padding + ids if self.left_padding else ids + padding


def encode(model: Any, tokenizer: Tokenizer, prompt: str, system_prompt: str) -> tuple[numpy.ndarray, list[bool]]:
    """Return the hidden states `[tokens, channels]` of a prompt by transformers, without the system prompt's, and its mask."""
    system = tokenizer.truncated(system_prompt) if system_prompt else []
    ids = tokenizer.padded(prompt)
    mask = [token != tokenizer.pad for token in ids]
    rows = torch.tensor([system + ids])
    attention = torch.tensor([[1] * len(system) + [int(is_text) for is_text in mask]])
    # Positions are indices, whatever the mask.
    positions = torch.arange(rows.shape[1])[None]
    with torch.no_grad():
        hidden = model(input_ids=rows, attention_mask=attention, position_ids=positions, use_cache=False).last_hidden_state
    return hidden[0, len(system) :].numpy(), mask


def compare(checkpoint: Path) -> bool:
    """Compare all prompts of a checkpoint. Return whether they agree."""
    text = checkpoint / "text"
    model, info = transformers.Qwen2Model.from_pretrained(
        text, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise SystemExit(f"{text}: transformers did not load all tensors: {info}")
    model.eval()
    agree = True
    with hart.Model(checkpoint, device="cpu", precision="f32", strict=False) as ours:
        tokenizer = Tokenizer(text, ours.info.context_tokens)
        for system_prompt in SYSTEM_PROMPTS:
            context = ours.encode(PROMPTS, system_prompt=system_prompt)
            for index, prompt in enumerate(PROMPTS):
                want, mask = encode(model, tokenizer, prompt, system_prompt)
                got = numpy.asarray(context.hidden(index))
                if got.shape != want.shape or list(context.mask(index)) != mask:
                    raise SystemExit(f"{checkpoint}: the shape or the mask of {prompt[:40]!r} differs")
                difference = numpy.abs(got.astype(numpy.float64) - want).max(axis=1)
                products = (got.astype(numpy.float64) * want).sum(axis=1)
                norms = numpy.linalg.norm(got.astype(numpy.float64), axis=1) * numpy.linalg.norm(want.astype(numpy.float64), axis=1)
                cosine = products / norms
                error = difference.max() / want.astype(numpy.float64).std()
                worst = int(difference.argmax())
                print(
                    f"{prompt[:24]!r:28} {'with' if system_prompt else 'no'} system prompt, {sum(mask)} of {len(mask)} tokens:"
                    f" max. error {difference.max():.1e} ({error:.1e} standard deviations) at token {worst},"
                    f" text {difference[numpy.array(mask)].max():.1e}, min. cosine 1 - {1 - cosine.min():.1e}"
                )
                agree &= bool(error <= MAX_ERROR and cosine.min() >= MIN_COSINE)
    return agree


def main() -> None:
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, hart {hart.version()}")
    failed = []
    for name in sys.argv[1:]:
        print(name)
        if not compare(Path(name)):
            failed.append(name)
    if failed:
        raise SystemExit(f"more than {MAX_ERROR} standard deviations or a cosine below {MIN_COSINE}: {', '.join(failed)}")
    print(f"all values within {MAX_ERROR} standard deviations, all cosines at least {MIN_COSINE}")


if __name__ == "__main__":
    main()
