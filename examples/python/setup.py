"""Build a wheel of the package `hart` from hart.py and the shared library, for one platform and Python 3.9 or later.

The library is the file named by HART_LIBRARY. Without it, cargo builds one for the CPU in this repository. If the file is for
another platform, pass that platform: `pip wheel --config-settings=--build-option=--plat-name=win_amd64`.
"""

from __future__ import annotations

import atexit
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
#: File name of the library that cargo builds on this system.
BUILT = {"win32": "hart.dll", "darwin": "libhart.dylib"}.get(sys.platform, "libhart.so")
#: Platform tags of the oldest macOS that Rust's standard library supports, by processor.
MACOS_TAGS = {"x86_64": "macosx_10_12_x86_64", "arm64": "macosx_11_0_arm64"}

#: Machine numbers of ELF files, with the ends of the platform tags that fit them.
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


def version() -> str:
    """Return `__version__` of hart.py."""
    found = re.search(r'^__version__ = "(.+)"$', (HERE / "hart.py").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit("hart.py has no __version__")
    return found[1]


def commit() -> str:
    """Return the commit of the repository, which `hart.build_info` reports."""
    # A source archive has no commit, whatever repository it was unpacked in.
    if not (REPOSITORY / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def library_name(file: str) -> str:
    """Return the name under which hart.py looks for a library, by the name of its file, such as libhart.so.0.1.0."""
    names = {".dll": "hart.dll", ".dylib": "libhart.dylib"}
    return names.get(Path(file).suffix, "libhart.so")


def elf_machine(file: str) -> str | None:
    """Return the processor of a Linux library, as platform tags name it; None for other files and processors."""
    if not Path(file).is_file():  # The name of what cargo builds.
        return None
    with open(file, "rb") as opened:
        header = opened.read(20)
    if not header.startswith(b"\x7fELF"):
        return None
    return ELF_MACHINES.get(int.from_bytes(header[18:20], "little" if header[5] == 1 else "big"))


def platform_tag(tag: str, file: str) -> str:
    """Return the platform tag of a wheel with this library, given the tag of this Python or of `--plat-name`."""
    if tag.endswith("universal2"):
        # Python runs on both processors, the library on one of them.
        tag = MACOS_TAGS.get(platform.machine(), tag)
    systems = {"win": "hart.dll", "macosx": "libhart.dylib"}
    expected = next((name for system, name in systems.items() if tag.startswith(system)), "libhart.so")
    if library_name(file) != expected:
        advice = "pass its platform in --plat-name, such as win_amd64"
        sys.exit(f"a wheel for {tag} needs a library like {expected}, but {file} is for another system: {advice}")
    machine = elf_machine(file)
    if machine is not None and not tag.endswith(machine):
        sys.exit(
            f"a wheel for {tag} needs a library for its processor, but {file} is for {machine}: pass --plat-name=linux_{machine}"
        )
    return tag


def library() -> Path:
    """Return the path of the shared library, after building it unless HART_LIBRARY names one."""
    named = os.environ.get("HART_LIBRARY")
    if named:
        if not Path(named).is_file():
            sys.exit(f"HART_LIBRARY is {named}, which is not a file: set it to the path of the library, such as .../{BUILT}")
        return Path(named)
    environment = {"HART_COMMIT": commit(), **os.environ}
    try:
        subprocess.run(["cargo", "build", "--profile", "dist", "-p", "hart-ffi"], cwd=REPOSITORY, env=environment, check=True)
    except FileNotFoundError:
        sys.exit("no cargo to build the library with: install Rust, or name the library's file in HART_LIBRARY")
    except subprocess.CalledProcessError as error:
        sys.exit(f"cargo could not build the library: exit code {error.returncode}")
    return REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target") / "dist" / BUILT


class BuildPackage(build_py):
    """A build step that copies the files of the package from the repository, since there is no package folder."""

    def run(self) -> None:
        package = Path(self.build_lib) / "hart"
        self.mkpath(str(package))
        source = library()
        shutil.copyfile(HERE / "hart.py", package / "__init__.py")
        shutil.copyfile(source, package / library_name(source.name))
        # Marks the package as typed for type checkers.
        (package / "py.typed").touch()


class BuildWheel(bdist_wheel):
    """A wheel for one platform and any Python version and ABI: the library does not use Python's C API."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", platform_tag(super().get_tag()[2], os.environ.get("HART_LIBRARY") or BUILT)


class Binary(Distribution):
    """A distribution that is specific to a platform although it has no extension module."""

    def has_ext_modules(self) -> bool:
        return True


# Keeps setuptools' intermediate files out of this folder.
scratch = tempfile.mkdtemp(prefix="hart-wheel-")
atexit.register(shutil.rmtree, scratch, ignore_errors=True)
setup(
    version=version(),
    # Names the content for setuptools; BuildPackage copies the files.
    py_modules=["hart"],
    distclass=Binary,
    cmdclass={"build_py": BuildPackage, "bdist_wheel": BuildWheel},
    options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}},
)
