"""Text to image with HART, in Python: the C library `libhart` behind plain classes.

    import hart

    with hart.Model("models/hart-emoji") as model:
        image = model.generate("a red heart on a yellow background", seed=7)[0]
        image.save("heart.png")

This file needs nothing but Python's standard library and the shared library, which it looks for in this order:

1. the file that the environment variable HART_LIBRARY names, and then nowhere else;
2. beside this file;
3. in the repository that this file is part of, where `cargo build` puts it (`--release`, then `--profile dist`);
4. in `lib` of the prefix that this file is installed in;
5. wherever the system's loader looks.

Threads: any number of them may use the same `Model` at once, and the same `Image`, `Tokens`, `Result` or `Cancel`; a `Stream` is
for one. Python's own lock is free while the library works.

Errors: what won't do is an `Error`; its subclasses say whose fault it is. A value of the wrong type is a `TypeError`.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import dataclasses
import enum
import importlib
import json
import operator
import os
import queue
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Callable, ClassVar, Literal, NamedTuple, NoReturn, SupportsFloat, SupportsIndex, TypeVar, Union, overload

__version__ = "0.1.0"
__all__ = [
    "STOP",
    "Cancel",
    "Cancelled",
    "CheckpointError",
    "Device",
    "DeviceError",
    "Error",
    "Event",
    "FileError",
    "FromImage",
    "Image",
    "InternalError",
    "Memory",
    "Model",
    "ModelInfo",
    "OutOfMemoryError",
    "RequestError",
    "Result",
    "Stage",
    "Status",
    "Step",
    "Stream",
    "Timings",
    "Tokens",
    "Truncation",
    "build_info",
    "devices",
    "version",
]

# ---- The C library: types --------------------------------------------------------------------------------------------------------

#: HART_ABI_VERSION of the header that this file was written for.
_ABI_VERSION = 1


class _hart_status(c_int32):
    """What a call came to. Functions that return it raise an `Error` instead where it isn't HART_OK."""


class _Handle(c_void_p):
    """Owns an object of the library: frees it when the last reference goes. A call under way holds a reference, so that nothing is
    freed while it is used, whatever other threads close meanwhile."""

    #: The C function that frees it. It stays here because a module's names may be gone before its last objects.
    _free: ClassVar[Callable[[_Handle], None]]

    def __del__(self) -> None:
        if self.value:
            type(self)._free(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__[1:]} can't be copied or pickled")

    @classmethod
    def from_param(cls, value: Any) -> Any:
        """Lets ctypes pass this type only; c_void_p would let numbers and texts pass."""
        if value is None or isinstance(value, cls):
            return value
        raise TypeError(f"expected {cls.__name__}, got {type(value).__name__}")


class _hart_cancel(_Handle):
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
    """A struct that the library fills: it begins with its own size."""

    def __init__(self) -> None:
        super().__init__(ctypes.sizeof(self))

    def values(self) -> dict[str, Any]:
        """The fields by name, texts decoded."""
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
    ]


_hart_observer = ctypes.CFUNCTYPE(c_int32, POINTER(_hart_event), c_void_p)
_hart_reader = ctypes.CFUNCTYPE(c_int32, c_void_p, c_uint64, POINTER(c_uint8), c_size_t)

# A `const uint8_t *` that goes in: Python's bytes pass without a copy, NULs and all.
_data = c_char_p

