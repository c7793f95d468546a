#!/usr/bin/env bash
# Checks the files for clusters, and kills `batch` at random moments.
# Needs the program built by `cargo build --release --workspace`, and a PYTHON with kubernetes-validate.
set -euo pipefail
[ $# -ge 1 ] && [ $# -le 3 ] || { echo "usage: $0 PYTHON [IMAGES KILLS]" >&2; exit 2; }
python=$1 images=${2:-150} kills=${3:-12}
root=$(cd "$(dirname "$0")/../.." && pwd)
batch=${CARGO_TARGET_DIR:-$root/target}/release/batch
model=$root/examples/models/hart-emoji
cluster=$root/examples/cluster
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "-- the schema of Kubernetes"
"$python" -m kubernetes_validate --strict "$cluster/job.yaml"
bash -n "$cluster/array.sbatch"
if command -v shellcheck >/dev/null; then shellcheck "$cluster/array.sbatch" "$0"; fi

echo "-- the commands of all shares, with the variables that a cluster sets"
"$python" - "$cluster" "$batch" "$model" "$work" <<'PYTHON'
import json, os, re, subprocess, sys, time
from pathlib import Path

import yaml

cluster, batch, model, work = map(Path, sys.argv[1:])
ids = [f"image-{number}" for number in range(24)]
clean = {name: value for name, value in os.environ.items() if not name.startswith(("JOB_", "SLURM_", "HART_"))}


def check(images: Path, shares: int) -> None:
    """Check that the shares have generated every image once."""
    lines = [json.loads(line) for k in range(shares) for line in (images / f"results-{k}-of-{shares}.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(ids), lines
    assert sorted(path.stem for path in images.glob("*.png")) == sorted(ids)
    for path in images.glob("*.png"):
        same = work / "job/images" / path.name
        assert path.read_bytes() == same.read_bytes(), path


def prepare(folder: Path) -> Path:
    folder.mkdir()
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"id": id, "prompt": f"a red heart, {id}"}) + "\n" for id in ids))
    (folder / "model").symlink_to(model)
    return folder


# A pod: the volume is a folder, and Kubernetes expands $(NAME) in arguments.
claim, job = yaml.safe_load_all((cluster / "job.yaml").read_text())
spec = job["spec"]
pod = spec["template"]["spec"]
(container,) = pod["containers"]
(mount,) = container["volumeMounts"]
assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"] and mount["name"] == pod["volumes"][0]["name"]
assert spec["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never" and spec["parallelism"] <= spec["completions"]
volume = prepare(work / "job")
for index in range(spec["completions"]):
    variables = {"JOB_COMPLETION_INDEX": str(index)}
    for variable in container["env"]:
        field = variable.get("valueFrom", {}).get("resourceFieldRef", {}).get("resource", "").partition(".")
        variables[variable["name"]] = variable["value"] if "value" in variable else container["resources"][field[0]][field[2]]
    arguments = [re.sub(r"\$\((\w+)\)", lambda name: variables[name[1]], argument) for argument in container["args"]]
    arguments = [argument.replace(mount["mountPath"], str(volume)) for argument in arguments]
    assert container["command"] == ["batch"]
    subprocess.run([str(batch), *arguments, "--quiet"], env={**clean, **variables}, check=True)
check(volume / "images", spec["completions"])

# An array of Slurm, also one that starts at 1 and one with steps.
script = (cluster / "array.sbatch").read_text()
first, last = map(int, re.search(r"^#SBATCH --array=(\d+)-(\d+)$", script, re.M).groups())
cores = re.search(r"^#SBATCH --cpus-per-task=(\d+)$", script, re.M)[1]
for name, tasks in [("array", range(first, last + 1)), ("from-1", range(1, 4)), ("steps", range(10, 20, 5))]:
    folder = prepare(work / name)
    for task in tasks:
        numbers = {"ID": task, "COUNT": len(tasks), "MIN": tasks[0], "MAX": tasks[-1], "STEP": tasks.step}
        variables = {f"SLURM_ARRAY_TASK_{key}": str(number) for key, number in numbers.items()} | {"SLURM_CPUS_PER_TASK": cores}
        process = subprocess.run(
            ["bash", str(cluster / "array.sbatch")], cwd=folder, env={**clean, **variables, "HART_BATCH": str(batch)}, stderr=subprocess.PIPE
        )
        assert process.returncode == 0, process.stderr
    check(folder / "images", len(tasks))

# Slurm's SIGTERM reaches the program.
folder = prepare(work / "term")
(folder / "prompts.jsonl").write_text("".join(f'{{"id": "{number}", "prompt": "a red heart"}}\n' for number in range(10_000)))
variables = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1", "HART_BATCH": str(batch)}
process = subprocess.Popen(["bash", str(cluster / "array.sbatch")], cwd=folder, env={**clean, **variables}, stderr=subprocess.DEVNULL)
while not list(folder.glob("images/*.png")):
    assert process.poll() is None
    time.sleep(0.01)
process.terminate()
assert process.wait(60) == 143, process.returncode
print(f"{spec['completions']} pods and {last + 1 - first} tasks have generated the same images")
PYTHON

echo "-- kills at random moments"
"$python" "$root/examples/tests/batch_kill.py" "$batch" "$model" --images "$images" --kills "$kills"
"$python" "$root/examples/tests/batch_kill.py" "$batch" "$model" --images "$images" --kills "$kills" --tar 10 --seed 1
