"""Checks the marks of an image file with exiftool and sd-parsers: marks.py FILE PROMPT SOURCE_TYPE. An empty prompt was left out."""

import json
import subprocess
import sys

from sd_parsers import ParserManager


def check(file, prompt, source_type):
    tags = json.loads(subprocess.run(["exiftool", "-json", "-a", "-G1", file], check=True, capture_output=True).stdout)[0]
    by_name = {name.split(":")[-1].lower(): value for name, value in tags.items()}
    assert by_name["digitalsourcetype"] == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source_type}", tags
    assert by_name["aisystemused"] == "hart, model hart-emoji" and by_name["creatortool"].startswith("hart "), tags
    assert by_name["software"].startswith("hart ") and str(by_name["aisystemversionused"]), tags
    assert by_name.get("aipromptinformation", "") == prompt, tags
    settings = json.loads(by_name["hart" if file.endswith("png") else "settings"])
    assert (settings.get("prompt", ""), settings["seed"], settings["model"]) == (prompt, 7, "hart-emoji"), settings
    parameters = by_name["parameters" if file.endswith("png") else "usercomment"]
    fingerprint = settings["model_fingerprint"]
    model = f"Model hash: {fingerprint[:10]}, Model: hart-emoji, Version: {by_name['software']}"
    line = f"Steps: 6, Sampler: HART, CFG scale: 2.5, Seed: 7, Size: 64x64, {model}"
    # exiftool prints line feeds as dots.
    assert parameters.replace("\n", ".") == (f"{prompt}.{line}" if prompt else line), parameters

    info = ParserManager().parse(file)
    assert info is not None and info.generator.name == "AUTOMATIC1111", info
    (sampler,) = info.samplers
    assert sampler.name == "HART" and (sampler.model.name, sampler.model.hash) == ("hart-emoji", fingerprint[:10]), sampler
    assert {key: sampler.parameters[key] for key in ("steps", "cfg_scale", "seed")} == {
        "steps": "6",
        "cfg_scale": "2.5",
        "seed": "7",
    }, sampler
    assert [text.value for text in sampler.prompts] == ([prompt] if prompt else []), sampler
    assert info.metadata["Size"] == "64x64", info.metadata


check(*sys.argv[1:])
