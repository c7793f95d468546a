"""Generate an image for each prompt of a file with Ray Data, on one machine or a cluster: `python ray_batch.py prompts.jsonl`.

The images are those of `hart.batch`. The same command continues a run that was interrupted. README.md says more.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig

import hart

#: The model in this repository.
SHIPPED_MODEL = Path(__file__).resolve().parent.parent / "models" / "hart-emoji"
#: CPUs that Ray reserves for each task that reads or writes. The workers must leave as much.
IO_CPUS = 0.25
#: Prompts as the workers receive them. All fields of an entry are one text, because Ray's readers of JSON and CSV choose the type
#: of a column by its values: a seed above 2**63 makes the seeds of all rows floats, which are rounded.
ENTRIES = pa.schema([("id", pa.string()), ("line", pa.int64()), ("entry", pa.string()), ("error", pa.string())])
#: Results. The types are fixed: in a block without errors, a column of errors would have no type.
RESULTS = pa.schema(
    [
        ("id", pa.string()),
        ("line", pa.int64()),
        ("seed", pa.uint64()),
        ("milliseconds", pa.int64()),
        ("warnings", pa.list_(pa.string())),
        ("error", pa.string()),
        ("png", pa.binary()),
    ]
)


class Settings(NamedTuple):
    """What a worker needs. Its paths must mean the same on all machines of a cluster."""

    model: str
    threads: int
    #: Folder of files that count attempts.
    attempts: str
    #: Number of attempts after which a prompt that kills its worker is an error.
    max_attempts: int
    #: Folder of PNG files; None to return their bytes.
    images: str | None


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield rows of `ENTRIES`. Every row has an id of its own, by which Ray knows whether it is done."""
    ids: set[str] = set()
    for line, value in hart.read_batch(path):
        row: dict[str, Any] = {"id": f"line-{line:08}", "line": line}
        if isinstance(value, Exception):
            row["error"] = str(value)
        else:
            fields = {"prompt": value} if isinstance(value, str) else dict(value)
            named = fields.get("custom_id") if fields.get("id") is None else fields["id"]
            if named is not None and str(named) in ids:
                row["error"] = f"id is {named!r}, which is that of an earlier line: give each line its own"
            else:
                row["id"] = row["id"] if named is None else str(named)
                row["entry"] = json.dumps(fields, default=str)
        ids.add(row["id"])
        yield row


def write_entries(path: Path, out: Path) -> None:
    """Write rows of `ENTRIES` to a Parquet file, some at a time, so that the prompts need not fit into memory."""
    temporary, rows = out.with_suffix(".tmp"), read_entries(path)
    with pyarrow.parquet.ParquetWriter(temporary, ENTRIES) as writer:
        while chunk := list(itertools.islice(rows, 4096)):
            writer.write_table(pa.Table.from_pylist(chunk, ENTRIES))
    os.replace(temporary, out)


