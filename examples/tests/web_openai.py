"""Tests the web server with OpenAI's client: python web_openai.py URL. Needs openai and pillow."""

import asyncio
import base64
import io
import sys
import time
import urllib.request

import openai
from PIL import Image


def fails(call, kind, words):
    """Asserts that a call raises an error of a kind with some words in its message, and returns the error."""
    try:
        call()
    except kind as error:
        assert words in error.message, error.message
        return error
    raise AssertionError(f"{kind.__name__} was expected")


async def disconnect(url):
    """Checks that a client that disconnects cancels its run."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        many = client.images.generate(prompt="a parrot", n=16, extra_body={"guidance": 2})
        try:
            await asyncio.wait_for(many, 0.3)
        except asyncio.TimeoutError:
            return
    raise AssertionError("sixteen images were generated faster than expected")


def opened(data):
    """Returns the image of a file or of its base64."""
    image = Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))
    image.load()
    return image


def check_files(client):
    """Checks sizes, formats, addresses and warnings."""
    for size in [(256, 256), (1024, 1536), (300, 100), (32, 48)]:
        for kind, name in [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")]:
            text = f"{size[0]}x{size[1]}"
            result = client.images.generate(prompt="a parrot", size=text, output_format=kind, output_compression=90)
            image = opened(result.data[0].b64_json)
            assert (image.size, image.format) == (size, name), (image, kind)
            assert (result.size, result.output_format, result.background) == (text, kind, "opaque")
            assert result.usage.output_tokens > 0 and result.usage.input_tokens > 0
            assert result.usage.total_tokens == result.usage.input_tokens + result.usage.output_tokens
    small, large = (
        len(base64.b64decode(client.images.generate(prompt="a parrot", output_format="jpeg", output_compression=q,
                                                    size="512x512", extra_body={"seed": 1}).data[0].b64_json))
        for q in (20, 95)
    )
    assert small < large
    result = client.images.generate(prompt="a parrot", n=2, response_format="url", output_format="webp", extra_body={"seed": "-1"})
    for image in result.data:
        with urllib.request.urlopen(image.url) as response:
            assert response.headers["content-type"] == "image/webp"
            assert opened(response.read()).format == "WEBP"
    raw = client.images.with_raw_response.generate(
        prompt="a parrot", model="dall-e-3", quality="hd", style="vivid", user="x", extra_body={"negative_prompt": "blurry"}
    )
    assert "negative_prompt" in raw.headers["x-hart-warning"] and len(raw.parse().warnings) == 1


def check_streams(client):
    """Checks that the client parses all events of a stream."""
    for count in range(4):
        for n in (1, 2):
            events = list(client.images.generate(prompt="a parrot", stream=True, partial_images=count, n=n, size="128x96",
                                                 extra_body={"seed": 5}))
            types = [event.type for event in events]
            one = ["image_generation.partial_image"] * count + ["image_generation.completed"]
            assert types == one * n, types
            assert [event.partial_image_index for event in events[:count]] == list(range(count))
            assert all(opened(event.b64_json).size == (128, 96) and event.size == "128x96" for event in events)
            # Partial images are files as well, so AI is named in them.
            assert all(b"/trainedAlgorithmicMedia<" in base64.b64decode(event.b64_json) for event in events)
            assert events[-1].usage.total_tokens > 0 and events[-1].created_at > 1_600_000_000
    plain = client.images.generate(prompt="a parrot", n=2, size="128x96", extra_body={"seed": 5})
    assert plain.data[1].b64_json == events[-1].b64_json
    for marks, is_marked in [("all", False), ("source", False), ("prompt,parameters,settings", True)]:
        events = client.images.generate(prompt="a parrot", stream=True, partial_images=1, extra_body={"omit_marks": marks})
        for event in events:
            file = base64.b64decode(event.b64_json)
            has_prompt = marks == "source" and event.type == "image_generation.completed"
            assert ((b"/trainedAlgorithmicMedia<" in file), (b"a parrot" in file)) == (is_marked, has_prompt), marks
    fails(lambda: list(client.images.generate(prompt=" ", stream=True)), openai.BadRequestError, "empty")


def check_edits(client):
    """Checks edits with a mask, variations and their streams."""
    photo = Image.new("RGB", (120, 80), (200, 30, 30))
    mask = Image.new("RGBA", photo.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (60, 0, 120, 80))

    def file(image):
        data = io.BytesIO()
        image.save(data, "PNG")
        return ("image.png", data.getvalue(), "image/png")

    result = client.images.edit(image=file(photo), mask=file(mask), prompt="a crown", extra_body={"seed": "3"})
    edited = opened(result.data[0].b64_json)
    assert edited.size == photo.size and result.data[0].seed == "3"
    kept = edited.crop((0, 0, 60, 80))
    assert set(kept.get_flattened_data() if hasattr(kept, "get_flattened_data") else kept.getdata()) == {(200, 30, 30)}
    drawn = edited.crop((70, 0, 120, 80)).getcolors(10000)
    assert len(drawn) > 10
    assert result.usage.input_tokens_details.image_tokens > 0
    assert opened(client.images.edit(image=file(photo), prompt="a crown", size="64x64").data[0].b64_json).size == (64, 64)
    several = client.images.edit(image=[file(photo), file(photo)], prompt="a crown", n=2)
    assert len(several.data) == 2 and "first image" in several.warnings[0]
    events = list(client.images.edit(image=file(photo), mask=file(mask), prompt="a crown", stream=True, partial_images=2))
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert all(opened(event.b64_json).size == photo.size for event in events)
    varied = client.images.create_variation(image=file(photo), n=2, response_format="b64_json")
    assert len(varied.data) == 2 and opened(varied.data[0].b64_json).size == photo.size
    error = fails(lambda: client.images.edit(image=file(photo), mask=file(photo), prompt="x"), openai.BadRequestError, "transparent")
    assert error.param == "mask"
    error = fails(lambda: client.images.edit(image=("x.png", b"none", "image/png"), prompt="x"), openai.BadRequestError, "image")
    assert error.param == "image"


def main():
    url = sys.argv[1].rstrip("/") + "/v1"
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    models = [model.id for model in client.models.list()]
    assert models and client.models.retrieve(models[0]).id == models[0]

    settings = {"size": "auto", "response_format": "b64_json", "extra_body": {"seed": 5}}
    result = client.images.generate(model=models[0], prompt="a parrot", n=2, **settings)
    images = [base64.b64decode(image.b64_json) for image in result.data]
    assert len(images) == 2 and images[0] != images[1] and result.created > 1_600_000_000
    assert all(image.startswith(b"\x89PNG") for image in images)
    assert [image.seed for image in result.data] == ["5", "6"]
    again = client.images.generate(prompt="a parrot", extra_body={"seed": 6})
    assert base64.b64decode(again.data[0].b64_json) == images[1]
    random = client.images.generate(prompt="a parrot", n=1).data[0].b64_json
    assert base64.b64decode(random) not in images

    error = fails(lambda: client.images.generate(prompt=" "), openai.BadRequestError, "empty")
    assert error.param == "prompt" and error.type == "invalid_request_error"
    error = fails(lambda: client.images.generate(prompt="x", size="9999x9999"), openai.BadRequestError, "size")
    assert error.param == "size"
    error = fails(lambda: client.images.generate(prompt="x", n=1000), openai.BadRequestError, "at most")
    assert error.param == "n"
    error = fails(lambda: client.images.generate(prompt="x", background="transparent"), openai.BadRequestError, "opaque")
    assert error.param == "background"
    fails(lambda: client.models.retrieve("nothing"), openai.NotFoundError, "nothing")

    check_files(client)
    check_streams(client)
    check_edits(client)
    asyncio.run(disconnect(url))
    start = time.monotonic()
    client.images.generate(prompt="a parrot")
    assert time.monotonic() - start < 1.5, time.monotonic() - start
    print("web_openai: ok")


if __name__ == "__main__":
    main()
