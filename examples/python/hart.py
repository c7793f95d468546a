"""Text-to-image generation with HART: Python bindings for the C library `libhart`.

    import hart

    with hart.Model("examples/models/hart-emoji") as model:
        image = model.generate("a red heart on a yellow background", seed=7)[0]
        image.save("heart.png")

This file needs only Python's standard library and the shared library, which it looks for in this order:

1. the file named by the environment variable HART_LIBRARY; if it is set, nothing else is tried;
2. the folder of this file;
3. the repository that contains this file, where `cargo build` puts it (`--release`, then `--profile dist`);
4. `lib` of the prefix that this file is installed in, or `bin` on Windows;
5. the default search path of the system's loader.

Threads: any number of threads may use a `Model`, `Image`, `Tokens`, `Context`, `Result` or `Cancel` at once. A `Stream` belongs to
one thread at a time. The library runs without holding the GIL.

Processes: an `Image`, a `Result`, a `BatchResult`, an `Event`, a `FromImage` and every error can be pickled, and so passed between
processes. A `Model` and the objects that belong to it can't: open the model in each process. A forked process may use the models of
its parent, unless a call of hart was running at the fork or a model is on a GPU: its calls then raise a `RequestError` at once.

Errors: a failed call raises a subclass of `Error` that depends on the cause: the call, a file, the device or hart. A value of the
wrong type raises `TypeError`.
"""

from __future__ import annotations

import atexit
import csv
import ctypes
import ctypes.util
import dataclasses
import enum
import functools
import hashlib
import importlib
import inspect
import itertools
import json
import logging
import math
import operator
import os
import platform
import queue
import re
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_size_t,
    c_ssize_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Callable,
    ClassVar,
    Literal,
    NamedTuple,
    NoReturn,
    Protocol,
    SupportsFloat,
    SupportsIndex,
    TextIO,
    TypeVar,
    Union,
    overload,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer as _Buffer
    from typing_extensions import TypeGuard
else:
    _Buffer = Union[bytes, bytearray, memoryview]

__version__ = "0.1.0"
__all__ = [
    "STOP",
    "BatchEntry",
    "BatchResult",
    "Cancel",
    "Cancelled",
    "CheckpointError",
    "Context",
    "Device",
    "DeviceError",
    "Error",
    "Event",
    "FileError",
    "FileFormat",
    "FromImage",
    "Image",
    "InternalError",
    "Keep",
    "Memory",
    "Model",
    "ModelInfo",
    "OutOfMemoryError",
    "PixelFormat",
    "RequestError",
    "Result",
    "Stage",
    "Status",
    "Step",
    "Stream",
    "Timings",
    "Tokens",
    "Truncation",
    "batch",
    "build_info",
    "devices",
    "log_to",
    "read_batch",
    "version",
]

# ---- The C library: types --------------------------------------------------------------------------------------------------------

#: HART_ABI_VERSION of the header that this file was written for.
_ABI_VERSION = 1


class _hart_status(c_int32):
    """The status that a C function returns. Any value but HART_OK is raised as an `Error`."""


class _Handle(c_void_p):
    """An owned pointer to an object of the library, which is freed with the last reference.

    A call in progress holds a reference to its handles. An object is therefore never freed while another thread uses it.
    """

    #: The C function that frees the object. It is kept here because module globals may be gone when the last objects are deleted.
    _free: ClassVar[Callable[[_Handle], None]]
    #: Called after an object was freed.
    _freed: ClassVar[Callable[[], None]]

    def __del__(self) -> None:
        if self.value:
            type(self)._free(self)
            type(self)._freed()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__[1:]} can't be copied or pickled")

    @classmethod
    def from_param(cls, value: Any) -> Any:
        """Accept only this type. `c_void_p` would also accept integers and bytes."""
        # The name, because `importlib.reload` creates the class again, but not the objects that exist.
        if value is None or any(kind.__name__ == cls.__name__ for kind in type(value).__mro__):
            return value
        raise TypeError(f"expected {cls.__name__}, got {type(value).__name__}")


class _hart_cancel(_Handle):
    pass


class _hart_context(_Handle):
    pass


class _hart_device_list(_Handle):
    pass


class _hart_files(_Handle):
    pass


class _hart_image(_Handle):
    pass


class _hart_model(_Handle):
    pass


class _hart_options(_Handle):
    pass


class _hart_request(_Handle):
    pass


class _hart_result(_Handle):
    pass


class _hart_tokens(_Handle):
    pass


class _Struct(ctypes.Structure):
    """A struct that the library fills in. The first field is the size of the struct."""

    def __init__(self) -> None:
        super().__init__(ctypes.sizeof(self))

    def values(self) -> dict[str, Any]:
        """Return the fields by name, with strings decoded."""
        names = [field[0] for field in self._fields_ if field[0] not in ("struct_size", "reserved")]
        return {name: _decoded(getattr(self, name)) for name in names}


class _hart_device_info(_Struct):
    _fields_ = [("struct_size", c_uint32), ("reserved", c_uint32), ("name", c_char_p), ("description", c_char_p)]


class _hart_model_info(_Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("width", c_uint32),
        ("height", c_uint32),
        ("scales", c_uint32),
        ("context_tokens", c_uint32),
        ("codes", c_uint32),
        ("parameters", c_uint64),
        ("device", c_char_p),
        ("precision", c_char_p),
        ("fingerprint", c_char_p),
    ]


class _hart_event(_Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("stage", c_int32),
        ("step", c_int32),
        ("index", c_uint32),
        ("count", c_uint32),
        ("scale", c_uint32),
        ("scales", c_uint32),
        ("side", c_uint32),
        ("fraction", c_float),
        ("has_preview", c_int32),
        ("elapsed", c_double),
        ("image_index", c_uint32),
        ("reserved", c_uint32),
    ]


class _hart_timings(_Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("text", c_double),
        ("transformer", c_double),
        ("sampling", c_double),
        ("residual", c_double),
        ("decode", c_double),
        ("total", c_double),
    ]


class _hart_truncation(_Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("prompt", c_int32),
        ("tokens", c_uint32),
        ("kept", c_uint32),
        ("cut", c_char_p),
    ]


class _hart_image_view(_Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("width", c_uint32),
        ("height", c_uint32),
        ("channels", c_uint32),
        ("stride", c_size_t),
        ("size", c_size_t),
        ("pixels", POINTER(c_uint8)),
        ("seed", c_uint64),
        ("prompt", c_char_p),
        ("settings", c_char_p),
        ("model_fingerprint", c_char_p),
    ]


_hart_observer = ctypes.CFUNCTYPE(c_int32, POINTER(_hart_event), c_void_p)
_hart_reader = ctypes.CFUNCTYPE(c_int32, c_void_p, c_uint64, POINTER(c_uint8), c_size_t)
_hart_destroy = ctypes.CFUNCTYPE(None, c_void_p)
_hart_logger = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)

# A `const uint8_t *` parameter. As c_char_p it takes Python's bytes without a copy, embedded NULs included.
_data = c_char_p

#: Return type and parameter types of every function in hart.h, in the header's order.
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    # Version
    "hart_version": (c_uint32, []),
    "hart_version_text": (c_char_p, []),
    "hart_abi_version": (c_uint32, []),
    "hart_build_info": (c_char_p, []),
    # Status
    "hart_status_text": (c_char_p, [c_int32]),
    # Last error
    "hart_last_error": (c_char_p, []),
    "hart_last_error_copy": (_hart_status, [c_char_p, c_size_t, POINTER(c_size_t)]),
    # Log
    "hart_set_log": (_hart_status, [_hart_logger, c_void_p, _hart_destroy]),
    # Devices
    "hart_device_list_new": (_hart_status, [POINTER(_hart_device_list)]),
    "hart_device_list_free": (None, [_hart_device_list]),
    "hart_device_list_count": (c_size_t, [_hart_device_list]),
    "hart_device_list_get": (_hart_status, [_hart_device_list, c_size_t, POINTER(_hart_device_info)]),
    # Cancellation
    "hart_cancel_new": (_hart_status, [POINTER(_hart_cancel)]),
    "hart_cancel_share": (_hart_status, [_hart_cancel, POINTER(_hart_cancel)]),
    "hart_cancel_free": (None, [_hart_cancel]),
    "hart_cancel_request": (_hart_status, [_hart_cancel]),
    "hart_cancel_reset": (_hart_status, [_hart_cancel]),
    "hart_cancel_is_requested": (c_int32, [_hart_cancel]),
    # Events
    "hart_event_preview": (_hart_status, [POINTER(_hart_event), c_uint32, POINTER(_hart_image)]),
    # Options
    "hart_options_new": (_hart_status, [POINTER(_hart_options)]),
    "hart_options_free": (None, [_hart_options]),
    "hart_options_clone": (_hart_status, [_hart_options, POINTER(_hart_options)]),
    "hart_options_set_device": (_hart_status, [_hart_options, c_char_p]),
    "hart_options_set_device_n": (_hart_status, [_hart_options, c_char_p, c_size_t]),
    "hart_options_set_precision": (_hart_status, [_hart_options, c_char_p]),
    "hart_options_set_precision_n": (_hart_status, [_hart_options, c_char_p, c_size_t]),
    "hart_options_set_text_model": (_hart_status, [_hart_options, c_char_p]),
    "hart_options_set_text_model_n": (_hart_status, [_hart_options, c_char_p, c_size_t]),
    "hart_options_set_weights": (_hart_status, [_hart_options, c_char_p]),
    "hart_options_set_weights_n": (_hart_status, [_hart_options, c_char_p, c_size_t]),
    "hart_options_set_memory_map": (_hart_status, [_hart_options, c_int32]),
    "hart_options_set_strict": (_hart_status, [_hart_options, c_int32]),
    "hart_options_set_threads": (_hart_status, [_hart_options, c_uint32]),
    "hart_options_set_parallel": (_hart_status, [_hart_options, c_uint32]),
    "hart_options_set_max_memory": (_hart_status, [_hart_options, c_uint64]),
    "hart_options_set_keep_text_model": (_hart_status, [_hart_options, c_int32]),
    "hart_options_set_observer": (_hart_status, [_hart_options, _hart_observer, c_void_p, _hart_destroy]),
    "hart_options_set_cancel": (_hart_status, [_hart_options, _hart_cancel]),
    "hart_options_get_device": (_hart_status, [_hart_options, POINTER(c_char_p)]),
    "hart_options_get_precision": (_hart_status, [_hart_options, POINTER(c_char_p)]),
    "hart_options_get_text_model": (_hart_status, [_hart_options, POINTER(c_char_p)]),
    "hart_options_get_weights": (_hart_status, [_hart_options, POINTER(c_char_p)]),
    "hart_options_get_memory_map": (_hart_status, [_hart_options, POINTER(c_int32), POINTER(c_int32)]),
    "hart_options_get_strict": (_hart_status, [_hart_options, POINTER(c_int32), POINTER(c_int32)]),
    "hart_options_get_threads": (_hart_status, [_hart_options, POINTER(c_uint32), POINTER(c_int32)]),
    "hart_options_get_parallel": (_hart_status, [_hart_options, POINTER(c_uint32), POINTER(c_int32)]),
    "hart_options_get_max_memory": (_hart_status, [_hart_options, POINTER(c_uint64), POINTER(c_int32)]),
    "hart_options_get_keep_text_model": (_hart_status, [_hart_options, POINTER(c_int32), POINTER(c_int32)]),
    "hart_options_get_observer": (_hart_status, [_hart_options, POINTER(_hart_observer), POINTER(c_void_p)]),
    "hart_options_get_cancel": (_hart_status, [_hart_options, POINTER(_hart_cancel)]),
    # Files in memory
    "hart_files_new": (_hart_status, [POINTER(_hart_files)]),
    "hart_files_free": (None, [_hart_files]),
    "hart_files_add": (_hart_status, [_hart_files, c_char_p, _data, c_size_t]),
    "hart_files_add_n": (_hart_status, [_hart_files, c_char_p, c_size_t, _data, c_size_t]),
    "hart_files_add_borrowed": (_hart_status, [_hart_files, c_char_p, _data, c_size_t, c_void_p, _hart_destroy]),
    "hart_files_add_borrowed_n": (_hart_status, [_hart_files, c_char_p, c_size_t, _data, c_size_t, c_void_p, _hart_destroy]),
    "hart_files_add_reader": (_hart_status, [_hart_files, c_char_p, c_uint64, _hart_reader, c_void_p, _hart_destroy]),
    "hart_files_add_reader_n": (_hart_status, [_hart_files, c_char_p, c_size_t, c_uint64, _hart_reader, c_void_p, _hart_destroy]),
    # Models
    "hart_model_open": (_hart_status, [c_char_p, _hart_options, c_uint32, POINTER(_hart_model)]),
    "hart_model_open_n": (_hart_status, [c_char_p, c_size_t, _hart_options, c_uint32, POINTER(_hart_model)]),
    "hart_model_open_files": (_hart_status, [_hart_files, _hart_options, c_uint32, POINTER(_hart_model)]),
    "hart_model_share": (_hart_status, [_hart_model, POINTER(_hart_model)]),
    "hart_model_free": (None, [_hart_model]),
    "hart_model_describe": (_hart_status, [_hart_model, POINTER(_hart_model_info)]),
    "hart_model_warm_up": (_hart_status, [_hart_model]),
    "hart_model_memory": (_hart_status, [_hart_model, _hart_request, POINTER(c_uint64), POINTER(c_uint64)]),
    "hart_model_parallel": (_hart_status, [_hart_model, POINTER(c_uint32)]),
    "hart_model_test_panic": (_hart_status, [_hart_model]),
    # Requests
    "hart_request_new": (_hart_status, [POINTER(_hart_request)]),
    "hart_request_again": (_hart_status, [_hart_image, POINTER(_hart_request)]),
    "hart_request_free": (None, [_hart_request]),
    "hart_request_clone": (_hart_status, [_hart_request, POINTER(_hart_request)]),
    "hart_request_set_prompt": (_hart_status, [_hart_request, c_char_p]),
    "hart_request_set_prompt_n": (_hart_status, [_hart_request, c_char_p, c_size_t]),
    "hart_request_add_prompt": (_hart_status, [_hart_request, c_char_p]),
    "hart_request_add_prompt_n": (_hart_status, [_hart_request, c_char_p, c_size_t]),
    "hart_request_set_images_per_prompt": (_hart_status, [_hart_request, c_uint32]),
    "hart_request_set_seed": (_hart_status, [_hart_request, c_uint64]),
    "hart_request_set_guidance": (_hart_status, [_hart_request, c_double]),
    "hart_request_set_smoothing": (_hart_status, [_hart_request, c_int32]),
    "hart_request_set_top_k": (_hart_status, [_hart_request, c_uint32]),
    "hart_request_set_top_p": (_hart_status, [_hart_request, c_double]),
    "hart_request_set_steps": (_hart_status, [_hart_request, c_char_p]),
    "hart_request_set_steps_n": (_hart_status, [_hart_request, c_char_p, c_size_t]),
    "hart_request_set_prune": (_hart_status, [_hart_request, c_char_p]),
    "hart_request_set_prune_n": (_hart_status, [_hart_request, c_char_p, c_size_t]),
    "hart_request_set_system_prompt": (_hart_status, [_hart_request, c_char_p]),
    "hart_request_set_system_prompt_n": (_hart_status, [_hart_request, c_char_p, c_size_t]),
    "hart_request_set_context": (_hart_status, [_hart_request, _hart_context]),
    "hart_request_set_observer": (_hart_status, [_hart_request, _hart_observer, c_void_p, _hart_destroy]),
    "hart_request_set_cancel": (_hart_status, [_hart_request, _hart_cancel]),
    "hart_request_set_marks": (_hart_status, [_hart_request, c_char_p]),
    "hart_request_set_marks_n": (_hart_status, [_hart_request, c_char_p, c_size_t]),
    # Images that requests start from
    "hart_request_set_inpaint": (_hart_status, [_hart_request, _hart_image, _hart_image, c_uint32]),
    "hart_request_set_outpaint": (_hart_status, [_hart_request, _hart_image, c_uint32, c_uint32]),
    "hart_request_set_variation": (_hart_status, [_hart_request, _hart_image, c_uint32]),
    "hart_request_set_keep": (_hart_status, [_hart_request, c_int32]),
    # Values of requests
    "hart_request_get_prompt_count": (c_size_t, [_hart_request]),
    "hart_request_get_prompt": (_hart_status, [_hart_request, c_size_t, POINTER(c_char_p)]),
    "hart_request_get_images_per_prompt": (_hart_status, [_hart_request, POINTER(c_uint32), POINTER(c_int32)]),
    "hart_request_get_seed": (_hart_status, [_hart_request, POINTER(c_uint64), POINTER(c_int32)]),
    "hart_request_get_guidance": (_hart_status, [_hart_request, POINTER(c_double), POINTER(c_int32)]),
    "hart_request_get_smoothing": (_hart_status, [_hart_request, POINTER(c_int32), POINTER(c_int32)]),
    "hart_request_get_top_k": (_hart_status, [_hart_request, POINTER(c_uint32), POINTER(c_int32)]),
    "hart_request_get_top_p": (_hart_status, [_hart_request, POINTER(c_double), POINTER(c_int32)]),
    "hart_request_get_steps": (_hart_status, [_hart_request, POINTER(c_char_p)]),
    "hart_request_get_prune": (_hart_status, [_hart_request, POINTER(c_char_p)]),
    "hart_request_get_marks": (_hart_status, [_hart_request, POINTER(c_char_p)]),
    "hart_request_get_system_prompt": (_hart_status, [_hart_request, POINTER(c_char_p)]),
    "hart_request_get_context": (_hart_status, [_hart_request, POINTER(_hart_context)]),
    "hart_request_get_inpaint": (_hart_status, [_hart_request, POINTER(_hart_image), POINTER(_hart_image), POINTER(c_uint32)]),
    "hart_request_get_outpaint": (_hart_status, [_hart_request, POINTER(_hart_image), POINTER(c_uint32), POINTER(c_uint32)]),
    "hart_request_get_variation": (_hart_status, [_hart_request, POINTER(_hart_image), POINTER(c_uint32)]),
    "hart_request_get_keep": (_hart_status, [_hart_request, POINTER(c_int32), POINTER(c_int32)]),
    "hart_request_get_observer": (_hart_status, [_hart_request, POINTER(_hart_observer), POINTER(c_void_p)]),
    "hart_request_get_cancel": (_hart_status, [_hart_request, POINTER(_hart_cancel)]),
    # Contexts
    "hart_encode": (_hart_status, [_hart_model, _hart_request, POINTER(_hart_context)]),
    "hart_context_share": (_hart_status, [_hart_context, POINTER(_hart_context)]),
    "hart_context_free": (None, [_hart_context]),
    "hart_context_count": (c_size_t, [_hart_context]),
    "hart_context_bytes": (c_uint64, [_hart_context]),
    "hart_context_hidden": (
        _hart_status,
        [_hart_context, c_size_t, POINTER(POINTER(c_float)), POINTER(c_size_t), POINTER(c_size_t)],
    ),
    "hart_context_mask": (_hart_status, [_hart_context, c_size_t, POINTER(POINTER(c_uint8)), POINTER(c_size_t)]),
    # Generation
    "hart_generate": (_hart_status, [_hart_model, _hart_request, POINTER(_hart_result)]),
    "hart_result_share": (_hart_status, [_hart_result, POINTER(_hart_result)]),
    "hart_result_free": (None, [_hart_result]),
    "hart_result_count": (c_size_t, [_hart_result]),
    "hart_result_image": (_hart_status, [_hart_result, c_size_t, POINTER(_hart_image)]),
    "hart_result_timings": (_hart_status, [_hart_result, POINTER(_hart_timings)]),
    "hart_result_truncation_count": (c_size_t, [_hart_result]),
    "hart_result_truncation": (_hart_status, [_hart_result, c_size_t, POINTER(_hart_truncation)]),
    # Images
    "hart_image_new": (_hart_status, [c_uint32, c_uint32, c_size_t, _data, POINTER(_hart_image)]),
    "hart_image_new_from_pixels": (_hart_status, [c_int32, c_uint32, c_uint32, c_size_t, _data, c_size_t, POINTER(_hart_image)]),
    "hart_image_copy_pixels": (_hart_status, [_hart_image, c_int32, c_size_t, POINTER(c_uint8), c_size_t]),
    "hart_image_open": (_hart_status, [c_char_p, POINTER(_hart_image)]),
    "hart_image_open_n": (_hart_status, [c_char_p, c_size_t, POINTER(_hart_image)]),
    "hart_image_open_memory": (_hart_status, [_data, c_size_t, POINTER(_hart_image)]),
    "hart_image_share": (_hart_status, [_hart_image, POINTER(_hart_image)]),
    "hart_image_free": (None, [_hart_image]),
    "hart_image_describe": (_hart_status, [_hart_image, POINTER(_hart_image_view)]),
    "hart_image_save": (_hart_status, [_hart_image, c_char_p]),
    "hart_image_save_n": (_hart_status, [_hart_image, c_char_p, c_size_t]),
    "hart_image_encode": (_hart_status, [_hart_image, c_int32, c_uint32, POINTER(POINTER(c_uint8)), POINTER(c_size_t)]),
    "hart_image_png": (_hart_status, [_hart_image, POINTER(POINTER(c_uint8)), POINTER(c_size_t)]),
    "hart_image_transparency": (_hart_status, [_hart_image, POINTER(_hart_image)]),
    "hart_image_grid": (_hart_status, [POINTER(c_void_p), c_size_t, c_size_t, POINTER(_hart_image)]),
    # Tokens
    "hart_model_tokenize": (_hart_status, [_hart_model, _hart_image, POINTER(_hart_tokens)]),
    "hart_tokens_share": (_hart_status, [_hart_tokens, POINTER(_hart_tokens)]),
    "hart_tokens_free": (None, [_hart_tokens]),
    "hart_tokens_scales": (c_size_t, [_hart_tokens]),
    "hart_tokens_codes": (_hart_status, [_hart_tokens, c_size_t, POINTER(POINTER(c_uint32)), POINTER(c_size_t)]),
    "hart_model_reconstruct": (_hart_status, [_hart_model, _hart_tokens, c_int32, POINTER(_hart_image)]),
}

