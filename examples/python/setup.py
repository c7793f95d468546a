"""Build a wheel of the package `hart` from hart.py and the shared library, for this platform and Python 3.9 or later.

The library is the file named by HART_LIBRARY, or the one that `cargo build --release` has built in this repository.
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
#: File name of the library that hart.py looks for.
LIBRARY = {"win32": "hart.dll", "darwin": "libhart.dylib"}.get(sys.platform, "libhart.so")


def version() -> str:
    """Return `__version__` of hart.py."""
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
    """A build step that copies the files of the package from the repository, since there is no package folder."""

    def run(self) -> None:
        package = Path(self.build_lib) / "hart"
        self.mkpath(str(package))
        licences = [REPOSITORY / name for name in ("LICENSE-MIT", "LICENSE-APACHE")]
        sources = {"__init__.py": HERE / "hart.py", LIBRARY: library(), **{path.name: path for path in licences if path.is_file()}}
        for name, source in sources.items():
            shutil.copyfile(source, package / name)
        # Marks the package as typed for type checkers.
        (package / "py.typed").touch()


class BuildWheel(bdist_wheel):
    """A wheel for one platform and any Python version and ABI: the library does not use Python's C API."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


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
