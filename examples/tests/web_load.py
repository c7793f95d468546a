"""Puts load on the web server: python web_load.py URL [REQUESTS [CLIENTS]].

Every request must be answered with its image, which must be that of the request made alone. Prints the throughput as a multiple of
that of one client, and the memory of the server before and after. Needs prometheus_client to read /metrics.
"""

import json
import sys
import threading
import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

PROMPTS = ["a parrot", "a red heart", "a rocket", "a guitar", "a crown"]


def main():
    url = sys.argv[1].rstrip("/")
    requests = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    clients = int(sys.argv[3]) if len(sys.argv) > 3 else 50

    def generate(number):
        body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number % 20}
        request = urllib.request.Request(url + "/v1/images/generations", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)["data"][0]["b64_json"]

    def metrics():
        with urllib.request.urlopen(url + "/metrics") as response:
            families = text_string_to_metric_families(response.read().decode())
            return {(sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples}

    def memory():
        return metrics()[("process_resident_memory_bytes",)] / 2**20

    expected = [generate(number) for number in range(20)]
    start = time.monotonic()
    for number in range(100):
        generate(number)
    alone = 100 / (time.monotonic() - start)

    before, lock, numbers, failures, memories = metrics(), threading.Lock(), iter(range(requests)), [], [memory()]

    def client():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                if generate(number) != expected[number % 20]:
                    failures.append(f"{number}: another image")
            except Exception as error:
                failures.append(f"{number}: {error}")
            if number % (requests // 4) == 0:
                memories.append(memory())

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - start
    assert not failures, failures[:5]
    after = metrics()
    key = ("hart_images_total",)
    assert after[key] - before[key] == requests, (before[key], after[key])
    memories.append(memory())
    print(f"{requests} requests of {clients} clients in {took:.1f} s, none lost: {requests / took / alone:.2f} of one client's throughput")
    print("memory in MiB:", ", ".join(f"{value:.0f}" for value in memories))
    # After the first quarter, the connections and kept prompts have taken what they need.
    assert max(memories[2:]) < 1.2 * memories[1] + 32, memories
    print("web_load: ok")


if __name__ == "__main__":
    main()