#: Functions that may call a hart_destroy, and therefore run with the GIL. When Python exits, it ends daemon threads that wait for
#: the GIL. Inside a callback of the library, that would abort the process.
_WITH_GIL = ("hart_files_add_borrowed", "hart_files_free", "hart_model_free", "hart_tokens_free")

# ---- The C library: loading ------------------------------------------------------------------------------------------------------

#: File name of the library as it is built, and the name by which the system's loader finds an installed one.
_FILE_NAME, _SYSTEM_NAME = {
    "win32": ("hart.dll", "hart.dll"),
    "cygwin": ("hart.dll", "hart.dll"),
    "darwin": ("libhart.dylib", "libhart.0.dylib"),
}.get(sys.platform, ("libhart.so", "libhart.so.0"))


def _library_files(folder: Path) -> list[Path]:
    """Return the files that may be the library of the hart.py in `folder`, in order of preference."""
    # install.sh puts this file into share/hart/python of the prefix, other installers into lib/pythonX.Y/site-packages.
    installed = folder.parent.parent.parent / ("bin" if _FILE_NAME.endswith(".dll") else "lib")
    build = folder.parent.parent / "target"
    files = [
        folder / _SYSTEM_NAME,
        folder / _FILE_NAME,
        build / "release" / _FILE_NAME,
        build / "dist" / _FILE_NAME,
        installed / _SYSTEM_NAME,
    ]
    return list(dict.fromkeys(files))


def _open_file(file: Path) -> ctypes.CDLL:
    """Open the library in a file."""
    if sys.platform == "win32":
        # Windows does not look for the DLLs that a DLL needs in that DLL's folder.
        os.add_dll_directory(str(file.parent))
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        python = f"this Python ({64 if sys.maxsize > 2**32 else 32} bits, {platform.machine()})"
        raise ImportError(f"hart: the library {file} can't be loaded by {python}: {error}") from error


def _open_library() -> ctypes.CDLL:
    """Open the first library that is found."""
    named = os.environ.get("HART_LIBRARY")
    if named:
        file = Path(named).absolute()
        if file.is_file():
            return _open_file(file)
        advice = f"set it to the path of the library, such as .../{_FILE_NAME}"
        raise ImportError(f"hart: HART_LIBRARY is {named}, which is not a file: {advice}")
    files = _library_files(Path(__file__).resolve().parent)
    for file in files:
        if file.is_file():
            return _open_file(file)
    for name in (_SYSTEM_NAME, ctypes.util.find_library("hart")):
        if name:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
    searched = ", ".join(str(file) for file in files)
    advice = "build it (cargo build --release -p hart-ffi) or set the environment variable HART_LIBRARY to its path"
    raise ImportError(f"hart: no library found; searched {searched} and the system's search path for {_SYSTEM_NAME}: {advice}")


def _load() -> ctypes.CDLL:
    """Load the library and declare every function of `_FUNCTIONS`."""
    lib = _open_library()
    try:
        lib.hart_abi_version.restype = c_uint32
        abi = lib.hart_abi_version()
    except AttributeError:
        raise ImportError(f"hart: {lib._name} is a different library: it has no hart_abi_version") from None
    if abi < _ABI_VERSION:
        advice = f"this file needs {_ABI_VERSION} or higher: install a newer library"
        raise ImportError(f"hart: {lib._name} has ABI version {abi}, {advice}")
    with_gil = ctypes.PyDLL(lib._name, handle=lib._handle)
    for name, (restype, argtypes) in _FUNCTIONS.items():
        function = getattr(with_gil if name in _WITH_GIL else lib, name, None)
        if function is None:
            raise ImportError(f"hart: {lib._name} is older than this file: it has no {name}; install a newer library")
        setattr(lib, name, function)
        function.restype, function.argtypes = restype, argtypes
        if restype is _hart_status:
            function.errcheck = _check
    for handle in _Handle.__subclasses__():
        handle._free = getattr(lib, handle.__name__[1:] + "_free")
    return lib


def _check(status: _hart_status, _function: object, _arguments: object) -> None:
    """Raise an `Error` if a call failed.

    ctypes runs this after every call that returns a status, on the thread of the call, which keeps the last error.
    """
    if status.value != Status.OK:
        raise _error(status.value, _decoded(_lib.hart_last_error()))


_lib = _load()

# ---- The C library: objects that it uses -----------------------------------------------------------------------------------------


class _PyBuffer(ctypes.Structure):
    """Python's `Py_buffer`: the memory of an object with the buffer protocol, which stays valid until this object is deleted."""

    _fields_ = [
        ("address", c_void_p),
        ("owner", c_void_p),
        ("size", c_ssize_t),
        ("item_size", c_ssize_t),
        ("is_readonly", c_int),
        ("dimensions", c_int),
        ("format", c_char_p),
        ("shape", POINTER(c_ssize_t)),
        ("strides", POINTER(c_ssize_t)),
        ("sub_offsets", c_void_p),
        ("internal", c_void_p),
    ]
    #: PyBUF_WRITABLE, and PyBUF_STRIDES | PyBUF_FORMAT. Without the latter, the memory must be contiguous.
    WRITABLE, STRIDED = 0x1, 0x18 | 0x4
    #: Kept here because module globals may be gone when the last objects are deleted.
    _release = staticmethod(ctypes.pythonapi.PyBuffer_Release)

    def __init__(self, value: object, flags: int = 0) -> None:
        super().__init__()
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(value), byref(self), flags)

    def __del__(self) -> None:
        if self.owner:
            self._release(byref(self))


#: Objects that the library uses, by the `user_data` that it destroys. `importlib.reload` keeps them.
_kept: dict[int, object] = globals().get("_kept", {})
_kept_numbers: Iterator[int] = globals().get("_kept_numbers", itertools.count(1))
#: Numbers of objects that the library has destroyed.
_destroyed: list[int] = globals().get("_destroyed", [])
#: A hart_destroy that adds a number to `_destroyed`, without running Python code: when Python exits, a daemon thread can end in
#: Python code, but a callback must return. It is never freed, because the library may call it at any time.
_destroy: Any = globals().get("_destroy")
if _destroy is None:
    _destroy = _hart_destroy(_destroyed.append)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_destroy))


def _keep(value: object) -> tuple[int, Any]:
    """Keep an object until the library destroys it, and return the user_data and the hart_destroy to pass."""
    number = next(_kept_numbers)
    _kept[number] = value
    return number, _destroy


def _drop_destroyed(kept: dict[int, object] = _kept, destroyed: list[int] = _destroyed) -> None:
    """Drop the objects that the library has destroyed. The defaults exist even if module globals are gone."""
    while destroyed:
        try:
            number = destroyed.pop()
        except IndexError:
            # Another thread was faster.
            return
        kept.pop(number, None)


_Handle._freed = staticmethod(_drop_destroyed)

# ---- Errors ----------------------------------------------------------------------------------------------------------------------


class Status(enum.IntEnum):
    """Status codes of the C library, grouped by cause: 1xx the call, 2xx a file, 3xx the device, 9xx hart itself."""

    OK = 0
    CANCELLED = 1
    ERR_NULL = 100
    ERR_UTF8 = 101
    ERR_ARGUMENT = 102
    ERR_REQUEST = 103
    ERR_STATE = 104
    ERR_ABI = 105
    ERR_REFUSED = 106
    ERR_IO = 200
    ERR_CHECKPOINT = 201
    ERR_CONFIG = 202
    ERR_WEIGHTS = 203
    ERR_NOT_FINITE = 204
    ERR_IMAGE = 205
    ERR_DEVICE = 300
    ERR_MEMORY = 301
    ERR_OVERFLOW = 302
    ERR_THREADS = 303
    ERR_PANIC = 900
    ERR_POISONED = 901
    ERR_OTHER = 902


class Error(Exception):
    """Base class of hart's errors. The message describes the cause, its location and the remedy."""

    #: A `Status`, or a plain int if a newer library returns a code that this file does not know.
    status: int

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[1])


class Cancelled(Error):
    """The run was cancelled. This is not a failure."""

    #: Images that were finished before the run stopped.
    completed: tuple[Image, ...] = ()


class RequestError(Error, ValueError):
    """The call is invalid (1xx): a value is out of range, the request cannot be fulfilled, or the object is closed."""


class FileError(Error):
    """A file cannot be read or written, or its content is invalid (2xx)."""


class CheckpointError(FileError):
    """A model's files are missing, damaged, or inconsistent with each other."""


class DeviceError(Error):
    """The device is unavailable, has failed, or computed a value that is not finite, or no thread can be started (3xx)."""


class OutOfMemoryError(DeviceError, MemoryError):
    """More memory is needed than is available, or than the model's `max_memory` allows."""


class InternalError(Error):
    """A bug in hart (9xx). The program may continue, but the model must be closed and opened again."""


_ERRORS: dict[int, type[Error]] = {
    Status.CANCELLED: Cancelled,
    Status.ERR_CHECKPOINT: CheckpointError,
    Status.ERR_CONFIG: CheckpointError,
    Status.ERR_WEIGHTS: CheckpointError,
    Status.ERR_NOT_FINITE: CheckpointError,
    Status.ERR_MEMORY: OutOfMemoryError,
}
_ERRORS_BY_HUNDRED: dict[int, type[Error]] = {1: RequestError, 2: FileError, 3: DeviceError, 9: InternalError}


def _error(code: int, message: str) -> Error:
    kind = _ERRORS.get(code) or _ERRORS_BY_HUNDRED.get(code // 100, Error)
    status = Status(code) if code in Status._value2member_map_ else code
    return kind(status, message or _decoded(_lib.hart_status_text(code)))


# ---- Conversions -----------------------------------------------------------------------------------------------------------------

_T = TypeVar("_T")
#: A path in the file system.
_Path = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]
#: Largest number of pixels of a PNG file that hart reads.
_MAX_PNG_PIXELS = 1 << 26
#: Largest values of the C types.
_UINT32, _UINT64 = (1 << 32) - 1, (1 << 64) - 1
#: Largest distance of two rows that memory can hold.
_MAX_STRIDE = sys.maxsize
#: Largest numbers of images of a run, of threads of a model, and of steps of the residual diffusion.
_MAX_IMAGES, _MAX_THREADS, _MAX_STEPS = 1024, 1024, 1000