#: Every function of hart.h in its order: what it returns, what it takes.
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    # Version
    "hart_version": (c_uint32, []),
    "hart_version_text": (c_char_p, []),
    "hart_abi_version": (c_uint32, []),
    "hart_build_info": (c_char_p, []),
    # Status and errors
    "hart_status_text": (c_char_p, [c_int32]),
    "hart_last_error": (c_char_p, []),
    "hart_last_error_copy": (_hart_status, [c_char_p, c_size_t, POINTER(c_size_t)]),
    # Devices
    "hart_device_list_new": (_hart_status, [POINTER(_hart_device_list)]),
    "hart_device_list_free": (None, [_hart_device_list]),
    "hart_device_list_count": (c_size_t, [_hart_device_list]),
    "hart_device_list_get": (_hart_status, [_hart_device_list, c_size_t, POINTER(_hart_device_info)]),
    # Options
    "hart_options_new": (_hart_status, [POINTER(_hart_options)]),
    "hart_options_free": (None, [_hart_options]),
    "hart_options_set_device": (_hart_status, [_hart_options, c_char_p]),
    "hart_options_set_precision": (_hart_status, [_hart_options, c_char_p]),
    "hart_options_set_text_model": (_hart_status, [_hart_options, c_char_p]),
    "hart_options_set_weights": (_hart_status, [_hart_options, c_char_p]),
    "hart_options_set_memory_map": (_hart_status, [_hart_options, c_int32]),
    "hart_options_set_strict": (_hart_status, [_hart_options, c_int32]),
    "hart_options_set_threads": (_hart_status, [_hart_options, c_uint32]),
    "hart_options_set_max_memory": (_hart_status, [_hart_options, c_uint64]),
    # Files in memory
    "hart_files_new": (_hart_status, [POINTER(_hart_files)]),
    "hart_files_free": (None, [_hart_files]),
    "hart_files_add": (_hart_status, [_hart_files, c_char_p, _data, c_size_t]),
    "hart_files_add_reader": (_hart_status, [_hart_files, c_char_p, c_uint64, _hart_reader, c_void_p]),
    # Models
    "hart_model_open": (_hart_status, [c_char_p, _hart_options, c_uint32, POINTER(_hart_model)]),
    "hart_model_open_files": (_hart_status, [_hart_files, _hart_options, c_uint32, POINTER(_hart_model)]),
    "hart_model_share": (_hart_status, [_hart_model, POINTER(_hart_model)]),
    "hart_model_free": (None, [_hart_model]),
    "hart_model_describe": (_hart_status, [_hart_model, POINTER(_hart_model_info)]),
    "hart_model_warm_up": (_hart_status, [_hart_model]),
    "hart_model_memory": (_hart_status, [_hart_model, _hart_request, POINTER(c_uint64), POINTER(c_uint64)]),
    "hart_model_test_panic": (_hart_status, [_hart_model]),
    # Cancelling
    "hart_cancel_new": (_hart_status, [POINTER(_hart_cancel)]),
    "hart_cancel_free": (None, [_hart_cancel]),
    "hart_cancel_request": (_hart_status, [_hart_cancel]),
    "hart_cancel_reset": (_hart_status, [_hart_cancel]),
    "hart_cancel_is_requested": (c_int32, [_hart_cancel]),
    # Events
    "hart_event_preview": (_hart_status, [POINTER(_hart_event), c_uint32, POINTER(_hart_image)]),
    # Requests
    "hart_request_new": (_hart_status, [POINTER(_hart_request)]),
    "hart_request_free": (None, [_hart_request]),
    "hart_request_set_prompt": (_hart_status, [_hart_request, c_char_p]),
    "hart_request_add_prompt": (_hart_status, [_hart_request, c_char_p]),
    "hart_request_set_images_per_prompt": (_hart_status, [_hart_request, c_uint32]),
    "hart_request_set_seed": (_hart_status, [_hart_request, c_uint64]),
    "hart_request_set_guidance": (_hart_status, [_hart_request, c_double]),
    "hart_request_set_soft_sampling": (_hart_status, [_hart_request, c_int32]),
    "hart_request_set_top_k": (_hart_status, [_hart_request, c_uint32]),
    "hart_request_set_top_p": (_hart_status, [_hart_request, c_double]),
    "hart_request_set_steps": (_hart_status, [_hart_request, c_char_p]),
    "hart_request_set_system_prompt": (_hart_status, [_hart_request, c_char_p]),
    "hart_request_set_inpaint": (_hart_status, [_hart_request, _hart_image, _hart_image, c_uint32]),
    "hart_request_set_outpaint": (_hart_status, [_hart_request, _hart_image, c_uint32, c_uint32]),
    "hart_request_set_variation": (_hart_status, [_hart_request, _hart_image, c_uint32]),
    "hart_request_set_observer": (_hart_status, [_hart_request, _hart_observer, c_void_p]),
    "hart_request_set_cancel": (_hart_status, [_hart_request, _hart_cancel]),
    # Generating
    "hart_generate": (_hart_status, [_hart_model, _hart_request, POINTER(_hart_result)]),
    "hart_result_free": (None, [_hart_result]),
    "hart_result_count": (c_size_t, [_hart_result]),
    "hart_result_image": (_hart_status, [_hart_result, c_size_t, POINTER(_hart_image)]),
    "hart_result_timings": (_hart_status, [_hart_result, POINTER(_hart_timings)]),
    "hart_result_truncation_count": (c_size_t, [_hart_result]),
    "hart_result_truncation": (_hart_status, [_hart_result, c_size_t, POINTER(_hart_truncation)]),
    # Images
    "hart_image_new": (_hart_status, [c_uint32, c_uint32, c_size_t, _data, POINTER(_hart_image)]),
    "hart_image_open": (_hart_status, [c_char_p, POINTER(_hart_image)]),
    "hart_image_open_memory": (_hart_status, [_data, c_size_t, POINTER(_hart_image)]),
    "hart_image_free": (None, [_hart_image]),
    "hart_image_describe": (_hart_status, [_hart_image, POINTER(_hart_image_view)]),
    "hart_image_save": (_hart_status, [_hart_image, c_char_p]),
    "hart_image_png": (_hart_status, [_hart_image, POINTER(POINTER(c_uint8)), POINTER(c_size_t)]),
    "hart_image_grid": (_hart_status, [POINTER(c_void_p), c_size_t, c_size_t, POINTER(_hart_image)]),
    # Tokens
    "hart_model_tokenize": (_hart_status, [_hart_model, _hart_image, POINTER(_hart_tokens)]),
    "hart_tokens_free": (None, [_hart_tokens]),
    "hart_tokens_scales": (c_size_t, [_hart_tokens]),
    "hart_tokens_codes": (_hart_status, [_hart_tokens, c_size_t, POINTER(POINTER(c_uint32)), POINTER(c_size_t)]),
    "hart_model_reconstruct": (_hart_status, [_hart_model, _hart_tokens, c_int32, POINTER(_hart_image)]),
}

# ---- The C library: loading ------------------------------------------------------------------------------------------------------

#: The library's file name as it is built, and its name on the system with the number of the ABI in it.
_FILE_NAME, _SYSTEM_NAME = {
    "win32": ("hart.dll", "hart.dll"),
    "darwin": ("libhart.dylib", "libhart.0.dylib"),
}.get(sys.platform, ("libhart.so", "libhart.so.0"))


def _library_files(folder: Path) -> list[Path]:
    """Returns the files that may be the library of the hart.py in `folder`, best first."""
    # install.sh puts this file into share/hart/python of the prefix, other installers into lib/pythonX.Y/site-packages.
    installed = folder.parent.parent.parent / "lib"
    build = folder.parent.parent / "target"
    return [
        folder / _SYSTEM_NAME,
        folder / _FILE_NAME,
        build / "release" / _FILE_NAME,
        build / "dist" / _FILE_NAME,
        installed / _SYSTEM_NAME,
    ]


def _open_library() -> ctypes.CDLL:
    """Opens the first library that is found."""
    named = os.environ.get("HART_LIBRARY")
    files = [Path(named)] if named else _library_files(Path(__file__).resolve().parent)
    for file in files:
        if file.is_file():
            try:
                return ctypes.CDLL(str(file))
            except OSError as error:
                raise ImportError(f"hart: the library {file} can't be loaded: {error}") from error
    if named:
        raise ImportError(f"hart: HART_LIBRARY is {named}, where there is no file: name the file, such as .../{_FILE_NAME}")
    for name in (_SYSTEM_NAME, ctypes.util.find_library("hart")):
        if name:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
    searched = ", ".join(dict.fromkeys(str(file) for file in files))
    advice = "build it (cargo build --release -p hart-ffi) or name its file in the environment variable HART_LIBRARY"
    raise ImportError(f"hart: no library; looked for {searched}, and asked the system for {_SYSTEM_NAME}: {advice}")


