"""Kill a worker and then the driver of examples/python/ray_batch.py, run it again, and compare the results with one machine.

usage: ray_kill.py, with the folder of ray_batch.py in PYTHONPATH
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet

import hart
import ray_batch

#: The prompt that kills the worker that begins it.
POISON = "a prompt that kills its worker"
#: Number of deaths after which it is an error.
MAX_ATTEMPTS = 2
#: Number of images in the main test.
COUNT = 120
#: Seconds until the test fails instead of waiting.
TIME_LIMIT = 600


class FragileWorker(ray_batch.Worker):
    """A worker that reports its process, and dies of one of the prompts."""

    def __init__(self, settings: ray_batch.Settings) -> None:
        super().__init__(settings)
        (Path(settings.attempts).parent / f"{os.getpid()}.pid").touch()
        batch = hart.batch

        def mortal(entries: Iterable[hart.BatchEntry], model: hart.Model) -> Any:
            def checked() -> Iterator[hart.BatchEntry]:
                for entry in entries:
                    if isinstance(entry.value, dict) and entry.value.get("prompt") == POISON:
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield entry

            return batch(checked(), model)

        hart.batch = mortal  # type: ignore[assignment]


def drive(prompts: Path, out: Path, images: bool) -> None:
    """Run the driver in this process."""
    model, workers, block = ray_batch.SHIPPED_MODEL, 2, 6
    given = Namespace(
        prompts=prompts, out=out, model=model, workers=workers, threads=1, block=block, images=images, max_attempts=MAX_ATTEMPTS
    )
    given.address = None
    ray_batch.run(given, FragileWorker)


def start(prompts: Path, out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with open(out.with_suffix(".log"), "ab") as log:
        command = [sys.executable, __file__, "drive", str(prompts), str(out), *arguments]
        return subprocess.Popen(command, stdout=log, stderr=log)


def finish(driver: subprocess.Popen[bytes]) -> None:
    assert driver.wait(TIME_LIMIT) == 0, f"the driver failed with {driver.returncode}"


def wait_for(what: str, is_true: Callable[[], bool], driver: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + TIME_LIMIT
    while not is_true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        assert driver is None or driver.poll() is None, f"the driver ended before {what}"
        time.sleep(0.02)


def pids(out: Path) -> set[int]:
    return {int(path.stem) for path in out.glob("*.pid")}


def is_alive(pid: int) -> bool:
    try:
        # The state follows the name. A killed process may remain as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def results(out: Path) -> list[dict[str, Any]]:
    return [row for path in (out / "results").glob("*.parquet") for row in pyarrow.parquet.read_table(path).to_pylist()]


def compare(prompts: Path, out: Path, images: bool) -> None:
    """Compare the results with those of one process, without the prompt that kills it."""
    rows = results(out)
    ids = [row["id"] for row in rows]
    entries = list(ray_batch.read_entries(prompts))
    assert sorted(ids) == sorted(row["id"] for row in entries), f"{len(ids)} results, {len(set(ids))} ids"
    by_line = {row["line"]: row for row in rows}
    poison = [entry for entry in hart.read_batch(prompts) if isinstance(entry.value, dict) and entry.value.get("prompt") == POISON]
    for entry in poison:
        assert by_line.pop(entry.line)["error"] == f"its worker died in {MAX_ATTEMPTS} attempts"
    with hart.Model(ray_batch.SHIPPED_MODEL) as model:
        for result in hart.batch((entry for entry in hart.read_batch(prompts) if entry not in poison), model):
            row = by_line.pop(result.line)
            assert (result.error is None) == (row["error"] is None), (result, row)
            if result.image is None:
                assert row["png"] is None and row["seed"] is None
                continue
            png = (out / "images" / f"{result.id}.png").read_bytes() if images else row["png"]
            assert (row["seed"], row["warnings"]) == (result.seed, list(result.warnings))
            assert (row["png"] is None) == images
            assert png == result.image.png(), f"the image of {result.id} differs"
    assert not by_line
    assert not [path for path in (out / "attempts").iterdir() if path.stat().st_size < MAX_ATTEMPTS]


def kill_and_run_again(folder: Path) -> None:
    prompts, out = folder / "prompts.jsonl", folder / "out"
    lines = [json.dumps({"id": f"p{number}", "prompt": f"{number} apples"}) for number in range(COUNT)]
    lines[7] = "{not JSON"
    lines[8] = json.dumps({"id": "p3", "prompt": "an id for the second time"})
    lines[9] = json.dumps({"id": "p9", "prompt": " "})
    lines[10] = json.dumps({"id": "p10", "prompt": "a cat", "seed": 2**64 - 1})
    lines[11] = json.dumps({"id": "p11", "prompt": "a cat", "seed": "9007199254740993", "guidance": 2})
    lines[12] = json.dumps({"custom_id": "p12", "body": {"prompt": "a parrot", "size": "64x64"}})
    lines[20] = json.dumps({"id": "poison", "prompt": POISON})
    prompts.write_text("\n".join(lines))

    driver = start(prompts, out)
    # The prompt has killed workers; now one dies of something else.
    wait_for("two dead workers", lambda: sum(not is_alive(pid) for pid in pids(out)) >= MAX_ATTEMPTS, driver)
    wait_for("a living worker", lambda: any(map(is_alive, pids(out))), driver)
    os.kill(next(pid for pid in pids(out) if is_alive(pid)), signal.SIGKILL)
    wait_for("results", lambda: len(list((out / "checkpoint").glob("*[0-9].parquet"))) >= 3, driver)
    driver.kill()
    driver.wait()
    wait_for("the end of the workers", lambda: not any(map(is_alive, pids(out))))
    # A result without its committed checkpoint is not done: the next run removes it.
    done = sum(pyarrow.parquet.read_table(path).num_rows for path in (out / "checkpoint").glob("*[0-9].parquet"))
    assert 0 < done < COUNT
    before = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    print(f"killed {len(pids(out))} workers and the driver; {done} of {COUNT} prompts are done")

    finish(start(prompts, out))
    compare(prompts, out, images=False)
    kept = sum(path.exists() and path.stat().st_mtime_ns == time_of_file for path, time_of_file in before.items())
    assert kept >= 3, "what is done is kept"
    # Nothing is left to do.
    files = sorted((out / "results").iterdir())
    finish(start(prompts, out))
    assert files == sorted((out / "results").iterdir())
    print("every id occurs once, and the images are those of one process")


def write_images(folder: Path) -> None:
    prompts, out = folder / "prompts.csv", folder / "with-images"
    prompts.write_text("id,prompt,seed\na,a parrot,18446744073709551615\nb,a house,\nc,,\n")
    finish(start(prompts, out, "images"))
    compare(prompts, out, images=True)
    print("PNG files are those of one process")


if __name__ == "__main__":
    if sys.argv[1:2] == ["drive"]:
        drive(Path(sys.argv[2]), Path(sys.argv[3]), "images" in sys.argv[4:])
    else:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                kill_and_run_again(Path(scratch))
                write_images(Path(scratch))
            except BaseException:
                for log in Path(scratch).glob("*.log"):
                    print(log.name, log.read_text()[-4000:], file=sys.stderr)
                raise