def _decoded(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _text(name: str, value: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be str, not {type(value).__name__}")
    if "\0" in value:
        raise RequestError(Status.ERR_ARGUMENT, f"{name} contains a NUL character at {value.index(chr(0))}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(Status.ERR_UTF8, f"{name} is not UTF-8: {error.reason} at {error.start}") from None


def _path(name: str, value: _Path) -> bytes:
    try:
        path = os.fsdecode(value)
    except TypeError:
        raise TypeError(f"{name} must be a path (str, bytes or os.PathLike), not {type(value).__name__}") from None
    return _text(name, path)


def _integer(name: str, value: SupportsIndex, low: int, high: int) -> int:
    """Return `value` as an int. ctypes would silently truncate one that is out of range."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be int, not bool")
    try:
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be int, not {type(value).__name__}") from None
    if not low <= integer <= high:
        # Python refuses to print integers of thousands of digits.
        shown = integer if integer.bit_length() <= 128 else f"an integer of {integer.bit_length()} bits"
        raise RequestError(Status.ERR_REQUEST, f"{name} is {shown}, expected {low} to {high}")
    return integer


def _float(name: str, value: SupportsFloat | SupportsIndex, low: int, high: int) -> float:
    if isinstance(value, bool) or not isinstance(value, (SupportsFloat, SupportsIndex)):
        raise TypeError(f"{name} must be float, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise RequestError(Status.ERR_REQUEST, f"{name} is too large for a float, expected {low} to {high}") from None
    except TypeError:
        raise TypeError(f"{name} must be float, not {type(value).__name__}") from None
    if not low <= number <= high:
        raise RequestError(Status.ERR_REQUEST, f"{name} is {number}, expected {low} to {high}")
    return number


def _ratios(name: str, value: str | Iterable[float]) -> bytes:
    """Return ratios as a text with commas."""
    if isinstance(value, str):
        return _text(name, value)
    try:
        ratios = list(value)
    except TypeError:
        raise TypeError(f"{name} must be str or an iterable of float, not {type(value).__name__}") from None
    return ",".join(repr(_float(f"{name}[{i}]", ratio, 0, 1)) for i, ratio in enumerate(ratios)).encode()


def _flag(name: str, value: bool) -> bool:
    """Return `value` as a bool, if it is one of Python or NumPy. Other objects, such as "no", are true by accident."""
    if not isinstance(value, bool) and getattr(getattr(value, "dtype", None), "kind", None) != "b":
        raise TypeError(f"{name} must be bool, not {type(value).__name__}")
    return bool(value)


def _is_a(value: object, kind: type[_T]) -> TypeGuard[_T]:
    """Like `isinstance`, but also true for objects from before `importlib.reload`, which creates the classes again."""
    names = {(base.__module__, base.__qualname__) for base in type(value).__mro__}
    return isinstance(value, kind) or (kind.__module__, kind.__qualname__) in names


def _is_pil(value: object) -> bool:
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def _instance(name: str, value: _T, kind: type[_T]) -> _T:
    if _is_a(value, kind):
        return value
    advice = ""
    if kind is Image:
        if _is_pil(value):
            advice = ": use hart.Image.from_pil"
        elif isinstance(value, (str, os.PathLike)):
            advice = ": use hart.Image.open"
        elif hasattr(value, "__array_interface__"):
            advice = ": use hart.Image.from_numpy"
    raise TypeError(f"{name} must be hart.{kind.__name__}, not {type(value).__name__}{advice}")


def _callback(name: str, function: Callable[..., object] | None) -> None:
    """Check that `function` can be called, and that a call runs it."""
    if function is None:
        return
    if not callable(function):
        raise TypeError(f"{name} must be callable, not {type(function).__name__}")
    for called in (function, type(function).__call__):
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            advice = "in it, use asyncio's loop.call_soon_threadsafe or asyncio.run_coroutine_threadsafe"
            raise TypeError(f"{name} must be a plain function, not a coroutine function, which nothing awaits: {advice}")
        if inspect.isgeneratorfunction(called):
            raise TypeError(f"{name} must be a plain function, not a generator function: a call would not run it")


def _refuse_awaitable(name: str, result: object) -> None:
    """Raise `TypeError` if a callback has returned a coroutine or another awaitable."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            # Prevents the warning that it was never awaited.
            result.close()
        kind = type(result).__name__
        raise TypeError(f"{name} must be a plain function, but it returned an awaitable ({kind}), which nothing awaits")


class _Local:
    """Base class of objects that exist in one process."""

    #: What to do instead of copying or pickling the object.
    _instead: ClassVar[str]

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"hart.{type(self).__name__} can't be copied or pickled: {self._instead}")

    def __copy__(self: _T) -> _T:
        """Return another reference to the same object of the library."""
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy


def _bytes(name: str, value: _Buffer) -> bytes:
    try:
        return value if isinstance(value, bytes) else memoryview(value).tobytes()
    except TypeError:
        raise TypeError(f"{name} must be bytes or another buffer, not {type(value).__name__}") from None


def _view_of(owner: _Handle, pointer: Any, count: int, element: Any) -> memoryview:
    """Return a read-only view of memory that belongs to the library. The view keeps `owner`, and thereby the memory, alive."""
    array = (element * count).from_address(ctypes.addressof(pointer.contents))
    array.owner = owner
    return memoryview(array).toreadonly()


# ---- Arrays ----------------------------------------------------------------------------------------------------------------------


class _SupportsArrayInterface(Protocol):
    @property
    def __array_interface__(self) -> dict[str, Any]: ...


#: An array of NumPy or of any other library that has the buffer protocol or NumPy's array interface.
_ArrayLike = Union[_Buffer, _SupportsArrayInterface]
#: A mask: an image of hart or Pillow, or an array.
_MaskLike = Union["Image", _ArrayLike]

#: Format codes of the `struct` module by the type codes of NumPy's array interface.
_FORMATS = {"u1": "B", "b1": "?", "f2": "e", "f4": "f", "f8": "d"}


class _Elements(NamedTuple):
    """The elements of an array, copied in row-major order."""

    shape: tuple[int, ...]
    #: Byte order, as in the `struct` module; "" for the machine's.
    order: str
    #: Type of an element, as in the `struct` module. For a type that hart does not read, any other text.
    format: str
    #: Bytes of an element.
    size: int
    data: bytes

    @property
    def type_name(self) -> str:
        """NumPy's name of the elements' type."""
        if self.format == "?":
            return "bool"
        for kind, formats in (("float", "efdg"), ("int", "bhilqn"), ("uint", "BHILQN")):
            if self.size and self.format in tuple(formats):
                return f"{kind}{8 * self.size}"
        return self.format


def _elements(name: str, value: _ArrayLike, expected: str = "an array of uint8") -> _Elements:
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        pass
    else:
        order, kind = (view.format[0], view.format[1:]) if view.format[0] in "@=<>!" else ("", view.format)
        return _Elements(view.shape or (), order.replace("@", ""), kind, view.itemsize, view.tobytes())
    interface = getattr(value, "__array_interface__", None)
    if isinstance(interface, dict):
        return _interface_elements(interface)
    # Tensors of other libraries.
    convert = getattr(value, "__array__", None)
    array: Any = convert() if callable(convert) and not isinstance(value, type) else None
    if hasattr(array, "__array_interface__"):
        return _elements(name, array)
    raise TypeError(f"{name} must be {expected}, not {type(value).__name__}")


def _interface_elements(interface: dict[str, Any]) -> _Elements:
    """Read an array through NumPy's array interface, version 3."""
    shape, data = tuple(interface["shape"]), interface["data"]
    order, code = interface["typestr"][0].replace("|", ""), interface["typestr"][1:]
    if code not in _FORMATS:
        return _Elements(shape, order, code, 0, b"")
    size = int(code[1:])
    whole = size * math.prod(shape)
    strides = interface.get("strides") or tuple(size * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    # Byte offsets of the first and the last element in memory, from the one with the index 0.
    first = sum(min(0, stride * (count - 1)) for stride, count in zip(strides, shape))
    last = sum(max(0, stride * (count - 1)) for stride, count in zip(strides, shape))
    if not whole:
        source, start = memoryview(b""), 0
    elif isinstance(data, tuple):
        source, start = memoryview((c_uint8 * (last - first + size)).from_address(data[0] + first)).cast("B"), -first
    else:
        source, start = memoryview(data).cast("B"), interface.get("offset", 0)
    copy = bytearray(whole)
    # Rows of `width` items of `depth` bytes. The bytes of an element are an axis of their own.
    *outer, width, depth = (1, 1, *shape) if size == 1 else (1, *shape, size)
    *steps, step, deep_step = (0, 0, *strides) if size == 1 else (0, *strides, 1)
    for row, indices in enumerate(itertools.product(*map(range, outer))):
        begin = start + sum(index * stride for index, stride in zip(indices, steps))
        for byte in range(depth if width else 0):
            items = source[begin + byte * deep_step :: step or 1][: width if step else 1]
            target = row * width * depth + byte
            copy[target : target + width * depth : depth] = items if step else bytes(items) * width
    return _Elements(shape, order, _FORMATS[code], size, bytes(copy))


def _uint8(name: str, elements: _Elements) -> bytes:
    """Return elements that must be of the type uint8."""
    if elements.format in ("B", "c"):
        return elements.data
    problem = f"{name} has the type {elements.type_name}, expected uint8"
    if elements.format in ("e", "f", "d", "g", "?"):
        raise TypeError(f"{problem}: multiply values from 0 to 1 by 255 and convert, such as (255 * x).round().astype('uint8')")
    raise TypeError(f"{problem}: convert the values 0 to 255, such as x.astype('uint8')")


#: Order of the bytes of a pixel in memory. The colours are not premultiplied by alpha ("a").
PixelFormat = Literal["rgb", "bgr", "rgba", "bgra", "grey"]
#: Number in C and bytes per pixel.
_PIXEL_FORMATS: dict[str, tuple[int, int]] = {"rgb": (0, 3), "bgr": (1, 3), "rgba": (2, 4), "bgra": (3, 4), "grey": (4, 1)}


def _shapes(height: int, width: int, channels: int) -> list[tuple[int, ...]]:
    """Return the shapes that an array of pixels can have, the usual one first."""
    return [(height, width)] * (channels == 1) + [(height, width, channels)]


def _pixel_format(name: str) -> tuple[int, int]:
    """Return the number of a format in C, and its bytes per pixel."""
    if name not in _PIXEL_FORMATS:
        raise RequestError(Status.ERR_ARGUMENT, f"format is {name!r}, expected 'rgb', 'bgr', 'rgba', 'bgra' or 'grey'")
    return _PIXEL_FORMATS[name]


def _mask(name: str, value: _MaskLike) -> Image:
    """Return a mask as an image."""
    if _is_a(value, Image):
        return value
    if _is_pil(value):
        return Image.from_pil(value)
    elements = _elements(name, value, "a hart.Image, an image of Pillow or an array")
    shape, data, kind = elements.shape, elements.data, elements.format
    if len(shape) == 3 and shape[2] in (3, 4):
        return Image._from_elements(name, elements)
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,)):
        raise RequestError(Status.ERR_REQUEST, f"{name} has the shape {shape}, expected (height, width)")
    if kind in ("e", "f", "d"):
        values = struct.unpack(f"{elements.order or '='}{len(data) // elements.size}{kind}", data)
        if not all(0 <= value <= 1 for value in values):
            raise RequestError(Status.ERR_REQUEST, f"{name} has the type {elements.type_name}, expected values from 0 to 1")
        data = bytes(255 if value >= 0.5 else 0 for value in values)
    elif kind == "?":
        data = data.translate(b"\0" + b"\xff" * 255)
    elif kind != "B":
        raise TypeError(f"{name} has the type {elements.type_name}, expected bool, uint8 from 0 to 255, or float from 0 to 1")
    elif data and max(data) == 1:
        problem = f"{name} has the type uint8 and only the values 0 and 1, but white is 255"
        raise RequestError(Status.ERR_REQUEST, f"{problem}: pass {name}.astype(bool) or 255 * {name}")
    return Image(shape[1], shape[0], data, "grey")


@functools.lru_cache(maxsize=1)
def _straight_values() -> bytes:
    """Return, at index 256 * alpha + c, a value that becomes c when a pixel with this alpha is composited over white."""
    values = bytearray(1 << 16)
    for alpha in range(1, 256):
        for value in range(256):
            straight = -((127 + 255 * (255 - alpha) - 255 * value) // alpha)
            values[256 * alpha + value] = min(max(straight, 0), 255)
    return bytes(values)


def _png_texts(file: bytes) -> bytes:
    """Return the text chunks of a PNG file."""
    texts, start = b"", 8
    while start < len(file):
        end = start + 12 + int.from_bytes(file[start : start + 4], "big")
        if file[start + 4 : start + 8] in (b"tEXt", b"iTXt"):
            texts += file[start:end]
        start = end
    return texts


def _png(width: int, height: int, pixels: bytes, texts: bytes) -> bytes:
    """Return a PNG file of RGBA pixels with text chunks."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[start : start + 4 * width] for start in range(0, len(pixels), 4 * width))
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), texts, chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# ---- Images ----------------------------------------------------------------------------------------------------------------------

#: Format of an image file.
FileFormat = Literal["png", "jpeg", "webp"]
_FILE_FORMATS: dict[str, int] = {"png": 0, "jpeg": 1, "webp": 2}


class Image:
    """An immutable 8-bit RGB image. It stays valid after its result or model is gone.

    Images are equal if their pixels, their transparency, their prompt, their seed and their settings are. They can be copied,
    pickled and passed to other processes. `numpy.asarray(image)` is the array that `numpy()` returns.
    """

    _handle: _hart_image
    _view: _hart_image_view

    def __init__(self, width: int, height: int, pixels: _ArrayLike, format: PixelFormat = "rgb") -> None:
        """Create an image from a copy of `pixels`.

        Transparent pixels are composited over white. In a mask, they count as black.

        Args:
            width: Pixels in a row, at least 1.
            height: Number of rows, at least 1.
            pixels: The pixels, row by row from the top left: bytes, another buffer, or an array of uint8. An array with several
                dimensions must be `[height, width, channels]`. `from_numpy` reads width, height and format from an array.
            format: "rgb", "bgr", "rgba", "bgra" or "grey".

        Raises:
            RequestError: The size or the shape of `pixels` is not that of an image of `format`.
            TypeError: `pixels` is not an array, or its elements are not of the type uint8.
        """
        width, height = _integer("width", width, 1, _UINT32), _integer("height", height, 1, _UINT32)
        number, channels = _pixel_format(format)
        elements = _elements("pixels", pixels, "bytes, another buffer or an array")
        data, shape = _uint8("pixels", elements), elements.shape
        if len(shape) > 1 and shape not in _shapes(height, width, channels):
            advice = f"expected {_shapes(height, width, channels)[0]}: hart.Image.from_numpy reads other shapes"
            raise RequestError(Status.ERR_ARGUMENT, f"pixels has the shape {shape}, {advice}")
        if len(data) != channels * width * height:
            expected = f"expected {channels * width * height}, {channels} per pixel"
            raise RequestError(Status.ERR_ARGUMENT, f"pixels has {len(data)} bytes for {width} x {height} pixels, {expected}")
        handle = _hart_image()
        _lib.hart_image_new_from_pixels(number, width, height, 0, data, len(data), byref(handle))
        self._set_handle(handle)

    def _set_handle(self, handle: _hart_image) -> None:
        self._handle, self._view = handle, _hart_image_view()
        _lib.hart_image_describe(handle, byref(self._view))

    @classmethod
    def _from_handle(cls, handle: _hart_image) -> Image:
        image = cls.__new__(cls)
        image._set_handle(handle)
        return image

    @classmethod
    def open(cls, path: _Path) -> Image:
        """Read a PNG, JPEG or WebP file, whatever its name, and turn it upright according to its EXIF orientation.

        Transparent pixels are composited over white. In a mask, they count as black. The image has a prompt, a seed and settings
        if hart wrote the file.

        Raises:
            FileError: The file cannot be read, is not an image or is truncated.
        """
        handle = _hart_image()
        _lib.hart_image_open(_path("path", path), byref(handle))
        return cls._from_handle(handle)

    @classmethod
    def decode(cls, data: _Buffer) -> Image:
        """Decode the bytes of a PNG, JPEG or WebP file. Otherwise like `open`."""
        handle, data = _hart_image(), _bytes("data", data)
        _lib.hart_image_open_memory(data, len(data), byref(handle))
        return cls._from_handle(handle)

    @classmethod
    def from_png(cls, data: _Buffer) -> Image:
        """Do the same as `decode`."""
        return cls.decode(data)

    @classmethod
    def from_numpy(cls, array: _ArrayLike, format: PixelFormat | None = None) -> Image:
        """Create an image from a copy of an array of uint8.

        NumPy is not needed: the array may be any object with the buffer protocol or NumPy's array interface, and it need not be
        contiguous. Transparent pixels are composited over white. In a mask, they count as black.

        Args:
            array: `[height, width]` or `[height, width, channels]`.
            format: The order of the channels. None is "grey", "rgb" or "rgba", according to the number of channels: 1, 3 or 4.
                Arrays of OpenCV are "bgr" or "bgra".

        Raises:
            RequestError: The array has another shape or no pixel.
            TypeError: The object is not an array, or its elements are not of the type uint8.
        """
        if _is_pil(array):
            raise TypeError("array is an image of Pillow: use hart.Image.from_pil")
        return cls._from_elements("array", _elements("array", array), format)

    @classmethod
    def _from_elements(cls, name: str, elements: _Elements, format: PixelFormat | None = None) -> Image:
        data, shape = _uint8(name, elements), elements.shape
        if len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)):
            problem = f"{name} has the shape {shape}, expected (height, width) or (height, width, channels) with 1, 3 or 4 channels"
            channels_first = len(shape) == 3 and shape[0] in (1, 3, 4)
            raise RequestError(Status.ERR_ARGUMENT, problem + ": move the first axis to the end" * channels_first)
        if not data:
            raise RequestError(Status.ERR_ARGUMENT, f"{name} has the shape {shape}, expected at least one pixel")
        defaults: dict[tuple[int, ...], PixelFormat] = {(): "grey", (1,): "grey", (3,): "rgb", (4,): "rgba"}
        default = defaults[shape[2:]]
        if format is not None and _pixel_format(format)[1] != _pixel_format(default)[1]:
            problem = f"{name} has the shape {shape}, but the format {format!r} has {_pixel_format(format)[1]} channels"
            raise RequestError(Status.ERR_ARGUMENT, problem)
        return cls(shape[1], shape[0], data, format or default)

    @classmethod
    def from_pil(cls, image: Any) -> Image:
        """Create an image from a copy of a `PIL.Image.Image` of any mode with 8 bits or less per channel.

        Transparent pixels are composited over white. In a mask, they count as black. The pixels are those that Pillow shows: to
        turn a photo upright according to its EXIF orientation, as `open` does, call `PIL.ImageOps.exif_transpose` first.

        Raises:
            TypeError: The object is not an image of Pillow, or has more than 8 bits per channel.
            RequestError: The image has no pixel.
        """
        if not _is_pil(image):
            raise TypeError(f"image must be a PIL.Image.Image, not {type(image).__name__}")
        mode, (width, height) = image.mode, image.size
        if mode in ("I", "F") or mode.startswith("I;"):
            raise TypeError(f"image has the mode {mode}, expected at most 8 bits per channel: scale it to 255 and convert it to L")
        if mode == "La":
            image = image.convert("LA")
        if mode in ("RGBA", "RGBa", "LA", "La", "PA") or (mode in ("1", "L", "P", "RGB") and "transparency" in image.info):
            shape, data = (height, width, 4), image.convert("RGBA").tobytes()
        else:
            shape, data = (height, width, 3), image.convert("RGB").tobytes()
        return cls._from_elements("image", _Elements(shape, "", "B", 1, data))

    @classmethod
    def grid(cls, images: Iterable[Image], columns: int) -> Image:
        """Arrange images of equal size in rows of `columns`. Empty cells are white.

        Args:
            images: At least one image, at most 1024.
            columns: Images in a row, at least 1.

        Raises:
            RequestError: There are no images or more than 1024, their sizes differ, or `columns` is 0.
        """
        handles = [_instance("image", image, Image)._handle for image in images]
        pointers, grid = (c_void_p * len(handles))(*[handle.value for handle in handles]), _hart_image()
        _lib.hart_image_grid(pointers, len(handles), _integer("columns", columns, 1, _UINT32), byref(grid))
        return cls._from_handle(grid)

    @property
    def width(self) -> int:
        """Pixels in a row."""
        return int(self._view.width)

    @property
    def height(self) -> int:
        """Number of rows."""
        return int(self._view.height)

    @property
    def pixels(self) -> memoryview:
        """Read-only view of the pixels: 3 bytes per pixel (red, green, blue), row by row from the top left.

        The view is not a copy. It may outlive the image.
        """
        view, row = self._view, self._view.channels * self._view.width
        pixels = _view_of(self._handle, view.pixels, view.size, c_uint8).cast("B")
        if view.stride == row:
            return pixels
        # The ABI allows gaps between the rows, although the library leaves none today.
        return memoryview(b"".join(pixels[y * view.stride :][:row] for y in range(view.height)))

    @property
    def prompt(self) -> str | None:
        """The prompt that the image was generated from, or None if it was not generated."""
        return None if self._view.prompt is None else str(_decoded(self._view.prompt))

    @property
    def seed(self) -> int | None:
        """The seed that the image was generated with, or None if it was not generated."""
        return None if self._view.prompt is None else int(self._view.seed)

    @property
    def settings(self) -> str | None:
        """The other settings in one line, or None if the image was not generated."""
        return None if self._view.settings is None else str(_decoded(self._view.settings))

    @property
    def model_fingerprint(self) -> str | None:
        """The fingerprint of the model that generated the image, or None if it is not known: that of `ModelInfo`."""
        return None if self._view.model_fingerprint is None else str(_decoded(self._view.model_fingerprint))

    def tobytes(self) -> bytes:
        """Return a copy of `pixels`."""
        return self.pixels.tobytes()

    def copy_to(self, buffer: _ArrayLike, format: PixelFormat = "rgb", *, stride: int | None = None) -> None:
        """Copy the pixels into a buffer of the program, such as an array, shared memory or a texture.

        Args:
            buffer: A writable buffer of uint8. With several dimensions, it is `[height, width, channels]`, or `[height, width]` for
                grey; it may be a part of a larger array. With one dimension, it receives the rows one after the other.
            format: "rgb", "bgr", "rgba" or "bgra", in which alpha is 255, or "grey", the luma of ITU-R BT.601.
            stride: For a buffer with one dimension, the number of bytes from the start of a row to the start of the next. The bytes
                between rows are left unchanged. None is no gap: the buffer must then have exactly the size of the pixels.

        Raises:
            RequestError: The size or the shape of the buffer is not that of the image.
            TypeError: The object has no writable memory, or its elements are not of the type uint8.
        """
        number, channels = _pixel_format(format)
        try:
            # A memoryview always has a shape and strides; ctypes' arrays have none.
            memory = _PyBuffer(memoryview(buffer), _PyBuffer.WRITABLE | _PyBuffer.STRIDED)  # type: ignore[arg-type]
        except (TypeError, BufferError) as error:
            raise TypeError(f"buffer must be a writable buffer, not {type(buffer).__name__}: {error}") from None
        shape, strides = tuple(memory.shape[: memory.dimensions]), tuple(memory.strides[: memory.dimensions])
        kind = (memory.format or b"B").decode().lstrip("@=<>!")
        _uint8("buffer", _Elements(shape, "", kind, memory.item_size, b""))
        row = channels * self.width
        if memory.dimensions == 1:
            step, size = 0 if stride is None else _integer("stride", stride, row, _MAX_STRIDE), shape[0]
            if strides != (1,):
                raise RequestError(Status.ERR_ARGUMENT, "buffer has gaps between its bytes, expected contiguous memory")
        else:
            step = strides[0] if strides and self.height > 1 else row
            expected = _shapes(self.height, self.width, channels)
            if shape not in expected:
                raise RequestError(Status.ERR_ARGUMENT, f"buffer has the shape {shape}, expected {expected[0]} for {format!r}")
            if stride is not None:
                raise RequestError(Status.ERR_ARGUMENT, "stride is for a buffer with one dimension; this one has its own strides")
            if strides[1:] != (channels, 1)[: len(strides) - 1] or step < row:
                problem = f"buffer has the strides {strides}, expected ({row} or more, {channels}, 1)"
                raise RequestError(Status.ERR_ARGUMENT, f"{problem}: the pixels of a row must be contiguous")
            size = (self.height - 1) * step + row
        _lib.hart_image_copy_pixels(self._handle, number, step, ctypes.cast(memory.address, POINTER(c_uint8)), size)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """NumPy's array interface: read-only pixels of uint8, `[height, width, 3]`."""
        view = self._view
        return {
            "version": 3,
            "typestr": "|u1",
            "shape": (self.height, self.width, 3),
            # Pillow's `fromarray` reads an object without the buffer protocol only if it has strides.
            "strides": (view.stride, 3, 1),
            "data": (ctypes.addressof(view.pixels.contents), True),
        }

    def transparency(self) -> Image:
        """Return an image that is white where this one is transparent and black where it is opaque.

        Pass it to `FromImage.inpaint` if the transparent part is to be regenerated, as in OpenAI's image API. Only images
        with an alpha channel have transparent pixels.
        """
        mask = _hart_image()
        _lib.hart_image_transparency(self._handle, byref(mask))
        return Image._from_handle(mask)

    def save(self, path: _Path) -> None:
        """Write a file, completely or not at all, in the format that the ending of its name stands for.

        The endings are ".png" and ".webp", both without loss, and ".jpg" and ".jpeg" with the quality 90. The file holds the
        prompt, the seed and the settings, and are marked as generated by AI, unless `marks` of `generate` left that out.

        Raises:
            RequestError: The name has another ending or none, or a side is too long: 65,535 pixels in JPEG, 16,384 in WebP.
            FileError: The file cannot be written.
        """
        _lib.hart_image_save(self._handle, _path("path", path))

    def encode(self, format: FileFormat = "png", *, quality: int = 90) -> bytes:
        """Return the bytes of a file, such as `save` writes it.

        Args:
            format: "png" or "webp", both without loss, or "jpeg".
            quality: Quality of a JPEG file, 1 to 100. It has no effect on the others.

        Raises:
            RequestError: The format or the quality is unknown, or a side is too long: 65,535 pixels in JPEG, 16,384 in WebP.
        """
        if format not in _FILE_FORMATS:
            raise RequestError(Status.ERR_ARGUMENT, f"format is {format!r}, expected 'png', 'jpeg' or 'webp'")
        data, size = POINTER(c_uint8)(), c_size_t()
        number, quality = _FILE_FORMATS[format], _integer("quality", quality, 1, 100)
        _lib.hart_image_encode(self._handle, number, quality, byref(data), byref(size))
        return ctypes.string_at(data, size.value)

    def png(self) -> bytes:
        """Return the bytes of a PNG file."""
        return self.encode("png")

    def numpy(self) -> Any:
        """Return the pixels as a read-only NumPy array of uint8, `[height, width, 3]`, without a copy.

        Raises:
            ImportError: NumPy is not installed.
        """
        numpy = importlib.import_module("numpy")
        return numpy.frombuffer(self.pixels, numpy.uint8).reshape(self.height, self.width, 3)

    def pil(self) -> Any:
        """Return a copy as a `PIL.Image.Image`.

        Raises:
            ImportError: Pillow is not installed.
        """
        pil = importlib.import_module("PIL.Image")
        return pil.frombytes("RGB", (self.width, self.height), self.pixels.tobytes())

    def _alpha(self) -> bytes | None:
        """Return the alpha of every pixel, or None if all are opaque."""
        transparent = self.transparency().tobytes()[::3]
        return bytes(255 - value for value in transparent) if any(transparent) else None

    def _origin(self) -> tuple[str | None, int | None, str | None]:
        return self.prompt, self.seed, self.settings

    def __eq__(self, other: object) -> bool:
        if not _is_a(other, Image):
            return NotImplemented
        mine, others = (self.width, self.height, self._origin()), (other.width, other.height, other._origin())
        return mine == others and self.pixels == other.pixels and self.transparency().pixels == other.transparency().pixels

    def __hash__(self) -> int:
        return hash((self.width, self.height, self._origin(), self.tobytes()))

    def __copy__(self) -> Image:
        return self

    def __deepcopy__(self, _: object) -> Image:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        alpha = self._alpha()
        if alpha is None and self.prompt is None and self.width * self.height > _MAX_PNG_PIXELS:
            return type(self), (self.width, self.height, self.tobytes())
        return type(self).from_png, (self.png() if alpha is None else self._png_with(alpha),)

    def _png_with(self, alpha: bytes) -> bytes:
        """Return a PNG file that has an alpha channel, unlike that of `png`."""
        pixels, straight = bytearray(4 * len(alpha)), _straight_values()
        for channel in range(3):
            composited = self.pixels[channel::3]
            pixels[channel::4] = bytes(straight[256 * a + value] for a, value in zip(alpha, composited))
        pixels[3::4] = alpha
        return _png(self.width, self.height, bytes(pixels), _png_texts(self.png()))

    def _repr_png_(self) -> bytes:
        return self.png()

    def __repr__(self) -> str:
        origin = "" if self.prompt is None else f", {self.prompt!r}, seed {self.seed}"
        return f"<hart.Image {self.width} x {self.height}{origin}>"


# ---- Events ----------------------------------------------------------------------------------------------------------------------


class _Name(str, enum.Enum):
    """Base class of enumerations of names. A member is equal to its name in lower case, and is printed as that name."""

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:
        return format(str(self.value), spec)


class Stage(_Name):
    """Stage of a run, or the stage whose weights are loaded.

    A member is also a string: `event.stage == "text"` is the same as `event.stage == Stage.TEXT`.
    """

    #: Prompt to context.
    TEXT = "text"
    #: Hidden states and logits, scale by scale.
    TRANSFORMER = "transformer"
    #: Logits to codes, codes to the latent.
    SAMPLING = "sampling"
    #: Residual diffusion of the last scale.
    RESIDUAL = "residual"
    #: Latent to pixels. Encoding an image to start from also counts as this stage.
    DECODE = "decode"
    #: A stage that only a newer library has.
    OTHER = "other"


class Step(_Name):
    """Step that a run has completed or begun. A member is also a string, such as "scale_done"."""

    #: `index` of `count` layers of the text encoder are done.
    TEXT_LAYER = "text_layer"
    #: Scale `index` of `count` begins.
    SCALE = "scale"
    #: `index` of `count` transformer blocks of the scale are done.
    BLOCK = "block"
    #: Scale `index` of `count` is done; a preview is available.
    SCALE_DONE = "scale_done"
    #: `index` of `count` steps of the residual diffusion are done.
    DIFFUSION = "diffusion"
    #: `index` of `count` blocks of the decoder are done.
    DECODER = "decoder"
    #: `index` of `count` images are finished; the preview shows the last of them.
    IMAGES = "images"
    #: `index` of `count` tensors of the model are loaded. Only events of opening a model have this step.
    TENSOR = "tensor"
    #: A step that only a newer library has.
    OTHER = "other"


#: Stages and steps by their numbers in C.
_STAGES = dict(enumerate(stage for stage in Stage if stage is not Stage.OTHER))
_STEPS = dict(enumerate(step for step in Step if step is not Step.OTHER))


@dataclasses.dataclass(frozen=True)
class Event:
    """A progress report of a run, or of opening a model."""

    #: Current stage of the run. While a model is opened, the stage whose weights are loaded.
    stage: Stage
    #: Step that the run has completed or begun.
    step: Step
    #: Number of the step, from 1 to `count`.
    index: int
    #: Total number of steps of this kind.
    count: int
    #: Current scale, from 1; 0 before the first scale of an image.
    scale: int
    #: Number of scales; 0 before the first scale of an image.
    scales: int
    #: Side of the current scale in latent positions; 0 before the first scale of an image.
    side: int
    #: Estimated fraction of the work that is done, 0 to 1. It never decreases.
    fraction: float
    #: True if `preview` can be called.
    has_preview: bool
    #: Seconds since the work began.
    elapsed: float
    #: Index of the image that the event is about, from 0 in the order of the result. Events of images that are generated at once
    #: alternate. A prompt is encoded for the first of its images; 0 when a model is opened.
    image_index: int = 0
    #: The preview, if `Model.stream` was called with `previews` and the event has one.
    image: Image | None = None
    #: The C event. Cleared when its callback returns.
    _source: list[Any] = dataclasses.field(default_factory=list, repr=False, compare=False)

    @classmethod
    def _from_pointer(cls, pointer: Any) -> Event:
        values = pointer.contents.values()
        values["stage"] = _STAGES.get(values["stage"], Stage.OTHER)
        values["step"] = _STEPS.get(values["step"], Step.OTHER)
        values["has_preview"] = bool(values["has_preview"])
        return cls(**values, _source=[pointer])

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy is without the C event, and therefore has no preview.
        return Event, tuple(getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "_source")

    def preview(self, max_side: int = 0) -> Image:
        """Decode the image in its current state. The final image is not affected.

        This works only inside `on_event`. In a stream, pass `previews=max_side` to `Model.stream` and read `image` instead.

        Args:
            max_side: Largest side of the preview in pixels; 0 for full size. A small preview takes little time. The smallest one
                has the size of one latent position, 16 pixels in published models.

        Raises:
            RequestError: The event has no preview, or its callback has returned.
            Cancelled: The run was cancelled in the meantime.
        """
        if not self._source:
            advice = "call preview() inside it, or use stream(previews=...)"
            raise RequestError(Status.ERR_STATE, f"the event's callback has returned: {advice}")
        handle = _hart_image()
        _lib.hart_event_preview(self._source[0], _integer("max_side", max_side, 0, _UINT32), byref(handle))
        return Image._from_handle(handle)


#: What an edit keeps outside the region that it regenerates.
Keep = Literal["pixels", "latent"]
_KEEP: dict[str, int] = {"pixels": 0, "latent": 1}


class FromImage:
    """An image that a run starts from, for inpainting, outpainting or a variation.

    `inpaint` and `outpaint` take `keep`, which says what is exact outside the region that they regenerate:

    - "pixels", the default: the pixels are exactly those of the image. A soft edge within the regenerated region, 1/64 of
      the model's width, blends into the generated pixels.
    - "latent": the latent of patches without a regenerated pixel is exactly that of the image. The decoder computes every
      pixel from the whole latent, so pixels outside the region change too, especially near it.
    """

    #: Suffix of the C function that sets it, and that function's arguments.
    _kind: str
    _arguments: tuple[Image | int, ...]
    _keep: Keep

    def __init__(self) -> None:
        raise TypeError("FromImage cannot be created directly: use FromImage.inpaint, outpaint or vary")

    @classmethod
    def _new(cls, kind: str, arguments: tuple[Image | int, ...], keep: Keep) -> FromImage:
        if keep not in _KEEP:
            raise RequestError(Status.ERR_ARGUMENT, f"keep is {keep!r}, expected 'pixels' or 'latent'")
        start = cls.__new__(cls)
        start._kind, start._arguments, start._keep = kind, arguments, keep
        return start

    @classmethod
    def inpaint(cls, image: Image, mask: _MaskLike, kept_scales: int = 0, *, keep: Keep = "pixels") -> FromImage:
        """Regenerate the region of an image where `mask` is white.

        Args:
            image: The image, with the model's width and height.
            mask: The mask, with the image's proportions and any resolution. In an image of hart or Pillow, or an array
                `[height, width, channels]` of uint8, a pixel is white if the mean of its channels times its alpha is at least half
                of the maximum, so white on a transparent layer works as a mask. In an array `[height, width]`, the white elements
                are: bool, True; uint8, at least 128; float, which must be 0 to 1, at least 0.5. For a mask whose transparent part
                is regenerated, pass `mask.transparency()`.
            kept_scales: Number of scales, from the coarsest, that are kept in the regenerated region too: 0 to the model's number
                of scales - 1. The new content then follows the layout of the old one.
            keep: What stays the same outside the regenerated region; see `FromImage`.

        Raises:
            RequestError: The array has another shape, or a value that is not allowed.
            TypeError: The image is not a `hart.Image`, or the mask is none of these.
        """
        kept = _integer("kept_scales", kept_scales, 0, _UINT32)
        return cls._new("inpaint", (_instance("image", image, Image), _mask("mask", mask), kept), keep)

    @classmethod
    def outpaint(cls, image: Image, left: int, top: int, *, keep: Keep = "pixels") -> FromImage:
        """Extend an image that is smaller than the model's images.

        Args:
            image: The image.
            left: Column of its left edge in the new image, in pixels: 0 to the model's width - the image's width.
            top: Row of its top edge in the new image, in pixels: 0 to the model's height - the image's height.
            keep: What stays the same in the given image; see `FromImage`.
        """
        corner = _integer("left", left, 0, _UINT32), _integer("top", top, 0, _UINT32)
        return cls._new("outpaint", (_instance("image", image, Image), *corner), keep)

    @classmethod
    def vary(cls, image: Image, kept_scales: int) -> FromImage:
        """Keep the coarsest `kept_scales` scales of an image and regenerate the finer ones.

        Args:
            image: The image, with the model's width and height.
            kept_scales: At least 1 and less than the model's number of scales.
        """
        kept = _integer("kept_scales", kept_scales, 0, _UINT32)
        return cls._new("variation", (_instance("image", image, Image), kept), "pixels")

    def _apply(self, request: _hart_request) -> None:
        arguments = [argument if isinstance(argument, int) else argument._handle for argument in self._arguments]
        getattr(_lib, f"hart_request_set_{self._kind}")(request, *arguments)
        _lib.hart_request_set_keep(request, _KEEP[self._keep])

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if _is_a(other, FromImage) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._kind, self._arguments, self._keep))

    def __copy__(self) -> FromImage:
        return self

    def __deepcopy__(self, _: object) -> FromImage:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._new, (self._kind, self._arguments, self._keep)

    def __repr__(self) -> str:
        return f"<hart.FromImage {self._kind} {', '.join(map(repr, self._arguments))}>"