def _load() -> ctypes.CDLL:
    """The library with every function declared."""
    lib = _open_library()
    try:
        lib.hart_abi_version.restype = c_uint32
        abi = lib.hart_abi_version()
    except AttributeError:
        raise ImportError(f"hart: {lib._name} is another library: it has no hart_abi_version") from None
    if abi < _ABI_VERSION:
        raise ImportError(f"hart: {lib._name} has the ABI {abi}, this file needs {_ABI_VERSION} or higher: install a newer library")
    for name, (restype, argtypes) in _FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = restype, argtypes
        if restype is _hart_status:
            function.errcheck = _check
    for handle in _Handle.__subclasses__():
        handle._free = getattr(lib, handle.__name__[1:] + "_free")
    return lib


def _check(status: _hart_status, _function: object, _arguments: object) -> None:
    """Raises what a call failed with. It runs on the thread of the call, right after it: the last error is still the call's."""
    if status.value != Status.OK:
        raise _error(status.value, _decoded(_lib.hart_last_error()))


_lib = _load()

# ---- Errors ----------------------------------------------------------------------------------------------------------------------


class Status(enum.IntEnum):
    """What a call came to, as the C library numbers it. The hundreds say whose fault it is: 1xx the call's, 2xx the files', 3xx the
    device's, 9xx hart's."""

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
    ERR_PICTURE = 205
    ERR_DEVICE = 300
    ERR_MEMORY = 301
    ERR_OVERFLOW = 302
    ERR_PANIC = 900
    ERR_POISONED = 901
    ERR_OTHER = 902


class Error(Exception):
    """What the library answers instead of a result. Its text says what was wrong, where, and what to do."""

    #: A `Status`, or the bare number if a newer library has one that this file doesn't know.
    status: int

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[1])


class Cancelled(Error):
    """The run was cancelled, which is no fault."""

    #: The pictures that were finished before.
    completed: tuple[Image, ...] = ()


class RequestError(Error, ValueError):
    """The call's fault (1xx): a value is out of range, the request can't be carried out, or the object is closed."""


class FileError(Error):
    """The files' fault (2xx): one can't be read or written, or is not what its name promises."""


class CheckpointError(FileError):
    """A model's files are missing or damaged, or don't fit together."""


class DeviceError(Error):
    """The device's fault (3xx): it is not there, has failed, or its numbers are no longer finite."""


class OutOfMemoryError(DeviceError, MemoryError):
    """More memory is needed than there is, or than the model's `max_memory` allows."""


class InternalError(Error):
    """A defect of the library (9xx). The program may go on, but a model that has failed so must be closed and opened again."""


_ERRORS: dict[int, type[Error]] = {
    Status.CANCELLED: Cancelled,
    Status.ERR_CHECKPOINT: CheckpointError,
    Status.ERR_CONFIG: CheckpointError,
    Status.ERR_WEIGHTS: CheckpointError,
    Status.ERR_NOT_FINITE: CheckpointError,
    Status.ERR_MEMORY: OutOfMemoryError,
}
_ERRORS_BY_HUNDRED: dict[int, type[Error]] = {1: RequestError, 2: FileError, 3: DeviceError, 9: InternalError}


