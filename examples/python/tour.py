"""A tour of hart. Run it as a script, `python tour.py [FOLDER]`, or cell by cell in an editor that supports `# %%`.

PNG files are written to the folder, or to a temporary folder whose name is printed. HART_MODEL may name a model to use instead of
the one in this repository.
"""

# %% Setup
import os
import sys
import tempfile
import threading
from pathlib import Path

import hart

here = Path(__file__).resolve().parent
model_folder = Path(os.environ.get("HART_MODEL", here.parent / "models" / "hart-emoji"))
# In a notebook, sys.argv holds the arguments of the kernel.
has_folder = "ipykernel" not in sys.modules and len(sys.argv) > 1
out = Path(sys.argv[1] if has_folder else tempfile.mkdtemp(prefix="hart-tour-"))
out.mkdir(parents=True, exist_ok=True)
print(f"hart {hart.version()} on {', '.join(device.description for device in hart.devices())}")
print(f"writing images to {out}")

# %% Open a model
progress: list[hart.Event] = []
model = hart.Model(model_folder, progress=progress.append)  # an event for every tensor
print(f"{len(progress)} tensors in {progress[-1].elapsed:.2f} s")
print(model)
print(model.info)
weights, peak = model.memory()
print(f"{weights / 1e6:.0f} MB of weights, about {peak / 1e6:.0f} MB at the peak of a run")

# %% Generate an image
result = model.generate("a red heart on a yellow background", seed=7)
heart = result[0]
heart.save(out / "heart.png")
print(heart, heart.settings)
print(result.timings)
heart  # displayed in a notebook

# %% Change settings; None, or omitting one, selects the model's default
same = model.generate("a red heart on a yellow background", seed=7)[0]
strict = model.generate("a red heart on a yellow background", seed=7, guidance=8, top_k=10, steps="10,5")[0]
print("same seed, same image:", same.pixels == heart.pixels)
print("other settings, another image:", strict.pixels != heart.pixels)

# %% Stream a run: events, and a preview after every scale
previews = []
with model.stream("a parrot on a light blue background", seed=3, previews=0) as events:
    for event in events:
        if event.image is not None:
            print(f"{event.fraction:4.0%} {event.stage}: {event.step} {event.index} of {event.count}")
            previews.append(event.image)
    parrot = events.result()[0]
parrot.save(out / "parrot.png")
hart.Image.grid(previews, columns=len(previews)).save(out / "parrot-grows.png")
print("previews change nothing:", parrot.pixels == model.generate("a parrot on a light blue background", seed=3)[0].pixels)

# %% Receive the events in a callback, which can cancel the run


def stop_after_two_images(event: hart.Event) -> object:
    return hart.STOP if event.step is hart.Step.IMAGES and event.index >= 2 else None


try:
    model.generate("a guitar", images_per_prompt=8, on_event=stop_after_two_images)
except hart.Cancelled as cancelled:
    print("cancelled from inside:", cancelled.completed)

# %% Cancel from another thread
cancel = hart.Cancel()
timer = threading.Timer(0.3, cancel.request)
timer.start()
try:
    model.generate("a penguin", images_per_prompt=1000, cancel=cancel)
except hart.Cancelled as cancelled:
    print(f"cancelled from outside, {len(cancelled.completed)} images were finished")

# %% Generate from several prompts and seeds, and arrange the images in a grid
prompts = ["a red apple on a white background", "a rocket", "a cat face", "a sunflower"]
result = model.generate(prompts, images_per_prompt=4, seed=1)
for image in result[:4]:
    print(image)
grid = hart.Image.grid(result, columns=4)
grid.save(out / "grid.png")
print(grid)
grid

# %% Encode a prompt once and generate from it several times
with model.encode("a sunflower") as context:
    flowers = [model.generate(context=context, seed=1, guidance=guidance)[0] for guidance in (1, 2, 4)]
    hidden = context.hidden()
    print(f"{hidden.shape} hidden states, {sum(context.mask())} tokens of text, {context.nbytes} bytes")
print("the same image:", flowers[0].pixels == model.generate("a sunflower", seed=1, guidance=1)[0].pixels)
hart.Image.grid(flowers, columns=3).save(out / "flowers.png")

# %% Encode an image into tokens, and decode it with the residual and from the codes alone
tokens = model.tokenize(heart)
for scale in range(tokens.scales):
    codes = tokens.codes(scale)
    print(f"scale {scale + 1}: {len(codes):3} codes, first {list(codes[:6])}")
full = model.reconstruct(tokens)
codes_only = model.reconstruct(tokens, with_residual=False)
hart.Image.grid([heart, full, codes_only], columns=3).save(out / "reconstructed.png")


def difference(a: hart.Image, b: hart.Image) -> float:
    return sum(abs(x - y) for x, y in zip(a.pixels, b.pixels)) / len(a.pixels)


print(f"mean difference, out of 255: {difference(heart, full):.2f} with the residual, {difference(heart, codes_only):.2f} without")

# %% Use NumPy and Pillow, if they are installed
try:
    array = heart.numpy()  # a view of the image's memory
    print(array.shape, array.dtype, "mean colour", array.mean(axis=(0, 1)).round(1))
    print(hart.Image.from_numpy(255 - array))  # a copy
    yellow = (array[..., 0] > 200) & (array[..., 2] < 100)  # True is regenerated
    edit = hart.FromImage.inpaint(heart, yellow)
    model.generate("a red heart on a blue background", from_image=edit)[0].save(out / "heart-edited.png")
    large = heart.pil().resize((256, 256), resample=0)
    large.save(out / "heart-large.png")
except ImportError as error:
    print(f"skipped: {error}")

# %% Handle errors: the class names the cause, the message what to do
for attempt in (
    lambda: model.generate(""),
    lambda: model.generate("a parrot", guidance=float("nan")),
    lambda: hart.Model(out),
):
    try:
        attempt()
    except hart.Error as error:
        print(f"{type(error).__name__}: {error}")

# %% Close the model
model.close()
print("wrote", *sorted(path.name for path in out.glob("*.png")))