class Cancel(_Local):
    """A token that cancels the runs it was passed to. It may be used from any thread and in signal handlers."""

    _instead = "it works within its process; create one in each process"

    def __init__(self) -> None:
        self._handle = _hart_cancel()
        _lib.hart_cancel_new(byref(self._handle))

    def request(self) -> None:
        """Cancel every run that holds this token, including runs that begin later."""
        _lib.hart_cancel_request(self._handle)

    def reset(self) -> None:
        """Undo `request`, so that the token can be used again."""
        _lib.hart_cancel_reset(self._handle)

    @property
    def requested(self) -> bool:
        """True after `request`, until `reset`."""
        return bool(_lib.hart_cancel_is_requested(self._handle))

    def __repr__(self) -> str:
        return f"<hart.Cancel {'requested' if self.requested else 'not requested'}>"


# ---- Results ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds spent in each stage of a run."""

    #: Prompt to context.
    text: float
    #: Hidden states and logits of all scales.
    transformer: float
    #: Logits to codes, codes to the latent.
    sampling: float
    #: Residual diffusion of the last scale.
    residual: float
    #: Latent to pixels.
    decode: float
    #: The whole run.
    total: float


@dataclasses.dataclass(frozen=True)
class Truncation:
    """A prompt that was cut because it is longer than the model's context."""

    #: Index of the prompt in the request, from 0; None for the system prompt.
    prompt: int | None
    #: Number of tokens of the whole text.
    tokens: int
    #: Number of tokens that the model read.
    kept: int
    #: The text that was cut off.
    cut: str


