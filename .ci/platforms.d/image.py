"""Generate an image with hart.py, on another platform.

usage: image.py FOLDER MODEL PROMPT FILE, where FOLDER has the module or package `hart`; the seed is 7
"""

import sys

folder, path, prompt, file = sys.argv[1:]
sys.path.insert(0, folder)

import hart  # noqa: E402

with hart.Model(path) as model:
    model.generate(prompt, seed=7)[0].save(file)
print(hart.build_info()["target"])
