"""Replays what other programs send to the web server: python web_clients.py URL. Needs pillow.

The bodies have the fields that Open WebUI, LibreChat and SillyTavern send with their defaults, and the checks read what they read.
"""

import base64
import io
import json
import sys
import threading
import time
import urllib.error
import urllib.request

from PIL import Image

BOUNDARY = "----boundary7f3a"


class Server:
    def __init__(self, url):
        self.url = url.rstrip("/")

    def get(self, path):
        with urllib.request.urlopen(self.url + path) as response:
            return json.load(response)

    def post(self, path, body, content_type="application/json"):
        data = json.dumps(body).encode() if content_type == "application/json" else body
        request = urllib.request.Request(self.url + path, data, {"Content-Type": content_type})
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def refuses(self, path, body):
        """Returns the error of a request that is answered with 400."""
        try:
            self.post(path, body)
        except urllib.error.HTTPError as error:
            assert error.code == 400, error
            return json.load(error)["error"]
        raise AssertionError(f"{path} accepted {body}")


def opened(data):
    """Returns the image of base64, with or without the head of a data URL."""
    image = Image.open(io.BytesIO(base64.b64decode(data.split(",", 1)[-1])))
    image.load()
    return image


def png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def form(fields, files):
    """Returns a form as clients encode it."""
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields]
    for name, data in files:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        parts.append(head.encode() + data + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"


def open_webui(server, photo):
    # Engine "openai".
    body = {"model": "gpt-image-1", "prompt": "a parrot", "n": 1, "size": "512x512", "response_format": "b64_json"}
    for image in server.post("/v1/images/generations", body)["data"]:
        assert image.get("url") is None and opened(image["b64_json"]).size == (512, 512)
    for name, count in (("image", 1), ("image[]", 2)):
        fields = [("model", "gpt-image-1"), ("prompt", "a crown"), ("n", "1"), ("size", "256x256"), ("response_format", "b64_json")]
        body = form(fields, [(name, png(photo))] * count)
        assert opened(server.post("/v1/images/edits", *body)["data"][0]["b64_json"]).size == (256, 256)
    # Engine "automatic1111": it selects the model, then draws.
    options = server.get("/sdapi/v1/options")
    models = server.get("/sdapi/v1/sd-models")
    assert any(model["title"] == options["sd_model_checkpoint"] and model["model_name"] for model in models)
    server.post("/sdapi/v1/options", {**options, "sd_model_checkpoint": models[0]["title"]})
    body = {"prompt": "a parrot", "batch_size": 2, "width": 512, "height": 512, "steps": 50, "negative_prompt": "blurry"}
    answer = server.post("/sdapi/v1/txt2img", body)
    assert [opened(image).size for image in answer["images"]] == [(512, 512)] * 2 and isinstance(answer["info"], str)


def librechat(server, photo):
    body = {"prompt": "a parrot", "negative_prompt": "ugly", "cfg_scale": 4.5, "steps": 22, "width": 1024, "height": 1024}
    answer = server.post("/sdapi/v1/txt2img", body)
    info = json.loads(answer["info"])
    assert (info["width"], info["height"]) == opened(answer["images"][0]).size == (1024, 1024)
    text = info["infotexts"][0]
    assert info["infotexts"] == [opened(image).text["parameters"] for image in answer["images"]]
    assert text.startswith("a parrot\nSteps: 8, Sampler: HART") and f"Seed: {info['seed']}" in text.split("\n").pop()
    assert f"Model hash: {info['sd_model_hash']}, " in text and server.get("/sdapi/v1/sd-models")[0]["hash"] == info["sd_model_hash"]
    assert (info["negative_prompt"], info["steps"]) == ("ugly", 22)
    error = server.refuses("/sdapi/v1/txt2img", {**body, "prune": "0.1,0.2,0.3,0.4,0.5"})
    assert error["param"] == "prune" and "at most 4" in error["message"], error
    error = server.refuses("/sdapi/v1/txt2img", {**body, "batch_size": 4, "n_iter": 8})
    assert error["param"] == "n_iter" and "at most 16 in all" in error["message"], error
    image = opened(server.post("/sdapi/v1/txt2img", {**body, "omit_marks": "parameters,prompt"})["images"][0])
    assert "parameters" not in image.text and "a parrot" not in str(image.text)
    body = {"model": "gpt-image-1", "prompt": "a parrot", "n": 1, "background": "auto", "output_format": "webp",
            "output_compression": 100, "quality": "auto", "size": "auto"}
    answer = server.post("/v1/images/generations", body)
    assert opened(answer["data"][0]["b64_json"]).format == "WEBP" and "warnings" not in answer
    body = form([("model", "gpt-image-1"), ("prompt", "a crown"), ("quality", "auto"), ("size", "auto")], [("image[]", png(photo))])
    assert opened(server.post("/v1/images/edits", *body)["data"][0]["b64_json"]).size == photo.size


def sillytavern(server):
    for path in ("samplers", "schedulers", "upscalers"):
        names = [entry["name"] for entry in server.get(f"/sdapi/v1/{path}")]
        assert names and all(names), path
    assert [entry["name"] for entry in server.get("/sdapi/v1/latent-upscale-modes")] == []
    assert [entry["model_name"] for entry in server.get("/sdapi/v1/sd-vae")] == []
    model = server.get("/sdapi/v1/sd-models")[0]["title"]
    server.post("/sdapi/v1/options", {"sd_model_checkpoint": model})
    state = server.get("/sdapi/v1/progress")
    assert state["progress"] == 0.0 and state["state"]["job_count"] == 0
    body = {
        "prompt": "a parrot", "negative_prompt": "low quality", "sampler_name": "DDIM", "scheduler": "normal", "steps": 20,
        "cfg_scale": 7, "width": 512, "height": 512, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent",
        "hr_scale": 1.0, "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": -1,
        "override_settings": {"CLIP_stop_at_last_layers": 1}, "override_settings_restore_afterwards": True, "clip_skip": 1,
        "save_images": True, "send_images": True, "do_not_save_grid": False, "do_not_save_samples": False,
    }
    assert opened(server.post("/sdapi/v1/txt2img", body)["images"][0]).size == (512, 512)
    # A1111's default scale stands for the model's default, so that the image is the library's.
    same = {"prompt": "a parrot", "seed": 5, "cfg_scale": 7, "width": 64, "height": 64}
    own = server.post("/v1/images/generations", {"prompt": "a parrot", "seed": 5})["data"][0]["b64_json"]
    assert server.post("/sdapi/v1/txt2img", same)["images"][0] == own
    assert server.post("/sdapi/v1/txt2img", {**same, "cfg_scale": 21})["images"][0] != own


def edits(server):
    photo, mask = Image.new("RGB", (96, 64), (20, 120, 20)), Image.new("L", (96, 64), 0)
    mask.paste(255, (48, 0, 96, 64))
    text = "data:image/png;base64," + base64.b64encode(png(photo)).decode()
    body = {"prompt": "a crown", "init_images": [text], "mask": base64.b64encode(png(mask)).decode(), "width": 96, "height": 64,
            "denoising_strength": 1, "seed": 3}
    for inverted, box in ((0, (0, 0, 48, 64)), (1, (48, 0, 96, 64))):
        answer = server.post("/sdapi/v1/img2img", {**body, "inpainting_mask_invert": inverted})
        image = opened(answer["images"][0])
        assert image.size == (96, 64) and image.crop(box).getcolors() == [(48 * 64, (20, 120, 20))], inverted
        assert len(image.getcolors(10000)) > 10
        assert answer["parameters"]["init_images"] is None and json.loads(answer["info"])["denoising_strength"] == 1.0

    def changed(strength):
        answer = server.post("/sdapi/v1/img2img", {**body, "mask": None, "denoising_strength": strength})
        pairs = zip(opened(answer["images"][0]).tobytes(), photo.tobytes())
        return sum(abs(a - b) for a, b in pairs)

    assert changed(0.2) < changed(0.9)


def progress(server):
    """Checks that the progress has a preview, and that an interrupted run answers with its finished images."""
    answers = []
    body = {"prompt": "a parrot", "batch_size": 16, "width": 512, "height": 512}
    thread = threading.Thread(target=lambda: answers.append(server.post("/sdapi/v1/txt2img", body)))
    thread.start()
    seen, image = [], None
    while image is None:
        state = server.get("/sdapi/v1/progress?skip_current_image=false")
        seen.append(state["progress"])
        image = state["current_image"]
        assert len(seen) < 500, "no preview"
        time.sleep(0.01)
    assert opened(image).size[0] >= 16 and state["state"]["job_count"] == 1 and 0 <= max(seen) <= 1
    assert server.get("/sdapi/v1/progress?skip_current_image=true")["current_image"] is None
    server.post("/sdapi/v1/interrupt", {})
    thread.join()
    info = json.loads(answers[0]["info"])
    assert len(answers[0]["images"]) == len(info["all_seeds"]) == len(info["infotexts"]) < 16


def main():
    server = Server(sys.argv[1])
    photo = Image.new("RGB", (120, 80), (200, 30, 30))
    open_webui(server, photo)
    librechat(server, photo)
    sillytavern(server)
    edits(server)
    progress(server)
    print("web_clients: ok")


if __name__ == "__main__":
    main()