class Result(Sequence[Image]):
    """The images of a run as a sequence: all images of the first prompt, then all of the second, and so on."""

    #: The images.
    images: tuple[Image, ...]
    #: Time spent in each stage.
    timings: Timings
    #: Prompts that were cut because they are longer than the model's context.
    truncated: tuple[Truncation, ...]

    def __init__(self, images: Iterable[Image], timings: Timings, truncated: Iterable[Truncation]) -> None:
        self.images, self.timings, self.truncated = tuple(images), timings, tuple(truncated)

    @classmethod
    def _from_handle(cls, handle: _hart_result) -> Result:
        timings = _hart_timings()
        _lib.hart_result_timings(handle, byref(timings))
        truncated = []
        for index in range(_lib.hart_result_truncation_count(handle)):
            truncation = _hart_truncation()
            _lib.hart_result_truncation(handle, index, byref(truncation))
            values = truncation.values()
            values["prompt"] = None if values["prompt"] < 0 else values["prompt"]
            truncated.append(Truncation(**values))
        return cls(_images(handle), Timings(**timings.values()), truncated)

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | Sequence[Image]:
        return self.images[index]

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if _is_a(other, Result) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.images, self.timings, self.truncated))

    def __repr__(self) -> str:
        return f"<hart.Result {list(self.images)}, {self.timings.total:.2f} s>"


def _images(handle: _hart_result) -> tuple[Image, ...]:
    images = []
    for index in range(_lib.hart_result_count(handle)):
        image = _hart_image()
        _lib.hart_result_image(handle, index, byref(image))
        images.append(Image._from_handle(image))
    return tuple(images)


# ---- Runs ------------------------------------------------------------------------------------------------------------------------


class _Stop:
    def __repr__(self) -> str:
        return "hart.STOP"

    def __reduce__(self) -> str:
        return "STOP"


#: Return value of `on_event` that cancels the run. `importlib.reload` keeps the object.
STOP: Any = globals().get("STOP") or _Stop()


class _Run:
    """A call of the library that reports events, and the objects that must live until it returns."""

    def __init__(
        self,
        function: Any,
        arguments: tuple[Any, ...],
        on_event: Callable[[Event], object] | None,
        name: str = "on_event",
    ) -> None:
        """Prepare `function(*arguments, output)`. The request or the options among the arguments receive the observer."""
        _callback(name, on_event)
        self._function, self._arguments = function, arguments
        self._on_event, self._name = on_event, name
        self._raised: BaseException | None = None
        #: True cancels the run at its next event. May be set from any thread.
        self.stopped = False
        self.finished = threading.Event()
        self._process = os.getpid()

    def check_process(self) -> None:
        """Check that the run has not been left behind by a fork."""
        if self._process != os.getpid() and not self.finished.is_set():
            raise RequestError(Status.ERR_STATE, "the run belongs to the process that this one was forked from: start another one")

    def generate(self) -> Result:
        """Generate the images on this thread."""
        result = _hart_result()
        try:
            self.call(result)
        except Cancelled as cancelled:
            cancelled.completed = _images(result)
            raise
        return Result._from_handle(result)

    def call(self, output: _Handle) -> None:
        """Call the function on this thread while events are received."""
        failure: BaseException | None = None
        argument: Any = None
        _runs.add(self)
        try:
            if _ending and threading.current_thread() is not threading.main_thread():
                raise RequestError(Status.ERR_STATE, "Python is exiting")
            receiver = self._receive()
            next(receiver)
            # `property.__get__` is C code that calls `send` with the first of the two arguments. The second is user_data.
            observer = _hart_observer(property(receiver.send).__get__)
            for argument in self._arguments:
                if isinstance(argument, _hart_request):
                    _lib.hart_request_set_observer(argument, observer, None, _hart_destroy())
                elif isinstance(argument, _hart_options):
                    _lib.hart_options_set_observer(argument, observer, None, _hart_destroy())
            try:
                self._function(*self._arguments, byref(output))
            except Error as error:
                failure = error
            finally:
                next(receiver, None)
            if self._raised is not None:
                failure = self._raised
            if failure is not None:
                raise failure
        finally:
            _runs.discard(self)
            self.finished.set()
            # An error or a stream may keep this run alive. The run must not keep the model alive or form a reference cycle.
            self._function = self._on_event = self._raised = failure = argument = None
            self._arguments = ()

    def _receive(self) -> Generator[int, Any, None]:
        """Receive pointers to events and yield the callback's return values. Sending None ends the generator.

        A callback must not raise: ctypes would print the exception, and the run would continue. This includes exceptions from
        signal handlers, such as KeyboardInterrupt for Ctrl-C. Python runs signal handlers before the first line of a function that
        is called from C, where a `try` inside the function does not apply yet. A generator resumes inside its `try`.
        """
        cancel = 0
        try:
            while True:
                pointer = yield cancel
                if pointer is None:
                    return
                cancel = int(self.stopped or self._notify(pointer))
        except BaseException as error:
            self._raised = error
        yield 1

    def _notify(self, pointer: Any) -> bool:
        """Call `on_event`. Return True if the run is to be cancelled."""
        if self._on_event is None:
            return False
        event = Event._from_pointer(pointer)
        try:
            result = self._on_event(event)
        finally:
            event._source.clear()
        if result is not None:
            _refuse_awaitable(self._name, result)
        return result is STOP


#: Runs in progress. `importlib.reload` keeps them.
_runs: set[_Run] = globals().get("_runs") or set()
#: Batches in progress, likewise.
_batches: set[_BatchRuns] = globals().get("_batches") or set()
#: True when Python exits.
_ending = False


if hasattr(os, "register_at_fork"):
    # The threads of these runs do not exist in a forked process. It would wait for them when it exits.
    os.register_at_fork(after_in_child=lambda: _runs.clear())


@atexit.register
def _end_runs() -> None:
    """Stop the runs of daemon threads when Python exits. Python would otherwise end those threads inside the library."""
    global _ending
    _ending = True
    runs = list(_runs)
    for run in runs:
        run.stopped = True
    for batch in list(_batches):
        batch.close()
    for run in runs:
        # The time limit is for a run that hangs in the program's on_event.
        run.finished.wait(10)