def _error(number: int, message: str) -> Error:
    kind = _ERRORS.get(number) or _ERRORS_BY_HUNDRED.get(number // 100, Error)
    status = Status(number) if number in Status._value2member_map_ else number
    return kind(status, message or _decoded(_lib.hart_status_text(number)))


# ---- What goes in and out --------------------------------------------------------------------------------------------------------

_Buffer = Union[bytes, bytearray, memoryview]
_T = TypeVar("_T")


def _decoded(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _text(name: str, value: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be str, not {type(value).__name__}")
    if "\0" in value:
        raise RequestError(Status.ERR_ARGUMENT, f"{name} holds a NUL character, at {value.index(chr(0))}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(Status.ERR_UTF8, f"{name} is not UTF-8: {error.reason} at {error.start}") from None


def _path(name: str, value: str | os.PathLike[str]) -> bytes:
    return _text(name, os.fsdecode(value))


def _integer(name: str, value: SupportsIndex, bits: int) -> int:
    """ctypes would cut what doesn't fit."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be int, not {type(value).__name__}") from None
    if not 0 <= number < 1 << bits:
        raise RequestError(Status.ERR_ARGUMENT, f"{name} is {number}, expected 0 to {(1 << bits) - 1}")
    return number


def _float(name: str, value: SupportsFloat | SupportsIndex) -> float:
    if not isinstance(value, (SupportsFloat, SupportsIndex)):
        raise TypeError(f"{name} must be float, not {type(value).__name__}")
    return float(value)


def _instance(name: str, value: _T, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be hart.{kind.__name__}, not {type(value).__name__}")
    return value


def _bytes(name: str, value: _Buffer) -> bytes:
    try:
        return value if isinstance(value, bytes) else memoryview(value).tobytes()
    except TypeError:
        raise TypeError(f"{name} must be bytes or another buffer, not {type(value).__name__}") from None


def _borrowed(owner: _Handle, pointer: Any, count: int, element: Any) -> memoryview:
    """Looks at the library's memory without a copy. The view keeps the owner, so that the memory stays while anybody looks."""
    array = (element * count).from_address(ctypes.addressof(pointer.contents))
    array.owner = owner
    return memoryview(array).toreadonly()


# ---- Images ----------------------------------------------------------------------------------------------------------------------


class Image:
    """A picture of 8-bit RGB. It never changes, and it outlives the result or the model that it is from."""

    def __init__(self, width: int, height: int, pixels: _Buffer) -> None:
        """A picture from pixels of your own, which are copied: 3 bytes each, red, green, blue, row by row from the top left.

        Raises `RequestError` if their number isn't 3 * width * height, or 0.
        """
        width, height, data = _integer("width", width, 32), _integer("height", height, 32), _bytes("pixels", pixels)
        if len(data) != 3 * width * height:
            expected = f"expected {3 * width * height}, 3 a pixel"
            raise RequestError(Status.ERR_ARGUMENT, f"pixels has {len(data)} bytes for {width} x {height} pixels, {expected}")
        handle = _hart_image()
        _lib.hart_image_new(width, height, 0, data, byref(handle))
        self._take(handle)

    def _take(self, handle: _hart_image) -> None:
        self._handle, self._view = handle, _hart_image_view()
        _lib.hart_image_describe(handle, byref(self._view))

    @classmethod
    def _of(cls, handle: _hart_image) -> Image:
        image = cls.__new__(cls)
        image._take(handle)
        return image

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Image:
        """Reads a PNG file of any colour type; transparency is laid over white. Prompt, seed and settings are read too,
        if hart wrote them.

        Raises `FileError` if it can't be read or isn't a PNG picture.
        """
        handle = _hart_image()
        _lib.hart_image_open(_path("path", path), byref(handle))
        return cls._of(handle)

    @classmethod
    def from_png(cls, data: bytes) -> Image:
        """Reads a PNG file that is in memory, as `open` does."""
        handle, data = _hart_image(), bytes(data)
        _lib.hart_image_open_memory(data, len(data), byref(handle))
        return cls._of(handle)

    @classmethod
    def grid(cls, images: Iterable[Image], columns: int) -> Image:
        """Pictures of one size side by side, in rows of `columns`; places that are left over stay white.

        Raises `RequestError` if there is none or more than 1024, or their sizes differ.
        """
        handles = [_instance("image", image, Image)._handle for image in images]
        pointers, handle = (c_void_p * len(handles))(*[each.value for each in handles]), _hart_image()
        _lib.hart_image_grid(pointers, len(handles), _integer("columns", columns, 32), byref(handle))
        return cls._of(handle)

    @property
    def width(self) -> int:
        """Pixels in a row."""
        return int(self._view.width)

    @property
    def height(self) -> int:
        """Rows."""
        return int(self._view.height)

    @property
    def pixels(self) -> memoryview:
        """The pixels, 3 bytes each, red, green, blue, row by row from the top left: read-only, no copy, may outlive the image."""
        view, row = self._view, self._view.channels * self._view.width
        pixels = _borrowed(self._handle, view.pixels, view.size, c_uint8).cast("B")
        if view.stride == row:
            return pixels
        # No library does so yet, but the ABI allows for gaps between the rows.
        return memoryview(b"".join(pixels[y * view.stride :][:row] for y in range(view.height)))

    @property
    def prompt(self) -> str | None:
        """The prompt that it was made from; None if it wasn't made."""
        return None if self._view.prompt is None else str(_decoded(self._view.prompt))

    @property
    def seed(self) -> int | None:
        """The seed that it was made with; None if it wasn't made."""
        return None if self._view.prompt is None else int(self._view.seed)

    @property
    def settings(self) -> str | None:
        """The other settings in one line; None if it wasn't made."""
        return None if self._view.settings is None else str(_decoded(self._view.settings))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a PNG file, whole or not at all; prompt, seed and settings stand in its text chunks.

        Raises `FileError` if it can't be written.
        """
        _lib.hart_image_save(self._handle, _path("path", path))

    def png(self) -> bytes:
        """The bytes of the PNG file that `save` writes."""
        data, size = POINTER(c_uint8)(), c_size_t()
        _lib.hart_image_png(self._handle, byref(data), byref(size))
        return ctypes.string_at(data, size.value)

    def numpy(self) -> Any:
        """The pixels as a read-only NumPy array of uint8, height x width x 3, no copy. Raises `ImportError` without NumPy."""
        numpy = importlib.import_module("numpy")
        return numpy.frombuffer(self.pixels, numpy.uint8).reshape(self.height, self.width, 3)

    def pil(self) -> Any:
        """A copy as a `PIL.Image.Image`. Raises `ImportError` without Pillow."""
        pil = importlib.import_module("PIL.Image")
        return pil.frombytes("RGB", (self.width, self.height), self.pixels.tobytes())

    def _repr_png_(self) -> bytes:
        return self.png()

    def __repr__(self) -> str:
        made = "" if self.prompt is None else f", {self.prompt!r}, seed {self.seed}"
        return f"<hart.Image {self.width} x {self.height}{made}>"


# ---- Events ----------------------------------------------------------------------------------------------------------------------

#: The parts of a run. A newer library may have "other" ones.
Stage = Literal[
    "text",  # prompt to context
    "transformer",  # scale by scale
    "sampling",  # logits to codes, codes to the latent
    "residual",  # the residual diffusion of the last scale
    "decode",  # latent to pixels
    "other",
]
#: What has just been reached, `index` of `count`. A newer library may have "other" ones.
Step = Literal[
    "text_layer",  # layers of the text encoder are done
    "scale",  # scale `index` begins
    "block",  # transformer blocks of the scale are done
    "scale_done",  # scale `index` is done, and there is a preview
    "diffusion",  # steps of the residual diffusion are done
    "decoder",  # blocks of the decoder are done
    "images",  # pictures are finished; the preview is the last of them
    "other",
]

_STAGES: dict[int, Stage] = {0: "text", 1: "transformer", 2: "sampling", 3: "residual", 4: "decode"}
_STEPS: dict[int, Step] = {0: "text_layer", 1: "scale", 2: "block", 3: "scale_done", 4: "diffusion", 5: "decoder", 6: "images"}


@dataclasses.dataclass(frozen=True)
class Event:
    """One report from a run."""

    #: The part of the run.
    stage: Stage
    #: What has just been reached in it.
    step: Step
    #: Which one of the step's `count`, from 1.
    index: int
    #: How many there are.
    count: int
    #: The current scale, from 1; 0 before the first of a picture.
    scale: int
    #: How many scales there are; 0 before the first of a picture.
    scales: int
    #: Side of the current scale in latent positions; 0 before the first of a picture.
    side: int
    #: Estimated share of the whole run that is done, 0 to 1; never falls.
    fraction: float
    #: Whether there is a picture to see.
    has_preview: bool
    #: Seconds since the run began.
    elapsed: float
    #: The preview that `Model.stream` was asked for, where there is something to see.
    image: Image | None = None
    #: The C event; emptied when its callback is over.
    _source: list[Any] = dataclasses.field(default_factory=list, repr=False, compare=False)

    @classmethod
    def _of(cls, pointer: Any) -> Event:
        values = pointer.contents.values()
        values["stage"] = _STAGES.get(values["stage"], "other")
        values["step"] = _STEPS.get(values["step"], "other")
        values["has_preview"] = bool(values["has_preview"])
        return cls(**values, _source=[pointer])

    def preview(self, max_side: int = 0) -> Image:
        """The picture as it stands, decoded now: with sides of at most `max_side` pixels but at least those of one latent position
        (16 in published models), 0 for the full size. A small one costs little. It never changes the final picture.

        Raises `RequestError` if there is nothing to see, or if the event's callback is over: it works inside `on_event` only. For a
        stream's events say `Model.stream(..., previews=max_side)`, and look at `image`.
        """
        if not self._source:
            raise RequestError(Status.ERR_STATE, "the event's callback is over: call preview() in it, or use stream(previews=...)")
        handle = _hart_image()
        _lib.hart_event_preview(self._source[0], _integer("max_side", max_side, 32), byref(handle))
        return Image._of(handle)


class FromImage:
    """A picture to start from: to draw a part of it anew, around it, or a variation."""

    def __init__(self, set_it: Callable[[_hart_request], object]) -> None:
        self._set = set_it

    @classmethod
    def inpaint(cls, image: Image, mask: Image, kept_scales: int = 0) -> FromImage:
        """Draws anew where `mask` is white; both have the model's width and height. The latent of the rest stays exactly as the
        picture's own. The coarsest `kept_scales` scales are kept everywhere, so that what was there shines through."""
        picture, where = _instance("image", image, Image)._handle, _instance("mask", mask, Image)._handle
        kept = _integer("kept_scales", kept_scales, 32)
        return cls(lambda request: _lib.hart_request_set_inpaint(request, picture, where, kept))

    @classmethod
    def outpaint(cls, image: Image, left: int, top: int) -> FromImage:
        """Draws around a picture that is smaller than the model's, with its left top corner at (left, top) of the canvas."""
        picture, place = _instance("image", image, Image)._handle, (_integer("left", left, 32), _integer("top", top, 32))
        return cls(lambda request: _lib.hart_request_set_outpaint(request, picture, *place))

    @classmethod
    def vary(cls, image: Image, kept_scales: int) -> FromImage:
        """Keeps a picture's coarsest `kept_scales` scales, 1 to all but the last, and draws the finer ones anew."""
        picture, kept = _instance("image", image, Image)._handle, _integer("kept_scales", kept_scales, 32)
        return cls(lambda request: _lib.hart_request_set_variation(request, picture, kept))


class Cancel:
    """Stops the runs that it was given to. From any thread, and in signal handlers."""

    def __init__(self) -> None:
        self._handle = _hart_cancel()
        _lib.hart_cancel_new(byref(self._handle))

    def request(self) -> None:
        """Asks every run that holds it to stop, also one that begins later."""
        _lib.hart_cancel_request(self._handle)

    def reset(self) -> None:
        """Makes it usable again."""
        _lib.hart_cancel_reset(self._handle)

    @property
    def requested(self) -> bool:
        """Whether it was used."""
        return bool(_lib.hart_cancel_is_requested(self._handle))

    def __repr__(self) -> str:
        return f"<hart.Cancel {'requested' if self.requested else 'not requested'}>"


# ---- Results ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds that a run spent in each stage."""

    #: Prompt to context.
    text: float
    #: The transformer.
    transformer: float
    #: Logits to codes, codes to the latent.
    sampling: float
    #: The residual diffusion.
    residual: float
    #: Latent to pixels.
    decode: float
    #: The whole run.
    total: float


@dataclasses.dataclass(frozen=True)
class Truncation:
    """A prompt that was longer than the model reads."""

    #: Which prompt of the request, from 0; None is the system prompt.
    prompt: int | None
    #: Tokens of the whole text.
    tokens: int
    #: Tokens that were read.
    kept: int
    #: The text that was not read.
    cut: str


class Result(Sequence[Image]):
    """What a run made: a sequence of pictures, all of the first prompt, then all of the second, and so on."""

    #: The pictures.
    images: tuple[Image, ...]
    #: Where the time went.
    timings: Timings
    #: What was cut because the model reads no more.
    truncated: tuple[Truncation, ...]

    def __init__(self, images: Iterable[Image], timings: Timings, truncated: Iterable[Truncation]) -> None:
        self.images, self.timings, self.truncated = tuple(images), timings, tuple(truncated)

    @classmethod
    def _of(cls, handle: _hart_result) -> Result:
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

    def __repr__(self) -> str:
        return f"<hart.Result {list(self.images)}, {self.timings.total:.2f} s>"


def _images(handle: _hart_result) -> tuple[Image, ...]:
    images = []
    for index in range(_lib.hart_result_count(handle)):
        image = _hart_image()
        _lib.hart_result_image(handle, index, byref(image))
        images.append(Image._of(image))
    return tuple(images)


# ---- Runs ------------------------------------------------------------------------------------------------------------------------


#: What an `on_event` returns to cancel its run.
STOP: Any = type("STOP", (), {"__repr__": lambda self: "hart.STOP"})()


class _Run:
    """One call of hart_generate, with all that must live until it returns."""

    def __init__(self, model: _hart_model, request: _hart_request, on_event: Callable[[Event], object] | None) -> None:
        self._model: _hart_model | None = model
        self._request: _hart_request | None = request
        self._on_event = on_event
        self._raised: BaseException | None = None
        #: Set from any thread: the run ends at its next event.
        self.stopped = False
        self.over = threading.Event()

    def make(self) -> Result:
        """Makes the pictures, on this thread."""
        made, listener = _hart_result(), self._listen()
        next(listener)
        # A property's getter is C code that calls with the first of its two arguments: the listener has no use for user_data.
        observer = _hart_observer(property(listener.send).__get__)
        failure: BaseException | None = None
        _runs.add(self)
        try:
            _lib.hart_request_set_observer(self._request, observer, None)
            try:
                _lib.hart_generate(self._model, self._request, byref(made))
            except Error as error:
                failure = error
            finally:
                next(listener, None)
            if self._raised is not None:
                failure = self._raised
            if isinstance(failure, Cancelled):
                failure.completed = _images(made)
            if failure is not None:
                raise failure
            return Result._of(made)
        finally:
            _runs.discard(self)
            self.over.set()
            # Whoever keeps the error or a stream keeps this run, which must not keep the model; and no rings of error and frame.
            self._model = self._request = self._on_event = self._raised = failure = None

    def _listen(self) -> Generator[int, Any, None]:
        """Gets each event's pointer, gives C's answer; None ends it.

        Nothing may be raised out of a callback: ctypes would print it, and the run would go on. That includes what signal handlers
        raise, such as KeyboardInterrupt for Ctrl-C. They run as soon as there is Python code again, which is before the first line
        of a function that is called back: no `try` inside it would help. A generator goes on where it stood, inside its `try`.
        """
        answer = 0
        try:
            while True:
                pointer = yield answer
                if pointer is None:
                    return
                answer = int(self.stopped or self._cancels(pointer))
        except BaseException as error:
            self._raised = error
        yield 1

    def _cancels(self, pointer: Any) -> bool:
        """Tells the program, and asks whether to cancel."""
        if self._on_event is None:
            return False
        event = Event._of(pointer)
        try:
            return self._on_event(event) is STOP
        finally:
            event._source.clear()


#: The runs that are under way.
_runs: set[_Run] = set()


@atexit.register
def _end_runs() -> None:
    """Stops what daemon threads are still running: Python ends them when it ends, which must not happen below the library."""
    runs = list(_runs)
    for run in runs:
        run.stopped = True
    for run in runs:
        # One that is stuck in the program's own on_event will not come back.
        run.over.wait(10)


class Stream(Iterator[Event]):
    """The events of a run that goes on in a thread of its own: see `Model.stream`."""

    def __init__(self, model: _hart_model, request: _hart_request, previews: int | None) -> None:
        """For `Model.stream`."""
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        outcome: list[Result | BaseException] = []

        def tell(event: Event) -> None:
            if previews is not None and event.has_preview:
                event = dataclasses.replace(event, image=event.preview(previews))
            events.put(event)

        def work() -> None:
            try:
                outcome.append(run.make())
            except BaseException as error:
                # Its frames know the outcome: a ring.
                outcome.append(error.with_traceback(None))
            finally:
                events.put(None)

        run = _Run(model, request, tell)
        self._run, self._events, self._outcome = run, events, outcome
        # The thread knows nothing of the stream, so that a stream that nobody holds any more ends its run.
        self._thread = threading.Thread(target=work, name="hart-stream", daemon=True)
        # Here already, for a program that ends before the thread gets that far.
        _runs.add(run)
        try:
            self._thread.start()
        except BaseException:
            _runs.discard(run)
            run.over.set()
            raise

    def __next__(self) -> Event:
        """Waits for the next event. Raises the run's `Error` after the last one, unless the stream is closed."""
        event = self._events.get()
        if event is not None:
            return event
        # For whoever asks again.
        self._events.put(None)
        if not self._run.stopped:
            self.result()
        raise StopIteration

    def result(self) -> Result:
        """Waits for the end of the run, also where events were not taken, and gives what it made.

        Raises the run's `Error`; `Cancelled` if the stream was closed before the end.
        """
        self._thread.join()
        outcome = self._outcome[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def close(self) -> None:
        """Cancels the run, if it is still going on, and waits for its end. May be called again."""
        self._run.stopped = True
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # When Python ends, _end_runs was here before, and the thread may never end.
        if not (self._run.stopped or self._run.over.is_set()):
            self.close()


# ---- Models ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a model is."""

    #: Pixels in a row of its pictures.
    width: int
    #: Rows of its pictures.
    height: int
    #: Scales of a picture, coarse to fine.
    scales: int
    #: Tokens of a prompt that it reads.
    context_tokens: int
    #: Codes that an image token is drawn from.
    codes: int
    #: Parameters, text encoder and visual tokenizer included.
    parameters: int
    #: Where it computes, such as "cpu".
    device: str
    #: The numbers that it computes with, such as "f32".
    precision: str


class Memory(NamedTuple):
    """An estimate of memory, in bytes."""

    #: What the model holds.
    weights: int
    #: That, and what a run needs at its height. Every further run at the same time adds `peak - weights`.
    peak: int


class Tokens:
    """A picture as its model's tokens: codes scale by scale, and the residual that they lose. Keeps the weights in memory."""

    _handle: _hart_tokens

    def __init__(self) -> None:
        raise TypeError("tokens are made by Model.tokenize")

    @classmethod
    def _of(cls, handle: _hart_tokens) -> Tokens:
        tokens = cls.__new__(cls)
        tokens._handle = handle
        return tokens

    @property
    def scales(self) -> int:
        """How many scales there are, coarse to fine."""
        return int(_lib.hart_tokens_scales(self._handle))

    def codes(self, scale: int) -> memoryview:
        """The codes of a scale, from 0: side * side numbers of 32 bits, row by row; read-only, no copy. It may outlive the tokens.

        Raises `IndexError` if there is no such scale.
        """
        codes, count = POINTER(c_uint32)(), c_size_t()
        _lib.hart_tokens_codes(self._handle, range(self.scales)[scale], byref(codes), byref(count))
        return _borrowed(self._handle, codes, count.value, c_uint32).cast("B").cast("I")

    def __repr__(self) -> str:
        return f"<hart.Tokens, {self.scales} scales>"


class Model:
    """An opened model. Any number of threads may use it at once. `close` it, or use it as a context manager, to give back its
    memory at a certain time; else that goes with the last reference."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        precision: str = "auto",
        text_model: str | os.PathLike[str] | None = None,
        weights: str = "auto",
        memory_map: bool = True,
        strict: bool = True,
        threads: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        """Opens a model's folder, which holds `llm` and `tokenizer`.

        device      Where it computes: "auto", "cpu", or another name from `devices()`.
        precision   The numbers that it computes with: "auto" (f32 on the CPU, f16 on a GPU, or those that a converted model is
                    stored in), "f32", or faster and a little less exact "bf16" or "int8" on the CPU, "f16" on a GPU.
        text_model  Folder of the text model; None: `text` in the model's folder, or `Qwen2-VL-1.5B-Instruct` there or beside it.
        weights     Which weights: "auto" (EMA weights if there are some, else the plain ones), "ema" or "plain".
        memory_map  Whether safetensors files are mapped or read into memory. Mapped files must not change while the model is open.
        strict      Whether tensors that nothing uses are an error or overlooked.
        threads     How many threads of its own the model works on, 1 to 1024; None shares one set of threads, as many as there are
                    cores, with all models of the program. The picture is the same with any number.
        max_memory  Most bytes of memory that the model may be expected to take; None is no limit. What is estimated to need more,
                    opening it or a run, is refused before any work.

        Raises `CheckpointError` or `FileError` naming the file, `DeviceError`, `OutOfMemoryError`, and `RequestError` if an option
        won't do. Opening can't be interrupted.
        """
        options = _options(device, precision, text_model, weights, memory_map, strict, threads, max_memory)
        handle = _hart_model()
        _lib.hart_model_open(_path("path", path), options, _ABI_VERSION, byref(handle))
        self._handle: _hart_model | None = handle

    @classmethod
    def from_files(
        cls,
        files: Mapping[str, _Buffer],
        *,
        device: str = "auto",
        precision: str = "auto",
        text_model: str | os.PathLike[str] | None = None,
        weights: str = "auto",
        memory_map: bool = True,
        strict: bool = True,
        threads: int | None = None,
        max_memory: int | None = None,
    ) -> Model:
        """Opens a model whose files are in memory, each under the name that it would have below the model's folder, such as
        "llm/config.json". Their contents are copied. Options and errors as for a folder; there is nothing to map."""
        options = _options(device, precision, text_model, weights, memory_map, strict, threads, max_memory)
        contents, handle = _hart_files(), _hart_model()
        _lib.hart_files_new(byref(contents))
        for name, value in files.items():
            data = _bytes(name, value)
            _lib.hart_files_add(contents, _text("name", name), data, len(data))
        _lib.hart_model_open_files(contents, options, _ABI_VERSION, byref(handle))
        model = cls.__new__(cls)
        model._handle = handle
        return model

    def close(self) -> None:
        """Gives the model back. Runs that are under way in other threads go on to their end, and the memory goes with the last of
        them. May be called again."""
        self._handle = None

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._handle is None

    def __enter__(self) -> Model:
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
        """What the model is."""
        handle, info = self._open_handle(), _hart_model_info()
        _lib.hart_model_describe(handle, byref(info))
        return ModelInfo(**info.values())

    def memory(
        self,
        prompt: str | Iterable[str] = "a picture",
        *,
        images_per_prompt: int = 1,
        system_prompt: str | None = None,
    ) -> Memory:
        """Estimates the memory, in bytes, that making these pictures takes: `weights, peak = model.memory(...)`."""
        handle = self._open_handle()
        request = _request(prompt, images_per_prompt=images_per_prompt, system_prompt=system_prompt)
        weights, peak = c_uint64(), c_uint64()
        _lib.hart_model_memory(handle, request, byref(weights), byref(peak))
        return Memory(weights.value, peak.value)

    def warm_up(self) -> None:
        """Makes a picture that nobody sees, so that the first one that counts doesn't wait for a GPU's kernels to be compiled."""
        _lib.hart_model_warm_up(self._open_handle())

    def generate(
        self,
        prompt: str | Iterable[str],
        *,
        images_per_prompt: int = 1,
        seed: int = 0,
        guidance: float | None = None,
        soft_sampling: bool | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: str | int | None = None,
        system_prompt: str | None = None,
        from_image: FromImage | None = None,
        on_event: Callable[[Event], object] | None = None,
        cancel: Cancel | None = None,
    ) -> Result:
        """Makes pictures of one prompt or several, and returns when they are finished. None always means the model's own setting.

        images_per_prompt  Picture i of a prompt, from 0, has the seed `seed + i`. At most 1024 pictures in all.
        seed               0 to 2**64 - 1. The same seed makes the same picture.
        guidance           Strength of classifier-free guidance, -100 to 100, 0 is none; usually 4.5.
        soft_sampling      Whether a token is a mix of codes or one code; usually a mix.
        top_k              Codes kept in drawing a token, at least 1; usually 600 on the first seven scales and 300 after.
        top_p              Keeps the likeliest codes that together have this probability, 0 is off; usually off.
        steps              Steps of the residual diffusion, such as 8, "10,5" or "ddim25"; usually 8.
        system_prompt      Text that goes before the prompts; "" for none.
        from_image         A `FromImage`: a picture to start from.
        on_event           Called with every `Event`, on this thread, often: be quick. Returning `STOP` cancels, returning
                           anything else goes on. What it raises cancels too, and is raised here.
        cancel             Stops the run from another thread.

        Ctrl-C cancels: KeyboardInterrupt is raised within a step of the run.

        Raises `Cancelled` with the pictures that were finished, `RequestError` and `OutOfMemoryError` before any work, and
        `DeviceError`.
        """
        settings = (images_per_prompt, seed, guidance, soft_sampling, top_k, top_p, steps, system_prompt, from_image, cancel)
        request = _request(prompt, *settings)
        return _Run(self._open_handle(), request, on_event).make()

    def stream(
        self,
        prompt: str | Iterable[str],
        *,
        images_per_prompt: int = 1,
        seed: int = 0,
        guidance: float | None = None,
        soft_sampling: bool | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: str | int | None = None,
        system_prompt: str | None = None,
        from_image: FromImage | None = None,
        previews: int | None = None,
        cancel: Cancel | None = None,
    ) -> Stream:
        """As `generate`, in a thread of its own: an iterator of the run's events, as they happen.

            with model.stream("a parrot", previews=64) as events:
                for event in events:
                    show(event.fraction, event.image)
                picture = events.result()[0]

        `previews` asks for pictures on the way: with sides of at most so many pixels, 0 for the full size. Leaving the `with`,
        `close`, or dropping the stream cancels the run and waits for its end. Events that nobody takes wait in memory.

        Raises `RequestError` at once if the request won't do; the loop and `result` raise what the run fails with.
        """
        settings = (images_per_prompt, seed, guidance, soft_sampling, top_k, top_p, steps, system_prompt, from_image, cancel)
        request = _request(prompt, *settings)
        return Stream(self._open_handle(), request, None if previews is None else _integer("previews", previews, 32))

    def tokenize(self, image: Image) -> Tokens:
        """A picture to tokens. Raises `RequestError` if it hasn't the model's width and height."""
        handle, tokens = self._open_handle(), _hart_tokens()
        _lib.hart_model_tokenize(handle, _instance("image", image, Image)._handle, byref(tokens))
        return Tokens._of(tokens)

    def reconstruct(self, tokens: Tokens, with_residual: bool = True) -> Image:
        """Tokens to a picture: with the residual, which is all that the autoencoder can do, or from the codes alone.

        Raises `RequestError` if the tokens are another model's.
        """
        handle, image = self._open_handle(), _hart_image()
        _lib.hart_model_reconstruct(handle, _instance("tokens", tokens, Tokens)._handle, bool(with_residual), byref(image))
        return Image._of(image)

    def __repr__(self) -> str:
        if self.closed:
            return "<hart.Model, closed>"
        info = self.info
        size = f"{info.width} x {info.height}, {info.parameters / 1e6:.1f} M parameters"
        return f"<hart.Model {size}, {info.device} {info.precision}>"


def _options(
    device: str,
    precision: str,
    text_model: str | os.PathLike[str] | None,
    weights: str,
    memory_map: bool,
    strict: bool,
    threads: int | None,
    max_memory: int | None,
) -> _hart_options:
    options = _hart_options()
    _lib.hart_options_new(byref(options))
    _lib.hart_options_set_device(options, _text("device", device))
    _lib.hart_options_set_precision(options, _text("precision", precision))
    if text_model is not None:
        _lib.hart_options_set_text_model(options, _path("text_model", text_model))
    _lib.hart_options_set_weights(options, _text("weights", weights))
    _lib.hart_options_set_memory_map(options, bool(memory_map))
    _lib.hart_options_set_strict(options, bool(strict))
    if threads is not None:
        _lib.hart_options_set_threads(options, _integer("threads", threads, 32))
    if max_memory is not None:
        _lib.hart_options_set_max_memory(options, _integer("max_memory", max_memory, 64))
    return options


def _request(
    prompt: str | Iterable[str],
    images_per_prompt: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    soft_sampling: bool | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    steps: str | int | None = None,
    system_prompt: str | None = None,
    from_image: FromImage | None = None,
    cancel: Cancel | None = None,
) -> _hart_request:
    request = _hart_request()
    _lib.hart_request_new(byref(request))
    if isinstance(prompt, (str, bytes)) or not isinstance(prompt, Iterable):
        prompt = [prompt]
    for each in prompt:
        _lib.hart_request_add_prompt(request, _text("prompt", each))
    _lib.hart_request_set_images_per_prompt(request, _integer("images_per_prompt", images_per_prompt, 32))
    _lib.hart_request_set_seed(request, _integer("seed", seed, 64))
    if guidance is not None:
        _lib.hart_request_set_guidance(request, _float("guidance", guidance))
    if soft_sampling is not None:
        _lib.hart_request_set_soft_sampling(request, bool(soft_sampling))
    if top_k is not None:
        _lib.hart_request_set_top_k(request, _integer("top_k", top_k, 32))
    if top_p is not None:
        _lib.hart_request_set_top_p(request, _float("top_p", top_p))
    if steps is not None:
        _lib.hart_request_set_steps(request, _text("steps", steps if isinstance(steps, str) else str(_integer("steps", steps, 32))))
    if system_prompt is not None:
        _lib.hart_request_set_system_prompt(request, _text("system_prompt", system_prompt))
    if from_image is not None:
        _instance("from_image", from_image, FromImage)._set(request)
    if cancel is not None:
        _lib.hart_request_set_cancel(request, _instance("cancel", cancel, Cancel)._handle)
    return request


# ---- The library -----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that a model can be opened on."""

    #: Its name for `Model(..., device=name)`, such as "cpu".
    name: str
    #: What it is, for people.
    description: str


def devices() -> list[Device]:
    """The devices that are compiled in and there, the best first."""
    handle, found = _hart_device_list(), []
    _lib.hart_device_list_new(byref(handle))
    for index in range(_lib.hart_device_list_count(handle)):
        info = _hart_device_info()
        _lib.hart_device_list_get(handle, index, byref(info))
        found.append(Device(**info.values()))
    return found


def version() -> str:
    """Version of the library, such as "0.1.0"."""
    return str(_decoded(_lib.hart_version_text()))


def build_info() -> dict[str, Any]:
    """What is built into the library: version, abi, backends (such as "cpu", "cuda"), target, commit (or "unknown")."""
    return dict(json.loads(_lib.hart_build_info()))
