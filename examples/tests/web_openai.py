"""Tests the web server with OpenAI's client: python web_openai.py URL. Needs openai."""

import asyncio
import base64
import sys
import time

import openai


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
    assert [image.seed for image in result.data] == [5, 6]
    again = client.images.generate(prompt="a parrot", extra_body={"seed": 6})
    assert base64.b64decode(again.data[0].b64_json) == images[1]
    random = client.images.generate(prompt="a parrot", n=1).data[0].b64_json
    assert base64.b64decode(random) not in images

    error = fails(lambda: client.images.generate(prompt=" "), openai.BadRequestError, "empty")
    assert error.param == "prompt" and error.type == "invalid_request_error"
    error = fails(lambda: client.images.generate(prompt="x", size="1024x1024"), openai.BadRequestError, "64x64")
    assert error.param == "size"
    fails(lambda: client.images.generate(prompt="x", n=1000), openai.BadRequestError, "at most")
    fails(lambda: client.models.retrieve("nothing"), openai.NotFoundError, "nothing")

    asyncio.run(disconnect(url))
    start = time.monotonic()
    client.images.generate(prompt="a parrot")
    assert time.monotonic() - start < 1.5, time.monotonic() - start
    print("web_openai: ok")


if __name__ == "__main__":
    main()