class Stream(_Local, Iterator[Event]):
    """An iterator over the events of a run in a background thread. `Model.stream` creates it."""

    _instead = "pass its events or its result instead"

    def __init__(self, model: _hart_model, request: _hart_request, previews: int | None) -> None:
        """Start the run. Use `Model.stream` instead."""
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        outcome: list[Result | BaseException] = []

        def enqueue(event: Event) -> None:
            if previews is not None and event.has_preview:
                event = dataclasses.replace(event, image=event.preview(previews))
            events.put(event)

        def work() -> None:
            try:
                outcome.append(run.generate())
            except BaseException as error:
                # The frames of the traceback refer to `outcome`, which would be a reference cycle.
                outcome.append(error.with_traceback(None))
            finally:
                events.put(None)

        run = _Run(_lib.hart_generate, (model, request), enqueue)
        self._run, self._events, self._outcome = run, events, outcome
        # The thread holds no reference to the stream. Dropping the stream therefore ends the run.
        self._thread = threading.Thread(target=work, name="hart-stream", daemon=True)
        # The program may exit before the thread adds the run.
        _runs.add(run)
        try:
            self._thread.start()
        except BaseException:
            _runs.discard(run)
            run.finished.set()
            raise

    def __next__(self) -> Event:
        """Wait for the next event and return it.

        Raises:
            Error: The run has failed. Raised after the last event, unless the stream is closed.
        """
        self._run.check_process()
        event = self._events.get()
        if event is not None:
            return event
        # Further calls must find the end marker too.
        self._events.put(None)
        if not self._run.stopped:
            self.result()
        raise StopIteration

    def result(self) -> Result:
        """Wait for the end of the run and return its result. The events need not be consumed first.

        Raises:
            Error: The run has failed.
            Cancelled: The run was cancelled, or the stream was closed before the run ended.
        """
        self._run.check_process()
        self._thread.join()
        outcome = self._outcome[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def close(self) -> None:
        """Cancel the run if it is in progress, and wait for its end. May be called more than once."""
        self._run.stopped = True
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __copy__(self) -> NoReturn:
        self.__reduce__()

    def __enter__(self) -> Stream:
        if self._run.stopped:
            raise RequestError(Status.ERR_STATE, "the stream is closed")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # At exit, _end_runs has stopped the run already, and the thread may never end.
        if not (self._run.stopped or self._run.finished.is_set()):
            self.close()


# ---- Models ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """Properties of a model."""

    #: Width of its images in pixels.
    width: int
    #: Height of its images in pixels.
    height: int
    #: Number of scales of an image.
    scales: int
    #: Maximum number of tokens of a prompt. Longer prompts are cut.
    context_tokens: int
    #: Number of codes in its codebook, from which image tokens are sampled.
    codes: int
    #: Number of parameters, including the text encoder and the visual tokenizer.
    parameters: int
    #: Device that it computes on, such as "cpu".
    device: str
    #: Numeric precision that it computes in, such as "f32".
    precision: str
    #: Fingerprint: 64 hexadecimal digits, the same for a folder and for its files in memory. It covers the configuration, the names and
    #: shapes of all tensors, and a sample of their data.
    fingerprint: str


class Memory(NamedTuple):
    """Estimated memory in bytes."""

    #: Memory of the opened model.
    weights: int
    #: Peak memory during one run, weights included. Every further run at the same time adds `peak - weights`.
    peak: int


class Tokens(_Local):
    """An image encoded as tokens of a model: codes of every scale, and the residual that the codes do not represent.

    The tokens keep the model's weights in memory.
    """

    _instead = "they belong to a model of this process; pass the image, and call Model.tokenize in the other process"
    _handle: _hart_tokens

    def __init__(self) -> None:
        raise TypeError("Tokens cannot be created directly: use Model.tokenize")

    @classmethod
    def _from_handle(cls, handle: _hart_tokens) -> Tokens:
        tokens = cls.__new__(cls)
        tokens._handle = handle
        return tokens

    @property
    def scales(self) -> int:
        """Number of scales."""
        return int(_lib.hart_tokens_scales(self._handle))

    def codes(self, scale: int) -> memoryview:
        """Return a read-only view of the codes of a scale: side * side integers of 32 bits, row by row.

        The view is not a copy. It may outlive the tokens.

        Args:
            scale: Index of the scale, from 0 for the coarsest. Negative values count from the finest.

        Raises:
            IndexError: There is no such scale.
        """
        codes, count = POINTER(c_uint32)(), c_size_t()
        _lib.hart_tokens_codes(self._handle, range(self.scales)[scale], byref(codes), byref(count))
        return _view_of(self._handle, codes, count.value, c_uint32).cast("B").cast("I")

    def __repr__(self) -> str:
        return f"<hart.Tokens, {self.scales} scales>"


class Context(_Local):
    """Encoded prompts of a model, for any number of runs: `Model.encode` creates it, and `generate` and `stream` accept it.

    It does not keep the model in memory. Its memory is freed with the last reference. To free it earlier, call `close` or
    use the context as a context manager.
    """

    _instead = "it belongs to a model of this process; pass the prompts, and call Model.encode in the other process"
    #: The prompts.
    prompts: tuple[str, ...]
    _handle: _hart_context | None

    def __init__(self) -> None:
        raise TypeError("Context cannot be created directly: use Model.encode")

    @classmethod
    def _from_handle(cls, handle: _hart_context, prompts: Iterable[str]) -> Context:
        context = cls.__new__(cls)
        context._handle, context.prompts = handle, tuple(prompts)
        return context

    def close(self) -> None:
        """Free the memory, once no run and no view uses it. May be called more than once."""
        self._handle = None

    @property
    def closed(self) -> bool:
        """True if the context is closed."""
        return self._handle is None

    def __enter__(self) -> Context:
        self._open_handle()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_handle(self) -> _hart_context:
        handle = self._handle
        if handle is None:
            raise RequestError(Status.ERR_STATE, "the context is closed")
        return handle

    def __len__(self) -> int:
        """Return the number of prompts."""
        return int(_lib.hart_context_count(self._open_handle()))

    @property
    def nbytes(self) -> int:
        """Number of bytes that the context takes in the memory of the program and of the device, without the copy of `hidden`."""
        return int(_lib.hart_context_bytes(self._open_handle()))

    def hidden(self, prompt: int = 0) -> memoryview[float]:
        """Return a read-only view of the hidden states of a prompt: 32-bit floats, `[tokens, channels]`.

        They are those of the text encoder after its final norm, without those of the system prompt. Padding has hidden states too.
        They are copied at the first call. `numpy.asarray` makes an array of the view. The view may outlive the context.

        Args:
            prompt: Index of the prompt, from 0. Negative values count from the last.

        Raises:
            IndexError: There is no such prompt.
            DeviceError: The device has failed.
        """
        handle, values, tokens, channels = self._open_handle(), POINTER(c_float)(), c_size_t(), c_size_t()
        _lib.hart_context_hidden(handle, range(len(self))[prompt], byref(values), byref(tokens), byref(channels))
        view = _view_of(handle, values, tokens.value * channels.value, c_float)
        return view.cast("B").cast("f", (tokens.value, channels.value))

    def mask(self, prompt: int = 0) -> memoryview[bool]:
        """Return a read-only view of the mask of a prompt: True for a token of the text, False for padding.

        The view may outlive the context.

        Args:
            prompt: Index of the prompt, from 0. Negative values count from the last.

        Raises:
            IndexError: There is no such prompt.
        """
        handle, values, tokens = self._open_handle(), POINTER(c_uint8)(), c_size_t()
        _lib.hart_context_mask(handle, range(len(self))[prompt], byref(values), byref(tokens))
        return _view_of(handle, values, tokens.value, c_uint8).cast("B").cast("?")

    def __repr__(self) -> str:
        return f"<hart.Context, {'closed' if self.closed else f'{len(self)} prompts'}>"


class Model(_Local):
    """An opened model. Any number of threads may use it at once.

    Its memory is freed with the last reference. To free it earlier, call `close` or use the model as a context manager.
    """

    _instead = "open the model in each worker process"
    _handle: _hart_model | None = None

    def __init__(
        self,
        path: _Path,
        *,
        device: str = "auto",
        precision: str = "auto",
        text_model: _Path | None = None,
        weights: str = "auto",
        memory_map: bool = True,
        strict: bool = True,
        threads: int | None = None,
        max_memory: int | None = None,
        keep_text_model: bool = False,
        progress: Callable[[Event], object] | None = None,
        cancel: Cancel | None = None,
        parallel: int | None = None,
    ) -> None:
        """Open a model from a folder. Ctrl-C cancels it and raises KeyboardInterrupt.

        Args:
            path: The model's folder, which contains `llm` and `tokenizer`.
            device: "auto" for the best device, "cpu", or another name from `devices()`.
            precision: Numeric precision. "auto" is f32 on the CPU, f16 on a GPU, and the stored precision for a
                converted model. "bf16" and "int8" on the CPU and "f16" on a GPU are faster than "f32" and slightly less accurate.
            text_model: Folder of the text encoder. None looks for `text` in the model's folder, then for
                `Qwen2-VL-1.5B-Instruct` in it and next to it.
            weights: "ema", "plain", or "auto" for the EMA weights if there are any and the plain ones otherwise.
            memory_map: True to map safetensors files, False to read them into memory. Mapped files must not change while the model
                is open.
            strict: True to reject a checkpoint with unused tensors, False to ignore them.
            threads: Number of threads of the model's own pool, 1 to 1024. None shares one pool, with a thread per core, among all
                models of the program. The number of threads does not change the images.
            max_memory: Limit in bytes for the estimated memory, 1 to 2**64 - 1; None for no limit. Opening the model or starting a
                run fails before any work if the estimate is above the limit. On the CPU, if an image would not fit otherwise, the
                decoder uses less memory and takes longer.
            keep_text_model: True to keep the text model's mapped weights in memory after a prompt is encoded, for a server that
                encodes all the time. False releases them.
            progress: A plain function that is called on this thread with an `Event` for every tensor that is loaded. If it returns
                `STOP`, opening is cancelled. If it raises, opening is cancelled and the exception is raised here.
            cancel: A token that cancels opening from another thread. It does not cancel the runs of the model.
            parallel: Number of images that are generated at once, each on its share of the threads, at least 1 and at most the number
                of threads: the images of a call, and those of calls from several threads. None chooses it: 1 for a large model and
                on a GPU, more for a small one. The number does not change the images.

        Raises:
            Cancelled: Opening was cancelled.
            CheckpointError: A file of the model is missing or invalid; the message names it.
            FileError: A file cannot be read; the message names it.
            DeviceError: The device is unavailable or has failed.
            OutOfMemoryError: More memory is needed than is available or allowed.
            RequestError: An option is invalid.
        """
        settings = (
            device, precision, text_model, weights, memory_map, strict, threads, max_memory, keep_text_model, cancel, parallel,
        )
        handle = _hart_model()
        _Run(_lib.hart_model_open, (_path("path", path), _options(*settings), _ABI_VERSION), progress, "progress").call(handle)
        self._handle = handle

    @classmethod
    def from_files(
        cls,
        files: Mapping[str, _Buffer] | Iterable[tuple[str, _Buffer]],
        *,
        device: str = "auto",
        precision: str = "auto",
        text_model: _Path | None = None,
        weights: str = "auto",
        memory_map: bool = True,
        strict: bool = True,
        threads: int | None = None,
        max_memory: int | None = None,
        keep_text_model: bool = False,
        progress: Callable[[Event], object] | None = None,
        cancel: Cancel | None = None,
        parallel: int | None = None,
    ) -> Model:
        """Open a model from files in memory.

        The other arguments and the exceptions are those of `Model(path)`. `memory_map` has no effect.

        Args:
            files: Contents of the files by path relative to the model's folder, such as "llm/config.json": a mapping, or an
                iterable of pairs. A content is bytes, a `mmap` or another buffer. It is not copied: the model keeps it, and it must
                not change until the model and its tokens are gone.
        """
        settings = (
            device, precision, text_model, weights, memory_map, strict, threads, max_memory, keep_text_model, cancel, parallel,
        )
        contents, handle = _hart_files(), _hart_model()
        _lib.hart_files_new(byref(contents))
        for name, value in _pairs("files", files):
            encoded, memory = _text("a name in files", name), _contiguous(name, value)
            try:
                _lib.hart_files_add_borrowed(contents, encoded, c_char_p(memory.address), memory.size, *_keep(memory))
            finally:
                _drop_destroyed()
        _Run(_lib.hart_model_open_files, (contents, _options(*settings), _ABI_VERSION), progress, "progress").call(handle)
        model = cls.__new__(cls)
        model._handle = handle
        return model

    def close(self) -> None:
        """Close the model. Runs in progress in other threads continue; the memory is freed after the last of them.

        May be called more than once.
        """
        self._handle = None

    @property
    def closed(self) -> bool:
        """True if the model is closed."""
        return self._handle is None

    def __enter__(self) -> Model:
        self._open_handle()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_handle(self) -> _hart_model:
        handle = self._handle
        if handle is None:
            raise RequestError(Status.ERR_STATE, "the model is closed")
        return handle

    @property
    def info(self) -> ModelInfo:
        """Properties of the model."""
        handle, info = self._open_handle(), _hart_model_info()
        _lib.hart_model_describe(handle, byref(info))
        return ModelInfo(**info.values())

    def memory(
        self,
        prompt: str | Iterable[str] = "an image",
        *,
        images_per_prompt: int = 1,
        system_prompt: str | None = None,
    ) -> Memory:
        """Estimate the memory in bytes that generating these images needs: `weights, peak = model.memory(...)`."""
        handle = self._open_handle()
        request = _request(prompt, images_per_prompt=images_per_prompt, system_prompt=system_prompt)
        weights, peak = c_uint64(), c_uint64()
        _lib.hart_model_memory(handle, request, byref(weights), byref(peak))
        return Memory(weights.value, peak.value)

    @property
    def parallel(self) -> int:
        """How many images the model generates at once: the images of a request, and those of calls from several threads."""
        parallel = c_uint32()
        _lib.hart_model_parallel(self._open_handle(), byref(parallel))
        return parallel.value

    def warm_up(self) -> None:
        """Compile a GPU's kernels by generating an image and discarding it, so that the first real run takes no longer than others.

        Does nothing on the CPU.
        """
        _lib.hart_model_warm_up(self._open_handle())

    def generate(
        self,
        prompt: str | Iterable[str] | None = None,
        *,
        images_per_prompt: int = 1,
        seed: int = 0,
        guidance: float | None = None,
        smoothing: bool | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: str | int | None = None,
        system_prompt: str | None = None,
        from_image: FromImage | None = None,
        context: Context | None = None,
        on_event: Callable[[Event], object] | None = None,
        cancel: Cancel | None = None,
        prune: str | Iterable[float] | None = None,
        marks: str | None = None,
    ) -> Result:
        """Generate images from one or more prompts. Returns when all images are finished.

        None selects the model's default for a setting. Ctrl-C cancels the run and raises KeyboardInterrupt within one step.

        Args:
            prompt: A prompt, or several. Not allowed with a context, which has prompts.
            images_per_prompt: Number of images per prompt, 1 to 1024, and at most 1024 images in total. Image i of a prompt, from
                0, has the seed `seed + i`, modulo 2**64.
            seed: 0 to 2**64 - 1. The same prompt, settings and seed generate exactly the same image on a CPU, in any batch.
            guidance: Scale of classifier-free guidance, -100 to 100; 0 turns it off. Usually 4.5.
            smoothing: True for Gumbel-softmax smoothing, which embeds a token as a weighted mix of codes; False to use its one
                sampled code. Usually True.
            top_k: Number of most likely codes that a token is sampled from, 1 to 2**32 - 1. Usually 600 on the first seven scales
                and 300 on the others.
            top_p: Probability mass of the most likely codes that a token is sampled from, 0 to 1; 0 turns this off. Usually 0.
            steps: Steps of the residual diffusion: 1 to 1000, or a text such as "10,5" or "ddim25". Usually 8.
            system_prompt: Text before each prompt; "" for none. With a context, None selects that of the context.
            from_image: An image to start from.
            context: Encoded prompts from `encode` of this model. The run skips the text encoder; the images are the same.
            on_event: A plain function that is called with every `Event`, on this thread. It is called often and should return
                quickly. If it returns `STOP`, the run is cancelled. If it raises, the run is cancelled and the exception is raised
                here.
            cancel: A token that cancels the run from another thread.
            prune: Shares of tokens that the last scales leave out, coarse to fine, such as (0.5, 0.75) or "0.5,0.75". This is
                faster and needs less memory, but changes the images.
            marks: The marks that the files of the images get: names of "prompt", "parameters", "settings" and "source" with commas,
                "all" (the default) or "none". "parameters,settings,source" keeps the prompt out of the files.

        Raises:
            Cancelled: The run was cancelled; `completed` has the images that were finished.
            RequestError: A setting is invalid. Raised before any work.
            TypeError: A setting has the wrong type, or `on_event` is a coroutine function or returned an awaitable.
            OutOfMemoryError: More memory is needed than is available or allowed.
            DeviceError: The device has failed.
        """
        settings = (
            images_per_prompt, seed, guidance, smoothing, top_k, top_p, steps, system_prompt, from_image, cancel, context, prune,
            marks,
        )
        request = _request(prompt, *settings)
        return _Run(_lib.hart_generate, (self._open_handle(), request), on_event).generate()

    def again(self, image: Image, *, on_event: Callable[[Event], object] | None = None, cancel: Cancel | None = None) -> Result:
        """Generate an image again, with the settings in its file.

        The image is the same to the last bit with the same model in the same precision on the same kind of device. A model with another
        fingerprint than the one in the file generates another image, and Python warns.

        Args:
            image: The image, such as `Image.open("red.png")`.
            on_event: Like that of `generate`.
            cancel: Like that of `generate`.

        Raises:
            RequestError: The image has no settings, not all of them or no prompt, or is an edit of another image.
        """
        request = _hart_request()
        _lib.hart_request_again(_instance("image", image, Image)._handle, byref(request))
        fingerprint = image.model_fingerprint
        if fingerprint is not None and fingerprint != self.info.fingerprint:
            warnings.warn("the image was generated by another model: the result will differ", stacklevel=2)
        if cancel is not None:
            _lib.hart_request_set_cancel(request, _instance("cancel", cancel, Cancel)._handle)
        return _Run(_lib.hart_generate, (self._open_handle(), request), on_event).generate()

    def stream(
        self,
        prompt: str | Iterable[str] | None = None,
        *,
        images_per_prompt: int = 1,
        seed: int = 0,
        guidance: float | None = None,
        smoothing: bool | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: str | int | None = None,
        system_prompt: str | None = None,
        from_image: FromImage | None = None,
        context: Context | None = None,
        previews: int | None = None,
        cancel: Cancel | None = None,
        prune: str | Iterable[float] | None = None,
        marks: str | None = None,
    ) -> Stream:
        """Like `generate`, but run in a background thread and return an iterator over the events.

            with model.stream("a parrot", previews=64) as events:
                for event in events:
                    show(event.fraction, event.image)
                image = events.result()[0]

        Leaving the `with` block, calling `close` or dropping the stream cancels the run and waits for its end. Events are queued in
        memory until they are consumed. The other arguments are those of `generate`.

        Args:
            previews: Largest side in pixels of the preview images in `Event.image`; 0 for full size, None for no previews.

        Raises:
            RequestError: A setting is invalid. Errors of the run itself are raised by the iteration and by `Stream.result`.
        """
        settings = (
            images_per_prompt, seed, guidance, smoothing, top_k, top_p, steps, system_prompt, from_image, cancel, context, prune,
            marks,
        )
        request = _request(prompt, *settings)
        return Stream(self._open_handle(), request, None if previews is None else _integer("previews", previews, 0, _UINT32))

    def encode(
        self,
        prompt: str | Iterable[str],
        *,
        system_prompt: str | None = None,
        on_event: Callable[[Event], object] | None = None,
        cancel: Cancel | None = None,
    ) -> Context:
        """Encode one or more prompts, for any number of runs. Ctrl-C cancels it like `generate`.

            context = model.encode("a parrot")
            images = [model.generate(context=context, seed=1, guidance=guidance)[0] for guidance in (2, 4, 6)]

        Args:
            prompt: A prompt, or several.
            system_prompt: Text before each prompt; "" for none, None for the model's.
            on_event: Called with every `Event`, as in `generate`.
            cancel: A token that cancels the work from another thread.

        Raises:
            Cancelled: The work was cancelled.
            RequestError: A prompt is invalid.
            OutOfMemoryError: More memory is needed than is available or allowed.
            DeviceError: The device has failed.
        """
        prompts = _prompts(prompt)
        request = _request(prompts, system_prompt=system_prompt, cancel=cancel)
        context = _hart_context()
        _Run(_lib.hart_encode, (self._open_handle(), request), on_event).call(context)
        return Context._from_handle(context, prompts)

    def tokenize(self, image: Image) -> Tokens:
        """Encode an image into tokens.

        Raises:
            RequestError: The image does not have the model's width and height.
        """
        handle, tokens = self._open_handle(), _hart_tokens()
        _lib.hart_model_tokenize(handle, _instance("image", image, Image)._handle, byref(tokens))
        return Tokens._from_handle(tokens)

    def reconstruct(self, tokens: Tokens, with_residual: bool = True) -> Image:
        """Decode tokens into an image.

        Args:
            tokens: Tokens from `tokenize` of this model.
            with_residual: True for the best reconstruction of the autoencoder, False to decode the codes alone.

        Raises:
            RequestError: The tokens are from another model.
        """
        source, residual = _instance("tokens", tokens, Tokens)._handle, _flag("with_residual", with_residual)
        handle, image = self._open_handle(), _hart_image()
        _lib.hart_model_reconstruct(handle, source, residual, byref(image))
        return Image._from_handle(image)

    def __repr__(self) -> str:
        if self.closed:
            return "<hart.Model, closed>"
        info = self.info
        size = f"{info.width} x {info.height}, {info.parameters / 1e6:.1f} M parameters"
        return f"<hart.Model {size}, {info.device} {info.precision}>"


def _options(
    device: str,
    precision: str,
    text_model: _Path | None,
    weights: str,
    memory_map: bool,
    strict: bool,
    threads: int | None,
    max_memory: int | None,
    keep_text_model: bool,
    cancel: Cancel | None,
    parallel: int | None,
) -> _hart_options:
    options = _hart_options()
    _lib.hart_options_new(byref(options))
    _lib.hart_options_set_device(options, _text("device", device))
    _lib.hart_options_set_precision(options, _text("precision", precision))
    if text_model is not None:
        _lib.hart_options_set_text_model(options, _path("text_model", text_model))
    _lib.hart_options_set_weights(options, _text("weights", weights))
    _lib.hart_options_set_memory_map(options, _flag("memory_map", memory_map))
    _lib.hart_options_set_strict(options, _flag("strict", strict))
    if threads is not None:
        _lib.hart_options_set_threads(options, _integer("threads", threads, 1, _MAX_THREADS))
    if parallel is not None:
        _lib.hart_options_set_parallel(options, _integer("parallel", parallel, 1, _UINT32))
    if max_memory is not None:
        _lib.hart_options_set_max_memory(options, _integer("max_memory", max_memory, 1, _UINT64))
    _lib.hart_options_set_keep_text_model(options, _flag("keep_text_model", keep_text_model))
    if cancel is not None:
        _lib.hart_options_set_cancel(options, _instance("cancel", cancel, Cancel)._handle)
    return options


def _prompts(prompt: str | Iterable[str]) -> list[str]:
    if isinstance(prompt, (str, bytes)) or not isinstance(prompt, Iterable):
        return [prompt]
    # An iterable may be infinite. The library refuses one prompt too many.
    return list(itertools.islice(prompt, _MAX_IMAGES + 1))


def _contiguous(name: str, value: _Buffer) -> _PyBuffer:
    """Return the memory of a buffer, or of a copy if that memory is not contiguous."""
    try:
        return _PyBuffer(value)
    except BufferError:
        return _PyBuffer(memoryview(value).tobytes())
    except TypeError:
        raise TypeError(f"{name} must be bytes or another buffer, not {type(value).__name__}") from None


def _pairs(name: str, items: Mapping[str, _Buffer] | Iterable[tuple[str, _Buffer]]) -> list[tuple[str, _Buffer]]:
    """Return the items of a mapping or of an iterable of pairs."""
    try:
        pairs = list(dict(items).items())
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a mapping from names to contents, or pairs of them, not {type(items).__name__}") from None
    if not pairs:
        advice = 'expected the contents of files by name, such as "llm/config.json"'
        raise RequestError(Status.ERR_REQUEST, f"{name} is empty, {advice}")
    return pairs


def _request(
    prompt: str | Iterable[str] | None,
    images_per_prompt: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    smoothing: bool | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    steps: str | int | None = None,
    system_prompt: str | None = None,
    from_image: FromImage | None = None,
    cancel: Cancel | None = None,
    context: Context | None = None,
    prune: str | Iterable[float] | None = None,
    marks: str | None = None,
) -> _hart_request:
    request = _hart_request()
    _lib.hart_request_new(byref(request))
    if context is not None:
        _lib.hart_request_set_context(request, _instance("context", context, Context)._open_handle())
        if prompt is not None:
            raise RequestError(Status.ERR_REQUEST, "prompt and context can't be combined: the context has prompts already")
    elif prompt is None:
        raise TypeError("a prompt or a context is required")
    else:
        for text in _prompts(prompt):
            _lib.hart_request_add_prompt(request, _text("prompt", text))
    _lib.hart_request_set_images_per_prompt(request, _integer("images_per_prompt", images_per_prompt, 1, _MAX_IMAGES))
    _lib.hart_request_set_seed(request, _integer("seed", seed, 0, _UINT64))
    if guidance is not None:
        _lib.hart_request_set_guidance(request, _float("guidance", guidance, -100, 100))
    if smoothing is not None:
        _lib.hart_request_set_smoothing(request, _flag("smoothing", smoothing))
    if top_k is not None:
        _lib.hart_request_set_top_k(request, _integer("top_k", top_k, 1, _UINT32))
    if top_p is not None:
        _lib.hart_request_set_top_p(request, _float("top_p", top_p, 0, 1))
    if steps is not None:
        text = steps if isinstance(steps, str) else str(_integer("steps", steps, 1, _MAX_STEPS))
        _lib.hart_request_set_steps(request, _text("steps", text))
    if prune is not None:
        _lib.hart_request_set_prune(request, _ratios("prune", prune))
    if marks is not None:
        _lib.hart_request_set_marks(request, _text("marks", marks))
    if system_prompt is not None:
        _lib.hart_request_set_system_prompt(request, _text("system_prompt", system_prompt))
    if from_image is not None:
        _instance("from_image", from_image, FromImage)._apply(request)
    if cancel is not None:
        _lib.hart_request_set_cancel(request, _instance("cancel", cancel, Cancel)._handle)
    return request


# ---- Batches ---------------------------------------------------------------------------------------------------------------------

#: Fields of OpenAI's requests that don't change the image.
_OPENAI_FIELDS = ("model", "user", "response_format", "moderation", "safety_identifier")
#: The published ratios of pruned scales.
_PRUNING = (0.5, 0.75)
#: Largest number up to which floats are exact integers.
_MAX_EXACT = 1 << 53
#: Largest number of bytes of a line in a file of prompts.
_MAX_LINE = 8 << 20
#: Names of devices that can't be the names of files on Windows, whatever their extension.
_WINDOWS_DEVICES = frozenset(["CON", "PRN", "AUX", "NUL", *(name + digit for name in ("COM", "LPT") for digit in "0123456789")])


def _hash_of_id(id: str) -> int:
    """Return the first 8 bytes of the SHA-256 of an id, as a big-endian integer."""
    return int.from_bytes(hashlib.sha256(id.encode(errors="surrogatepass")).digest()[:8], "big")


def _hash_of_file(id: str) -> int:
    """Return a hash that is the same for all ids whose files have the same name: some systems ignore case."""
    return _hash_of_id(id.lower() if sys.platform in ("win32", "cygwin", "darwin") else id)


class BatchEntry(NamedTuple):
    """An entry of a file of prompts. `read_batch` yields entries, and `batch` accepts them."""

    #: Number of its line in the file, or of its row in Parquet, from 1.
    line: int
    #: A prompt, fields of a request by name, or the error of a line that can't be read.
    value: str | Mapping[str, Any] | Exception


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """A finished entry of a batch: an image, or the error that prevented it."""

    #: Number of the entry, from 1, or the line of a `BatchEntry`.
    line: int
    #: Id of the entry; None if it has an error and no id.
    id: str | None
    #: The image, or None if there is an error.
    image: Image | None = None
    #: Seed of the image; None if there is an error.
    seed: int | None = None
    #: Time that the image took, in milliseconds; None if there is an error.
    milliseconds: int | None = None
    #: Problems that did not prevent the image, such as a prompt that was cut.
    warnings: tuple[str, ...] = ()
    #: What prevented the image: an `Error` of hart, or the `TypeError` or `ValueError` of an invalid entry.
    error: Exception | None = None
    #: Path of the image's file, if `batch` writes a folder.
    file: str | None = None


class _Job(NamedTuple):
    """A checked entry of a batch."""

    line: int
    id: str
    prompt: str
    seed: int
    settings: dict[str, Any]
    warnings: tuple[str, ...]


def _checked_id(id: object, line: int) -> str:
    """Return the id of an entry, which is the name of a file on all systems."""
    if id is None:
        return f"line-{line:08}"
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str):
        raise TypeError(f"id must be str, not {type(id).__name__}")
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", id):
        expected = 'expected 1 to 128 of A-Z, a-z, 0-9, ".", "_" and "-", and no dot at the beginning'
        raise RequestError(Status.ERR_REQUEST, f"id is {id[:140]!r}, {expected}")
    if id.partition(".")[0].upper() in _WINDOWS_DEVICES:
        raise RequestError(Status.ERR_REQUEST, f"id is {id!r}, which is the name of a device on Windows: choose another")
    return id


