#!/usr/bin/env bash
# sd-parsers 0.6.0: values that A1111 quotes in its `parameters` text are cut at the comma, or lost.
#
# Guess before running: A1111 writes a value with a comma or colon as a JSON string (quote() in its infotext_utils.py), so a reader of
# its files gives back the model "a, b".
# Seen: the line of settings is split at every comma, and each piece at its colon. The model "a, b" is read as "a with the opening
# quote, and for "c: d" there is no model at all. The prompt is read in both cases.
# A program whose model names may contain a comma or colon should replace them in this text, and keep the exact name elsewhere.
#
# Needs Python 3.10 or newer and a network. Exits with 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install sd-parsers==0.6.0 pillow==12.0.0
cat > "$work/read.py" <<'PYTHON'
import io
from PIL import Image, PngImagePlugin
from sd_parsers import ParserManager

for model in ('"a, b"', '"c: d"', "e"):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", f"a house\nSteps: 8, Sampler: S, CFG scale: 4, Seed: 7, Size: 8x8, Model: {model}, Version: 1")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=chunks)
    file.seek(0)
    info = ParserManager().parse(Image.open(file))
    prompt = [prompt.value for prompt in info.prompts]
    print(model, "->", [model.name for model in info.models], prompt)
PYTHON
out=$("$work/venv/bin/python" "$work/read.py")
printf '%s\n' "$out"
[ "$out" = "\"a, b\" -> ['\"a'] ['a house']
\"c: d\" -> [] ['a house']
e -> ['e'] ['a house']" ]
