"""Checks that clients of a full queue succeed when they come back: python web_retry.py URL. Needs openai, and the server's --queue 8."""

import sys
import threading

import openai


def main():
    # The retries of the client are those that it has by default.
    client = openai.OpenAI(base_url=sys.argv[1].rstrip("/") + "/v1", api_key="none")
    refused, images, failures = [], [], []
    client._client.event_hooks["response"].append(lambda response: refused.append(response.status_code == 429))

    def generate(number):
        try:
            result = client.images.generate(prompt="a parrot", n=8, extra_body={"seed": number})
            images.extend(result.data)
        except openai.OpenAIError as error:
            failures.append(error)

    threads = [threading.Thread(target=generate, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(images) == 24 * 8, (len(images), failures[:3])
    assert any(refused), "the queue was never full: start the server with --queue 8"
    print(f"web_retry: ok, {sum(refused)} of {len(refused)} answers were refusals")


if __name__ == "__main__":
    main()