def _whole(name: str, value: Any) -> int:
    """Return an integer. Programs that read tables make floats of integers, and large ones are often texts."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,20}", value.strip()):
        value = int(value)
    if isinstance(value, float):
        if not (value.is_integer() and 0 <= value <= _MAX_EXACT):
            raise RequestError(Status.ERR_REQUEST, f"{name} is {value!r}, expected an integer, and a text if it is large")
        value = int(value)
    return _integer(name, value, 0, _UINT64)


def _number(name: str, value: Any) -> Any:
    """Return a number that may be a text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise RequestError(Status.ERR_REQUEST, f"{name} is {value!r}, expected a number") from None
    return value


#: Settings of a request that an entry of a batch may have, with functions that read them.
_ENTRY_SETTINGS: dict[str, Callable[[str, Any], Any]] = {
    "guidance": _number,
    "smoothing": lambda _, value: value,
    "top_k": _whole,
    "top_p": _number,
    "steps": lambda _, value: value,
    "system_prompt": lambda _, value: value,
    "prune": lambda _, value: (_PRUNING if value else None) if isinstance(value, bool) else value,
}


def _body(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the image in a line of OpenAI's batch files."""
    url, body = fields.get("url"), fields.get("body")
    if url is not None and not str(url).endswith("/images/generations"):
        raise RequestError(Status.ERR_REQUEST, f"url is {url!r}, expected '/v1/images/generations'")
    if not isinstance(body, Mapping):
        raise TypeError(f"body must be a mapping of fields, not {type(body).__name__}")
    fields = {name: field for name, field in body.items() if field is not None and name not in _OPENAI_FIELDS}
    if fields.pop("n", 1) != 1:
        raise RequestError(Status.ERR_REQUEST, f"n is {body['n']}, expected 1: give each image an entry of its own")
    return fields


def _job(line: int, value: object, defaults: Mapping[str, Any]) -> _Job | BatchResult:
    """Check an entry of a batch. Return its error as a result."""
    id: str | None = None
    try:
        if isinstance(value, Exception):
            raise value
        entry = {"prompt": value} if isinstance(value, str) else value
        if not isinstance(entry, Mapping):
            raise TypeError(f"an entry must be a prompt or a mapping of fields, not {type(value).__name__}")
        fields = {name: field for name, field in entry.items() if field is not None}
        own, custom = fields.pop("id", None), fields.pop("custom_id", None)
        id = _checked_id(custom if own is None else own, line)
        if custom is not None or isinstance(fields.get("body"), Mapping):
            fields = _body(fields)
        prompt, seed = fields.pop("prompt", ""), fields.pop("seed", None)
        if not _text("prompt", prompt).strip():
            raise RequestError(Status.ERR_REQUEST, "prompt is missing or empty: describe an image")
        seed = _hash_of_id(id) if seed is None else _whole("seed", seed)
        settings = {**defaults, **{name: read(name, fields.pop(name)) for name, read in _ENTRY_SETTINGS.items() if name in fields}}
        _request(prompt, seed=seed, **settings)
    except Exception as error:
        return BatchResult(line, id, error=error.with_traceback(None))
    return _Job(line, id, prompt, seed, settings, tuple(f"`{name}` is unknown and was ignored" for name in fields))


def _truncation_warning(truncation: Truncation) -> str:
    name = "the system prompt" if truncation.prompt is None else "the prompt"
    return f"{name} has {truncation.tokens} tokens, the model reads {truncation.kept}; ignored: {truncation.cut!r}"


class _BatchFolder:
    """The folder that a batch writes: an image per id, and the lines of results and errors of a shard."""

    def __init__(self, path: _Path, shard: tuple[int, int]) -> None:
        self._path = Path(os.fsdecode(path))
        self._path.mkdir(parents=True, exist_ok=True)
        name = f"{shard[0]}-of-{shard[1]}.jsonl"
        self._errors = self._results = open(self._path / f"errors-{name}", "ab", buffering=0)  # noqa: SIM115
        try:
            _lock_file(self._errors.fileno(), self._errors.name)
        except BaseException:
            self._errors.close()
            raise
        # Entries that have failed are tried again.
        self._errors.truncate(0)
        #: Start of the names of temporary files, which a process that was killed leaves.
        self._temporary = f".batch-{shard[0]}-of-{shard[1]}-"
        for leftover in self._path.glob(f"{self._temporary}*"):
            leftover.unlink()
        results = self._path / f"results-{name}"
        #: Hashes of the files that are done.
        self.done = self._read(results)
        self._results = open(results, "ab", buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()

    def _read(self, results: Path) -> set[int]:
        """Return the hashes of the files that are done, and remove the other lines from the results of this shard.

        A line is not done if its image was removed since. The last line may be incomplete after a crash of the system.
        """
        done: set[int] = set()
        if results.exists():
            rewritten = self._path / f"{self._temporary}results"
            with open(results, "rb") as file, open(rewritten, "wb") as kept:
                for line in file:
                    hash = self._done(line)
                    if hash is not None and hash not in done:
                        done.add(hash)
                        kept.write(line)
                kept.flush()
                os.fsync(kept.fileno())
            if results.stat().st_size != rewritten.stat().st_size:
                os.replace(rewritten, results)
            else:
                rewritten.unlink()
        for path in self._path.glob("results-*-of-*.jsonl"):
            if path != results:
                with open(path, "rb") as file:
                    done.update(hash for hash in map(self._done, file) if hash is not None)
        return done

    def _done(self, line: bytes) -> int | None:
        """Return the hash of the file of a complete line whose image exists."""
        try:
            result = json.loads(line) if line.endswith(b"\n") else {}
            return _hash_of_file(_checked_id(result["id"], 0)) if (self._path / result["file"]).is_file() else None
        except (ValueError, TypeError, KeyError):
            return None

    def found(self, job: _Job) -> Image | None:
        """Return the image of an entry, if its file was written but the program ended before its line was."""
        path = self._path / f"{job.id}.png"
        try:
            image = Image.open(path) if path.is_file() else None
        except FileError:
            # A damaged file.
            return None
        # Without marks, the file doesn't tell.
        if image is None or (image.prompt is None and job.settings["marks"] is not None):
            return None
        if (image.prompt, image.seed) != (job.prompt, job.seed):
            advice = "move it, give the entry another id, or choose another folder"
            raise RequestError(Status.ERR_REQUEST, f"{path.name} exists and is another image: {advice}")
        return image

    def write(self, result: BatchResult, is_new: bool) -> BatchResult:
        """Write the file of a new image and the line of a result, from any thread. Returns the result with its file."""
        line: dict[str, Any]
        if result.image is None:
            file, line = self._errors, {"id": result.id, "line": result.line, "error": str(result.error)}
        else:
            path = self._path / f"{result.id}.png"
            if is_new:
                self._save(result.image.png(), path)
            file, line = self._results, {"id": result.id, "file": path.name, "seed": str(result.seed)}
            line.update(milliseconds=result.milliseconds, warnings=result.warnings)
            result = dataclasses.replace(result, file=str(path))
        data = json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n"
        with self._lock:
            # Without a buffer, so that a process that is killed leaves no part of a line. A full disk takes a part, then none.
            while data:
                data = data[file.write(data) :]
        return result

    def _save(self, png: bytes, path: Path) -> None:
        """Write a file completely or not at all."""
        temporary = path.with_name(self._temporary + path.name)
        with open(temporary, "wb") as file:
            file.write(png)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def close(self) -> None:
        """Close the files, which ends the lock."""
        self._results.close()
        self._errors.close()

    def __del__(self) -> None:
        # The generator of a batch that was never started does not close them.
        if hasattr(self, "_results"):
            self.close()


def _lock_file(descriptor: int, name: str) -> None:
    """Lock an open file until it is closed, on systems with POSIX locks."""
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        advice = "wait for its end, or give each process a shard of its own"
        raise RequestError(Status.ERR_STATE, f"another batch is writing {name}: {advice}") from None
    except OSError as error:
        warnings.warn(f"{name} can't be locked ({error}): make sure that only one process writes it", stacklevel=4)


def _ends_batch(error: Exception) -> bool:
    """Return True if the other entries of a batch would fail too, because the error is that of the model or of the device."""
    fatal = isinstance(error, (Cancelled, InternalError, DeviceError)) and not isinstance(error, OutOfMemoryError)
    return fatal or (isinstance(error, Error) and error.status == Status.ERR_STATE)


class _BatchRuns:
    """The runs of a batch in threads of their own, which hold no reference to the generator of `batch`."""

    def __init__(self, model: Model, cancel: Cancel | None, folder: _BatchFolder | None, threads: int) -> None:
        self._model, self._cancel, self._folder = model, cancel, folder
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        #: Results in the order in which they are finished, and errors that end the batch.
        self._finished: queue.SimpleQueue[BatchResult | BaseException] = queue.SimpleQueue()
        self._running: set[_Run] = set()
        self._stopped = False
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._count, self._process = threads, os.getpid()

    def start(self) -> None:
        """Start the threads."""
        self._process = os.getpid()
        # Daemon threads can't be joined once Python has begun to delete its objects.
        _batches.add(self)
        for _ in range(self._count):
            thread = threading.Thread(target=self._work, name="hart-batch", daemon=True)
            thread.start()
            self._threads.append(thread)

    def put(self, job: _Job) -> None:
        """Add a job to the queue."""
        self._jobs.put(job)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            problem = "the batch belongs to the process that this one was forked from: start another one"
            raise RequestError(Status.ERR_STATE, problem)

    def get(self) -> BatchResult:
        """Wait for the next result and return it, or raise an error that ends the batch."""
        self._check_process()
        finished = self._finished.get()
        if isinstance(finished, BaseException):
            raise finished
        return finished

    def close(self) -> None:
        """Cancel the runs and wait for the end of the threads."""
        _batches.discard(self)
        if self._process != os.getpid():
            # The threads do not exist in a forked process.
            return
        with self._lock:
            self._stopped = True
            for run in self._running:
                run.stopped = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._threads = []

    def _work(self) -> None:
        for job in iter(self._jobs.get, None):
            try:
                if not self._stopped:
                    self._finished.put(self._result(job))
            except BaseException as error:
                # The frames of the traceback refer to this object.
                self._finished.put(error.with_traceback(None))

    def _result(self, job: _Job) -> BatchResult:
        """Generate the image of a job, or find it in the folder."""
        image, milliseconds, warnings = None, 0, job.warnings
        try:
            image = None if self._folder is None else self._folder.found(job)
            is_new = image is None
            if image is None:
                began = time.monotonic()
                generated = self._generate(job)
                image, milliseconds = generated[0], round(1000 * (time.monotonic() - began))
                warnings = (*warnings, *map(_truncation_warning, generated.truncated))
        except Exception as error:
            if _ends_batch(error):
                raise
            is_new, result = False, BatchResult(job.line, job.id, error=error.with_traceback(None))
        else:
            result = BatchResult(job.line, job.id, image, job.seed, milliseconds, warnings)
        return result if self._folder is None else self._folder.write(result, is_new)

    def _generate(self, job: _Job) -> Result:
        request = _request(job.prompt, seed=job.seed, cancel=self._cancel, **job.settings)
        run = _Run(_lib.hart_generate, (self._model._open_handle(), request), None)
        with self._lock:
            run.stopped = self._stopped
            self._running.add(run)
        try:
            return run.generate()
        finally:
            with self._lock:
                self._running.discard(run)


def batch(
    prompts: Iterable[str | Mapping[str, Any] | BatchEntry],
    model: Model,
    *,
    out: _Path | None = None,
    shard: tuple[int, int] = (0, 1),
    parallel: int | None = None,
    guidance: float | None = None,
    smoothing: bool | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    steps: str | int | None = None,
    system_prompt: str | None = None,
    prune: str | Iterable[float] | None = None,
    marks: str | None = None,
    cancel: Cancel | None = None,
) -> Generator[BatchResult, None, None]:
    """Generate an image for each of any number of entries, and yield the results in the order in which they are finished.

        for result in hart.batch(hart.read_batch("prompts.jsonl"), model, out="images"):
            print(result.id, result.error or result.file)

    An invalid entry is a result with an `error`, and the batch continues. An error of the model, of the device or of writing a file
    is raised and ends it. Entries are consumed while images are generated, a few ahead. Memory holds a few images at a time, and a
    number for each id. Closing the generator, dropping it or Ctrl-C cancels the images in work and waits for the end of their runs.

    An entry is a prompt or a mapping with "prompt" and optionally "id", "seed", "guidance", "smoothing", "top_k", "top_p", "steps",
    "system_prompt" and "prune", like the arguments of `generate`; None stands for a field that is missing. A line of OpenAI's batch
    files, with "custom_id" and "body", works too. An id is the name of a file: 1 to 128 of A-Z, a-z, 0-9, ".", "_" and "-". The
    entry with the number 7 that has no id has the id "line-00000007". A seed may be a text. The seed of an entry without one is the
    first 8 bytes, big-endian, of the SHA-256 of its id: it draws the same image in any order and on any machine.

    Args:
        prompts: The entries, such as those of `read_batch`.
        model: The model. It may be used at the same time.
        out: A folder that receives "ID.png" for each image, then a line in "results-0-of-1.jsonl", and a line in
            "errors-0-of-1.jsonl" for each error. Entries that have a line and an image are skipped, whatever their settings, so a
            batch that was interrupted continues with the same call; entries that have failed are tried again. hart's program
            `batch` writes the same files. None writes nothing.
        shard: (k, n) takes the part k, from 0, of the entries in n parts, by their ids. The names of the files have the numbers.
        parallel: Number of images in work. None is `Model.parallel`, with which no run waits for another.
        guidance, smoothing, top_k, top_p, steps, system_prompt, prune: Settings of the entries that have none of their own.
        marks: Like that of `generate`.
        cancel: A token that cancels the batch from another thread. The generator then raises `Cancelled`.

    Raises:
        RequestError: An argument is invalid, or another batch writes the same files.
        OSError: A file in `out` can't be read or written.
        Error: An error of the model or of the device.
    """
    if isinstance(prompts, (str, bytes, os.PathLike, Mapping)) or not isinstance(prompts, Iterable):
        advice = ": use hart.read_batch" if isinstance(prompts, (str, bytes, os.PathLike)) else ""
        raise TypeError(f"prompts must be an iterable of prompts or mappings, not {type(prompts).__name__}{advice}")
    index, count = (operator.index(number) for number in shard)
    if not 0 <= index < count:
        raise RequestError(Status.ERR_ARGUMENT, f"shard is {(index, count)}, expected (k, n) with 0 <= k < n")
    _instance("model", model, Model)._open_handle()
    # An iterable may be consumed only once.
    prune = prune if prune is None or isinstance(prune, str) else tuple(prune)
    values = (guidance, smoothing, top_k, top_p, steps, system_prompt, prune)
    defaults: dict[str, Any] = {**dict(zip(_ENTRY_SETTINGS, values)), "marks": marks}
    _request("an image", cancel=cancel, **defaults)
    threads = _integer("parallel", model.parallel if parallel is None else parallel, 1, _MAX_THREADS)
    folder = None if out is None else _BatchFolder(out, (index, count))
    runs = _BatchRuns(model, cancel, folder, threads)
    return _batch(iter(prompts), (index, count), defaults, folder, runs, 2 * threads)


def _batch(
    entries: Iterator[str | Mapping[str, Any] | BatchEntry],
    shard: tuple[int, int],
    defaults: Mapping[str, Any],
    folder: _BatchFolder | None,
    runs: _BatchRuns,
    limit: int,
) -> Generator[BatchResult, None, None]:
    """Yield the results of `batch`, with at most `limit` entries in work."""
    seen: set[int] = set()
    working = 0
    try:
        runs.start()
        for number, entry in enumerate(entries, 1):
            line, value = entry if _is_a(entry, BatchEntry) else (number, entry)
            job = _job(line, value, defaults)
            # Every entry belongs to one shard, also one without an id.
            if (line if job.id is None else _hash_of_id(job.id)) % shard[1] != shard[0]:
                continue
            if isinstance(job, _Job):
                key = _hash_of_file(job.id)
                if key in seen:
                    problem = f"id is {job.id!r}, which is that of an earlier entry: give each entry its own"
                    job = BatchResult(line, job.id, error=RequestError(Status.ERR_REQUEST, problem))
                elif folder is not None and key in folder.done:
                    seen.add(key)
                    continue
                seen.add(key)
            if isinstance(job, BatchResult):
                yield job if folder is None else folder.write(job, is_new=False)
                continue
            runs.put(job)
            working += 1
            if working == limit:
                yield runs.get()
                working -= 1
        for _ in range(working):
            yield runs.get()
    finally:
        runs.close()
        if folder is not None:
            folder.close()


def read_batch(path: _Path, format: Literal["text", "jsonl", "csv", "tsv", "parquet"] | None = None) -> Iterator[BatchEntry]:
    """Read the entries of a file for `batch`, one after the other.

    A text file has a prompt in each line; empty lines and lines that begin with "#" are skipped. In CSV, TSV and Parquet, a column
    is a field, and an empty cell is a missing field. A line that can't be read is an entry whose value is the error.

    Args:
        path: The file, in UTF-8.
        format: "text", "jsonl" (a JSON object in each line), "csv", "tsv" or "parquet", which needs PyArrow. None selects by the
            ending of the name, and for other names by the first line: a "{" begins JSON.

    Raises:
        OSError: The file can't be opened.
        RequestError: The file is in UTF-16, or a table has no column "prompt". Raised by the iteration.
        ImportError: PyArrow is not installed.
    """
    name = os.fsdecode(path)
    kind = Path(name).suffix.lower()[1:] if format is None else format
    if format not in (None, "text", "jsonl", "csv", "tsv", "parquet"):
        raise RequestError(Status.ERR_ARGUMENT, f"format is {format!r}, expected 'text', 'jsonl', 'csv', 'tsv' or 'parquet'")
    if kind == "parquet":
        return _parquet_entries(importlib.import_module("pyarrow.parquet").ParquetFile(name))
    if kind in ("csv", "tsv"):
        # A byte that is not UTF-8 becomes a surrogate, which is an error of its entry.
        file = open(name, newline="", encoding="utf-8-sig", errors="surrogateescape")  # noqa: SIM115
        return _csv_entries(file, "\t" if kind == "tsv" else ",")
    return _line_entries(open(name, "rb"), {"txt": "text", "ndjson": "jsonl", "json": "jsonl"}.get(kind, kind))


def _line_entries(file: BinaryIO, format: str) -> Iterator[BatchEntry]:
    is_json = format == "jsonl" if format in ("text", "jsonl") else None
    with file:
        for number in itertools.count(1):
            line = file.readline(_MAX_LINE)
            if not line:
                return
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise RequestError(Status.ERR_UTF8, f"{file.name} is in UTF-16, expected UTF-8: save it as UTF-8")
            value: str | Mapping[str, Any] | Exception
            if len(line) == _MAX_LINE and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(_MAX_LINE)
                value = RequestError(Status.ERR_REQUEST, f"the line has more than {_MAX_LINE >> 20} MB")
            else:
                # Some editors write a byte order mark.
                line = line[3:] if number == 1 and line.startswith(b"\xef\xbb\xbf") else line
                try:
                    text = line.decode().strip()
                    if text and is_json is None:
                        is_json = text.startswith("{")
                    if not text or (not is_json and text.startswith("#")):
                        continue
                    value = json.loads(text) if is_json else text
                    if is_json and not isinstance(value, dict):
                        raise ValueError("expected an object, such as {\"id\": \"1\", \"prompt\": \"a parrot\"}")
                except UnicodeDecodeError as error:
                    problem = f"the line is not UTF-8 from byte {error.start + 1}: save the file as UTF-8"
                    value = RequestError(Status.ERR_UTF8, problem)
                except (ValueError, RecursionError) as error:
                    value = RequestError(Status.ERR_REQUEST, f"the line is not a JSON object: {error}")
            yield BatchEntry(number, value)


def _csv_entries(file: TextIO, delimiter: str) -> Iterator[BatchEntry]:
    with file:
        rows = csv.DictReader(file, delimiter=delimiter)
        _check_columns(file.name, rows.fieldnames or ())
        while True:
            try:
                cells = next(rows, None)
                if cells is None:
                    return
                value: Mapping[str, Any] | Exception = _row(cells)
            except (csv.Error, RequestError) as error:
                value = error
            yield BatchEntry(rows.line_num, value)


def _row(cells: dict[str | Any, str | Any]) -> dict[str, Any]:
    """Return the fields of a row of a CSV file."""
    if None in cells:
        raise RequestError(Status.ERR_REQUEST, "the row has more cells than the header")
    fields: dict[str, Any] = {name: cell for name, cell in cells.items() if cell}
    for name, choices in (("smoothing", {"true": True, "false": False}), ("prune", {"true": True, "false": False})):
        if name in fields:
            fields[name] = choices.get(fields[name].strip().lower(), fields[name])
    return fields


def _parquet_entries(file: Any) -> Iterator[BatchEntry]:
    with file:
        _check_columns("the Parquet file", file.schema_arrow.names)
        rows = (row for rows in file.iter_batches(batch_size=256) for row in rows.to_pylist())
        for number, row in enumerate(rows, 1):
            yield BatchEntry(number, row)


def _check_columns(name: str, columns: Iterable[str]) -> None:
    if "prompt" not in columns:
        found = ", ".join(columns) or "none"
        raise RequestError(Status.ERR_REQUEST, f"{name} has the columns {found}, expected prompt among them")


# ---- The library -----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that a model can be opened on."""

    #: Name for `Model(..., device=name)`, such as "cpu".
    name: str
    #: Human-readable description.
    description: str


def devices() -> list[Device]:
    """Return the available devices, the best first."""
    handle, found = _hart_device_list(), []
    _lib.hart_device_list_new(byref(handle))
    for index in range(_lib.hart_device_list_count(handle)):
        info = _hart_device_info()
        _lib.hart_device_list_get(handle, index, byref(info))
        found.append(Device(**info.values()))
    return found


def version() -> str:
    """Return the version of the library, such as "0.1.0"."""
    return str(_decoded(_lib.hart_version_text()))


def build_info() -> dict[str, Any]:
    """Return data about the library's build: version, abi, backends (such as "cpu", "cuda"), target, commit (or "unknown")."""
    return dict(json.loads(_lib.hart_build_info()))


#: Levels of `logging` by HART_LOG_*. Later libraries may have the last two.
_LOG_LEVELS = {1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO, 4: logging.DEBUG}


def log_to(logger: str | logging.Logger | None = "hart") -> None:
    """Pass the messages of the library to a logger of `logging`, given by its name or itself. None, the default, drops them.

    Messages are rare: warnings, and the texts of panics. The call in which a panic happens raises an error too. A handler is called
    on any thread, and must not call hart.

    Raises:
        RequestError: It was called in a handler, while a message is passed on.
    """
    if logger is None:
        _lib.hart_set_log(_hart_logger(), None, _hart_destroy())
        _drop_destroyed()
        return
    target = logging.getLogger(logger) if isinstance(logger, str) else logger
    if not isinstance(target, (logging.Logger, logging.LoggerAdapter)):
        raise TypeError(f"logger must be a name, a logging.Logger or None, not {type(logger).__name__}")

    def receive(level: int, message: bytes, _: object) -> None:
        target.log(_LOG_LEVELS.get(level, logging.DEBUG), "%s", message.decode(errors="replace"))

    callback = _hart_logger(receive)
    try:
        _lib.hart_set_log(callback, *_keep(callback))
    finally:
        _drop_destroyed()


@atexit.register
def _end_log() -> None:
    """Remove the logger when Python exits: its handlers may be gone."""
    _lib.hart_set_log(_hart_logger(), None, _hart_destroy())
