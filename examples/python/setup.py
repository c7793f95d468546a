"""Packs hart.py and the shared library into a wheel: the package `hart`, for this system, for any Python from 3.9 on.

The library is the file that HART_LIBRARY names, or the repository's own build.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
#: The library's file name, as hart.py looks for it.
LIBRARY = {"win32": "hart.dll", "darwin": "libhart.dylib"}.get(sys.platform, "libhart.so")


def version() -> str:
    """hart.py says it."""
    found = re.search(r'^__version__ = "(.+)"$', (HERE / "hart.py").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit("hart.py has no __version__")
    return found[1]


def library() -> Path:
    path = Path(os.environ.get("HART_LIBRARY") or REPOSITORY / "target" / "release" / LIBRARY)
    if not path.is_file():
        sys.exit(f"no library at {path}: run `cargo build --release -p hart-ffi`, or name its file in HART_LIBRARY")
    return path


class BuildPackage(build_py):
    """There is no package folder: its files come from where they are."""

    def run(self) -> None:
        package = Path(self.build_lib) / "hart"
        self.mkpath(str(package))
        licences = [REPOSITORY / name for name in ("LICENSE-MIT", "LICENSE-APACHE")]
        sources = {"__init__.py": HERE / "hart.py", LIBRARY: library(), **{path.name: path for path in licences if path.is_file()}}
        for name, source in sources.items():
            shutil.copyfile(source, package / name)
        # Its types are for type checkers.
        (package / "py.typed").touch()


class BuildWheel(bdist_wheel):
    """The library is the system's, and of no certain Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class Binary(Distribution):
    """There is machine code in it, though no extension module."""

    def has_ext_modules(self) -> bool:
        return True


# What setuptools writes on its way would otherwise stay here.
scratch = tempfile.mkdtemp(prefix="hart-wheel-")
atexit.register(shutil.rmtree, scratch, ignore_errors=True)
setup(
    version=version(),
    # The name of what is in the wheel; BuildPackage knows where it comes from.
    py_modules=["hart"],
    distclass=Binary,
    cmdclass={"build_py": BuildPackage, "bdist_wheel": BuildWheel},
    options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}},
)