class Attempts:
    """Files that count how often an image was begun and not finished, because its worker died.

    Ray replaces a dead worker and gives its block to another, any number of times. A prompt that kills every worker, such as by
    needing more memory than there is, would never end.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def _file(self, id: str) -> Path:
        return self._folder / hashlib.sha256(id.encode()).hexdigest()[:32]

    def count(self, id: str) -> int:
        try:
            return self._file(id).stat().st_size
        except FileNotFoundError:
            return 0

    def begin(self, id: str) -> None:
        with open(self._file(id), "ab") as file:
            file.write(b".")

    def end(self, id: str) -> None:
        self._file(id).unlink(missing_ok=True)


class Worker:
    """An actor of Ray: a process with one model, which turns blocks of `ENTRIES` into blocks of `RESULTS`."""

    def __init__(self, settings: Settings) -> None:
        self._model = hart.Model(settings.model, threads=settings.threads, keep_text_model=True)
        self._attempts, self._max_attempts = Attempts(settings.attempts), settings.max_attempts
        self._images = None if settings.images is None else Path(settings.images)

    def __call__(self, block: pa.Table) -> pa.Table:
        results = []
        fresh, suspects = [], []
        for row in block.to_pylist():
            if row["error"] is not None:
                results.append(row)
            elif self._attempts.count(row["id"]):
                suspects.append(row)
            else:
                fresh.append(row)
        results += self._generate(fresh)
        # These were in work when a worker died. Each is tried alone, so that a prompt that kills its worker counts for itself only.
        for row in suspects:
            count = self._attempts.count(row["id"])
            if count < self._max_attempts:
                results += self._generate([row])
            else:
                results.append({**row, "error": f"its worker died in {count} attempts"})
        # Fixed types: lists of Python for the columns, not NumPy arrays of bytes, which PyArrow cuts at the first zero.
        return pa.Table.from_pylist(results, RESULTS)

    def _generate(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        def entries() -> Iterator[hart.BatchEntry]:
            for row in rows:
                self._attempts.begin(row["id"])
                yield hart.BatchEntry(row["line"], json.loads(row["entry"]))

        ids = {row["line"]: row["id"] for row in rows}
        for result in hart.batch(entries(), self._model):
            id = ids[result.line]
            row = {"id": id, "line": result.line, "seed": result.seed, "milliseconds": result.milliseconds}
            row.update(warnings=list(result.warnings), error=None if result.error is None else str(result.error))
            if result.image is not None and self._images is not None:
                result.image.save(self._images / f"{id}.png")
            elif result.image is not None:
                row["png"] = result.image.png()
            self._attempts.end(id)
            yield row


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Generates an image with HART for each prompt of a file, with Ray Data.")
    parser.add_argument("prompts", type=Path, metavar="FILE", help=".jsonl, .csv, .tsv or .parquet, or a text file")
    parser.add_argument("-m", "--model", type=Path, default=SHIPPED_MODEL, metavar="FOLDER", help="folder with llm and tokenizer")
    parser.add_argument("-o", "--out", type=Path, default=Path("ray-batch"), metavar="FOLDER", help="folder shared by all machines")
    parser.add_argument("--images", action="store_true", help="write PNG files instead of a column of the results")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes, each with a model (default: 2)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads and CPUs of each worker (default: 1)")
    parser.add_argument("--block", type=int, default=16, metavar="N", help="prompts that a worker gets at once (default: 16)")
    parser.add_argument("--max-attempts", type=int, default=3, metavar="N", help="dead workers until a prompt fails (default: 3)")
    parser.add_argument("--address", metavar="ADDRESS", help="of a cluster, such as auto (default: start Ray on this machine)")
    return parser.parse_args()


def run(given: argparse.Namespace, worker: type[Worker] = Worker) -> None:
    """Generate the images that the output folder does not have yet."""
    out = given.out.resolve()
    for name in ("attempts", "results", *(["images"] if given.images else [])):
        (out / name).mkdir(parents=True, exist_ok=True)
    write_entries(given.prompts, out / "entries.parquet")
    if given.address is None:
        # The workers' CPUs, and some for tasks that read, filter and write. By default, the object store takes 30 % of the memory.
        cpus = given.workers * given.threads + 2
        ray.init(num_cpus=cpus, include_dashboard=False, object_store_memory=256 << 20, log_to_driver=False)
    else:
        ray.init(given.address)
    context = ray.data.DataContext.get_current()
    # Ray reads the ids that are done from here, and skips them. It only does so for datasets that are read from files.
    context.checkpoint_config = CheckpointConfig("id", f"{out}/checkpoint", delete_checkpoint_on_success=False)
    images = str(out / "images") if given.images else None
    settings = Settings(str(given.model.resolve()), given.threads, str(out / "attempts"), given.max_attempts, images)
    rows = ray.data.read_parquet(str(out / "entries.parquet"), num_cpus=IO_CPUS)
    results = rows.repartition(target_num_rows_per_block=given.block).map_batches(
        worker,
        fn_constructor_args=(settings,),
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=given.workers),
        num_cpus=given.threads,
    )
    results.write_parquet(str(out / "results"), ray_remote_args={"num_cpus": IO_CPUS})
    ray.shutdown()


def main() -> int:
    given = arguments()
    run(given)
    results = pyarrow.dataset.dataset(given.out / "results", RESULTS, format="parquet")
    failed = pyarrow.dataset.field("error").is_valid()
    for row in results.to_table(["id", "line", "error"], filter=failed).to_pylist():
        print(f"{given.prompts}:{row['line']}, {row['id']}: {row['error']}", file=sys.stderr)
    print(f"{results.count_rows()} prompts, {results.count_rows(filter=failed)} failed: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
