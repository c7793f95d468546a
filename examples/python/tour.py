"""A tour of hart, in cells for an editor that knows `# %%`, or from top to bottom: `python tour.py [FOLDER]`.

It writes its PNG files into the folder, or into a temporary one that it names. HART_MODEL may name another model than the
shipped one.
"""

# %% Where things are
import os
import sys
import tempfile
import threading
from pathlib import Path

import hart

here = Path(__file__).resolve().parent
model_folder = Path(os.environ.get("HART_MODEL", here.parent / "models" / "hart-emoji"))
# In a notebook the arguments are its kernel's.
named = "ipykernel" not in sys.modules and len(sys.argv) > 1
out = Path(sys.argv[1] if named else tempfile.mkdtemp(prefix="hart-tour-"))
out.mkdir(parents=True, exist_ok=True)
print(f"hart {hart.version()} on {', '.join(device.description for device in hart.devices())}")
print(f"pictures go to {out}")

# %% Open a model
model = hart.Model(model_folder)
print(model)
print(model.info)
weights, peak = model.memory()
print(f"{weights / 1e6:.0f} MB of weights, about {peak / 1e6:.0f} MB at the height of a run")

# %% Make a picture
result = model.generate("a red heart on a yellow background", seed=7)
heart = result[0]
heart.save(out / "heart.png")
print(heart, heart.settings)
print(result.timings)
heart  # a notebook shows it

# %% Settings: None, or leaving one out, is the model's own
same = model.generate("a red heart on a yellow background", seed=7)[0]
harsh = model.generate("a red heart on a yellow background", seed=7, guidance=8, top_k=10, steps="10,5")[0]
print("same seed, same picture:", same.pixels == heart.pixels)
print("other settings, another picture:", harsh.pixels != heart.pixels)

# %% Watch a run: events, and the picture as it grows, scale by scale
stages = []
with model.stream("a parrot on a light blue background", seed=3, previews=0) as events:
    for event in events:
        if event.image is not None:
            print(f"{event.fraction:4.0%} {event.stage}: {event.step} {event.index} of {event.count}")
            stages.append(event.image)
    parrot = events.result()[0]
parrot.save(out / "parrot.png")
hart.Image.grid(stages, columns=len(stages)).save(out / "parrot-grows.png")
print("previews change nothing:", parrot.pixels == model.generate("a parrot on a light blue background", seed=3)[0].pixels)

# %% Or hear of it in a function, which may end the run
try:
    enough = lambda event: hart.STOP if event.step == "images" and event.index >= 2 else None
    model.generate("a guitar", images_per_prompt=8, on_event=enough)
except hart.Cancelled as cancelled:
    print("cancelled from inside:", cancelled.completed)

# %% Cancel from another thread
cancel = hart.Cancel()
timer = threading.Timer(0.3, cancel.request)
timer.start()
try:
    model.generate("a penguin", images_per_prompt=1000, cancel=cancel)
except hart.Cancelled as cancelled:
    print(f"cancelled from outside, {len(cancelled.completed)} pictures were finished")

# %% Several prompts, several seeds, one picture of all
prompts = ["a red apple on a white background", "a rocket", "a cat face", "a sunflower"]
result = model.generate(prompts, images_per_prompt=4, seed=1)
for image in result[:4]:
    print(image)
grid = hart.Image.grid(result, columns=4)
grid.save(out / "grid.png")
print(grid)
grid

# %% A picture to tokens and back: with the residual, which HART adds to codes, and from the codes alone
tokens = model.tokenize(heart)
for scale in range(tokens.scales):
    codes = tokens.codes(scale)
    print(f"scale {scale + 1}: {len(codes):3} codes, first {list(codes[:6])}")
both = model.reconstruct(tokens)
codes_only = model.reconstruct(tokens, with_residual=False)
hart.Image.grid([heart, both, codes_only], columns=3).save(out / "reconstructed.png")


def difference(a: hart.Image, b: hart.Image) -> float:
    return sum(abs(x - y) for x, y in zip(a.pixels, b.pixels)) / len(a.pixels)


print(f"mean difference, of 255: {difference(heart, both):.2f} with the residual, {difference(heart, codes_only):.2f} without")

# %% NumPy and Pillow, if they are there
try:
    array = heart.numpy()  # looks at the picture's own memory
    print(array.shape, array.dtype, "mean colour", array.mean(axis=(0, 1)).round(1))
    print(hart.Image(array.shape[1], array.shape[0], 255 - array))  # and back: copied
    large = heart.pil().resize((256, 256), resample=0)
    large.save(out / "heart-large.png")
except ImportError as error:
    print(f"left out: {error}")

# %% What won't do is said, and whose fault it is
for attempt in (
    lambda: model.generate(""),
    lambda: model.generate("a parrot", guidance=float("nan")),
    lambda: hart.Model(out),
):
    try:
        attempt()
    except hart.Error as error:
        print(f"{type(error).__name__}: {error}")

# %% Done
model.close()
print("wrote", *sorted(path.name for path in out.glob("*.png")))
