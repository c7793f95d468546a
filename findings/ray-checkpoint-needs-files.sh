#!/usr/bin/env bash
# Ray Data 2.60.0: a checkpoint of a dataset from Python objects is written but never read.
#
# Guess before running: with DataContext.checkpoint_config, a second run of the same pipeline skips the ids that the first has written,
# whatever the dataset comes from, or warns that "the logical plan doesn't support checkpointing", as it does for other pipelines.
# Seen: with read_parquet the second run adds no row. With from_items (from_arrow and from_pandas too) both runs write files into the
# checkpoint folder, without a warning, and the second one processes every row again: the output has each id twice. Only operators that
# read filter ids, and a plan without one counts as supported.
# Write the input to a file first, and read that.
#
# Needs Python 3.10 to 3.13, a network and 1 GB of disk. Exits with 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install "ray[data]==2.60.0" pyarrow==26.0.1 pandas==3.1.1
cat > "$work/twice.py" <<'PYTHON'
import sys
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data.checkpoint import CheckpointConfig

folder = Path(sys.argv[1])
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False, logging_level="ERROR")
rows = [{"id": str(number)} for number in range(4)]
pq.write_table(pa.Table.from_pylist(rows), folder / "input.parquet")
sources = {
    "read_parquet": lambda: ray.data.read_parquet(str(folder / "input.parquet")),
    "from_items": lambda: ray.data.from_items(rows),
}
for name, source in sources.items():
    checkpoint, out = folder / f"{name}-checkpoint", folder / name
    config = CheckpointConfig("id", str(checkpoint), delete_checkpoint_on_success=False)
    ray.data.DataContext.get_current().checkpoint_config = config
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            source().map(lambda row: row).write_parquet(str(out))
    about = sum("support checkpointing" in str(warning.message) for warning in caught)
    done = sum(pq.read_table(path).num_rows for path in checkpoint.glob("*.parquet"))
    written = sum(pq.read_table(path).num_rows for path in out.glob("*.parquet"))
    print(f"{name}: {written} rows of {len(rows)} ids, {done} in the checkpoint, {about} warnings")
PYTHON
"$work/venv/bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$work/token"
out=$(RAY_TMPDIR=$work RAY_AUTH_TOKEN_PATH=$work/token RAY_USAGE_STATS_ENABLED=0 "$work/venv/bin/python" "$work/twice.py" "$work" 2>"$work/log") ||
  { cat "$work/log" >&2; exit 2; }
printf '%s\n' "$out"
[ "$out" = "read_parquet: 4 rows of 4 ids, 4 in the checkpoint, 0 warnings
from_items: 8 rows of 4 ids, 8 in the checkpoint, 0 warnings" ]
