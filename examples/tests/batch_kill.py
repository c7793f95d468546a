"""Kills `batch` at random moments and checks that nothing is lost, generated twice or half written.

Usage: batch_kill.py BATCH MODEL [--images 2000] [--kills 100] [--tar 100] [--seed 0]
"""

import argparse
import hashlib
import json
import random
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

#: Number of images that are compared with those of a run that nothing interrupts.
SAMPLE = 50


def check_png(data: bytes, name: str) -> None:
    """Check the chunks of a PNG file from its first byte to its last."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", f"{name} is no PNG file"
    position, kind = 8, b""
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 4 : position + 8 + length]
        (checksum,) = struct.unpack(">I", data[position + 8 + length : position + 12 + length])
        assert zlib.crc32(body) == checksum, f"{name} is damaged"
        position += 12 + length
    assert kind == b"IEND" and position == len(data), f"{name} is cut"


def identity(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written again."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


class Folder:
    """The folder of a batch, as seen after each kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Images that were complete after an earlier kill.
        self.images: dict[str, tuple[int, int]] = {}
        self.done: set[str] = set()
        #: Images without a line, and cut lines, that kills have left.
        self.orphans = self.cut = self.temporary = 0

    def count(self) -> int:
        """Return the number of images, also those in a tar file that is not complete."""
        tars = [path for path in self.path.iterdir() if path.suffix == ".tar"] if self.path.exists() else []
        return len(list(self.path.glob("[!.]*.png"))) + sum(tar.read_bytes().count(b"IEND\xaeB`\x82") for tar in tars)

    def results(self) -> list[dict]:
        """Return the complete lines of the results."""
        path = self.path / "results-0-of-1.jsonl"
        lines = path.read_text().split("\n") if path.exists() else [""]
        self.cut += lines[-1] != ""
        return [json.loads(line) for line in lines[:-1]]

    def check(self) -> None:
        """Check the folder after a kill."""
        ids = [line["id"] for line in self.results()]
        assert len(ids) == len(set(ids)), "an image is reported twice"
        lost = self.done - set(ids)
        assert not lost, f"results are lost: {lost}"
        self.done = set(ids)
        images = {}
        for path in self.path.glob("[!.]*.png"):
            check_png(path.read_bytes(), path.name)
            images[path.name] = identity(path)
        for name, before in self.images.items():
            assert images.get(name) == before, f"{name} was generated twice or lost"
        self.orphans += len(set(images) - set(self.images) - {f"{id}.png" for id in ids})
        self.images = images
        self.temporary += len(list(self.path.glob(".batch-0-of-1-*")))
        for path in self.path.glob("[!.]*.tar"):
            self.members(path)

    def members(self, path: Path) -> dict[str, bytes]:
        """Return the images of a tar file, which must be complete."""
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        images = {name: data for name, data in files.items() if name.endswith(".png")}
        for name, data in images.items():
            check_png(data, f"{name} in {path.name}")
            assert json.loads(files[name.removesuffix("png") + "json"])["id"] == name.removesuffix(".png")
        return images

    def contents(self) -> dict[str, bytes]:
        """Return all images by name, from image files and tar files."""
        images = {path.name: path.read_bytes() for path in self.path.glob("[!.]*.png")}
        for path in self.path.glob("[!.]*.tar"):
            for name, data in self.members(path).items():
                assert name not in images, f"{name} is there twice"
                images[name] = data
        return images


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("batch", type=lambda path: Path(path).resolve())
    parser.add_argument("model", type=lambda path: Path(path).resolve())
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--tar", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        lines = [json.dumps({"id": f"image-{n}", "prompt": f"a red heart number {n}"}) for n in range(given.images)]
        (scratch / "lines.jsonl").write_text("\n".join(lines))
        sampled = rng.sample(lines, min(SAMPLE, len(lines)))
        (scratch / "sample.jsonl").write_text("\n".join(sampled))

        def command(lines: str, out: str, *more: str) -> list[str]:
            return [str(given.batch), str(scratch / lines), "--out", str(scratch / out), "--model", str(given.model), "--quiet", *more]

        began = time.monotonic()
        subprocess.run(command("sample.jsonl", "unbroken"), check=True)
        each = (time.monotonic() - began) / len(sampled)
        folder = Folder(scratch / "out")
        more = [] if given.tar is None else ["--tar", str(given.tar)]
        kills, in_work, run_time = 0, 0, 0.0
        while kills < given.kills:
            # The kills are spread over the images that are left, at the pace so far.
            written = folder.count()
            pace = max(each, run_time / written if written else 0)
            mean = pace * (given.images - written) / (given.kills - kills + 1)
            delay = rng.uniform(0, max(2 * mean, 0.05))
            process = subprocess.Popen(command("lines.jsonl", "out", *more), stderr=subprocess.PIPE)
            try:
                process.communicate(timeout=delay)
                assert process.returncode == 0, process.stderr
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                in_work += folder.count() < given.images
            run_time += delay
            kills += 1
            folder.check()
        killed = folder.count()
        subprocess.run(command("lines.jsonl", "out", *more), check=True)
        folder.check()
        expected = {f"image-{n}" for n in range(given.images)}
        assert folder.done == expected, "the results are not those of all lines"
        images = folder.contents()
        assert set(images) == {f"{id}.png" for id in expected}, "the images are not those of all lines"
        left = [path.name for path in folder.path.iterdir() if path.name.startswith(".") and path.suffix != ".lock"]
        assert not left, f"files are left: {left}"
        assert not (folder.path / "errors-0-of-1.jsonl").read_text(), "lines have failed"
        for line in sampled:
            file = json.loads(line)["id"] + ".png"
            whole = (scratch / "unbroken" / file).read_bytes()
            assert hashlib.sha256(whole).digest() == hashlib.sha256(images[file]).digest(), f"{file} differs"
        print(
            f"{kills} kills, {in_work} of them before the last image, {killed} of {given.images} images after the last kill: nothing lost, nothing twice, nothing half written;"
            f" kills left {folder.orphans} images without a line, {folder.cut} cut lines and {folder.temporary} temporary files;"
            f" {len(sampled)} images compared with an unbroken run; {time.monotonic() - began:.0f} s"
        )


if __name__ == "__main__":
    sys.exit(main())
