"""Tests of hart.py: `python -m unittest test_hart`. HART_MODEL may name a small model to use instead of the shipped one."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import copy
import ctypes
import dataclasses
import enum
import fractions
import functools
import gc
import importlib
import io
import itertools
import json
import logging
import math
import mmap
import multiprocessing
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types
import unittest
import unittest.mock
import warnings
from pathlib import Path
from typing import Any, Callable

import hart

HERE = Path(__file__).resolve().parent
MODEL = Path(os.environ.get("HART_MODEL", HERE.parent / "models" / "hart-emoji")).resolve()
HEADER = HERE.parent.parent / "include" / "hart.h"
PROMPT = "a red heart on a yellow background"
#: Time limit in seconds for a cancelled run to end. The steps of the small model take milliseconds.
TIME_LIMIT = 5
#: The ctypes counterparts of C types, and of pointers that have a separate type in ctypes.
TYPES = {
    "uint8_t": ctypes.c_uint8,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "int32_t": ctypes.c_int32,
    "size_t": ctypes.c_size_t,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "hart_image_format": ctypes.c_int32,
    "hart_keep": ctypes.c_int32,
    "hart_log_level": ctypes.c_int32,
    "hart_pixel_format": ctypes.c_int32,
    "hart_stage": ctypes.c_int32,
    "hart_step": ctypes.c_int32,
    "void": None,
}
POINTERS = {"char": ctypes.c_char_p, "void": ctypes.c_void_p}


def pixels(image: hart.Image) -> bytes:
    return bytes(image.pixels)


def model_files() -> dict[str, bytes]:
    names = [path for part in ("llm", "tokenizer", "text") for path in sorted((MODEL / part).iterdir())]
    return {path.relative_to(MODEL).as_posix(): path.read_bytes() for path in names}


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process."""
    environment = dict(os.environ, PYTHONPATH=str(HERE), PYTHONDONTWRITEBYTECODE="1", HART_MODEL=str(MODEL))
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


class Alarm(Exception):
    """Raised by a signal handler."""


class Case(unittest.TestCase):
    model: hart.Model

    @classmethod
    def setUpClass(cls) -> None:
        cls.model = hart.Model(MODEL)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.model.close()

    @contextlib.contextmanager
    def raising_signal_handler(self) -> Any:
        """SIGALRM raises Alarm."""

        def handler(*_: object) -> None:
            raise Alarm

        before = signal.signal(signal.SIGALRM, handler)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    @contextlib.contextmanager
    def within_time_limit(self) -> Any:
        began = time.monotonic()
        yield
        self.assertLess(time.monotonic() - began, TIME_LIMIT)


@unittest.skipUnless(HEADER.is_file(), "outside the repository")
class Header(unittest.TestCase):
    """The declarations of hart.py agree with hart.h."""

    text: str
    handles: dict[str, Any]
    structs: dict[str, str]
    functions: dict[str, tuple[str, str]]
    constants: dict[str, int]

    @classmethod
    def setUpClass(cls) -> None:
        text = HEADER.read_text(encoding="utf-8")
        cls.text = re.sub(r"//.*|/\*.*?\*/", "", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))
        handles = re.findall(r"typedef struct (hart_\w+) \1;", cls.text)
        cls.handles = {name: getattr(hart, "_" + name) for name in handles}
        structs = re.findall(r"typedef struct \{(.*?)\} (hart_\w+);", cls.text, re.DOTALL)
        cls.structs = {name: body for body, name in structs}
        functions = re.findall(r"^(?:HART_API\s+)(.*?)\b(hart_\w+)\(([^()]*)\);", cls.text, re.DOTALL | re.MULTILINE)
        cls.functions = {name: (result, parameters) for result, name, parameters in functions}
        cls.constants = {name: int(number) for name, number in re.findall(r"\b(HART_\w+)(?: =)? (\d+)", cls.text)}

    def c_type(self, text: str, result: bool = False) -> Any:
        """Return the ctypes type that hart.py uses for a C type."""
        text = text.replace("const", "")
        name, depth = text.replace("*", " ").split()[0], text.count("*")
        if name in self.handles:
            # A handle is already a pointer.
            kind, depth = self.handles[name], depth - 1
        elif name == "hart_status":
            kind = hart._hart_status if result else ctypes.c_int32
        elif name in self.structs or name in ("hart_observer", "hart_reader", "hart_destroy", "hart_logger"):
            kind = getattr(hart, "_" + name)
        elif depth and name in POINTERS:
            kind, depth = POINTERS[name], depth - 1
        else:
            kind = TYPES[name]
        for _ in range(depth):
            kind = ctypes.POINTER(kind)
        return kind

    def test_every_function_is_declared(self) -> None:
        called = set(re.findall(r"\b(hart_\w+)\(", self.text))
        self.assertEqual(called, set(hart._FUNCTIONS))
        self.assertEqual(list(self.functions), list(hart._FUNCTIONS), "in the header's order")

    def test_every_function_has_its_types(self) -> None:
        # Two exceptions: input bytes are c_char_p, which accepts Python's bytes; an array of handles is one of void pointers.
        for name, (result, parameters) in self.functions.items():
            restype, argtypes = hart._FUNCTIONS[name]
            self.assertEqual(restype, self.c_type(result, True), name)
            declared = [] if parameters.strip() == "void" else [re.sub(r"\w+$", "", part.strip()) for part in parameters.split(",")]
            self.assertEqual(len(declared), len(argtypes), name)
            for text, argtype in zip(declared, argtypes):
                if name == "hart_image_grid" and text.count("*") == 2 and "const hart_image" in text:
                    self.assertIs(argtype, ctypes.POINTER(ctypes.c_void_p))
                elif " ".join(text.split()) == "const uint8_t *":
                    self.assertIs(argtype, ctypes.c_char_p)
                else:
                    self.assertIs(argtype, self.c_type(text), f"{name}: {text}")

    def test_structs_have_the_headers_fields(self) -> None:
        for name, body in self.structs.items():
            kind = getattr(hart, "_" + name)
            fields = re.findall(r"([\w\s]+[\s*]+)(\w+);", body)
            self.assertEqual([(field, self.c_type(text)) for text, field in fields], list(kind._fields_), name)
            self.assertEqual(kind._fields_[0][0], "struct_size")

    def test_struct_sizes(self) -> None:
        if ctypes.sizeof(ctypes.c_void_p) != 8:
            self.skipTest("the sizes apply to 64-bit systems")
        sizes = {
            "hart_device_info": 24,
            "hart_model_info": 56,
            "hart_event": 56,
            "hart_timings": 56,
            "hart_truncation": 24,
            "hart_image_view": 72,
        }
        self.assertEqual(sizes, {name: ctypes.sizeof(getattr(hart, "_" + name)) for name in self.structs})
        for name, size in sizes.items():
            self.assertEqual(getattr(hart, "_" + name)().struct_size, size)

    def test_constants(self) -> None:
        constants = self.constants
        statuses = {name[5:]: number for name, number in constants.items() if re.match("HART_(OK|CANCELLED|ERR_)", name)}
        self.assertEqual(statuses, {status.name: status.value for status in hart.Status})
        for prefix, numbers, kind in (("HART_STEP_", hart._STEPS, hart.Step), ("HART_STAGE_", hart._STAGES, hart.Stage)):
            names = {number: name[len(prefix) :] for name, number in constants.items() if name.startswith(prefix)}
            numbered: dict[int, Any] = {**numbers, 99: kind.OTHER}
            self.assertEqual(names, {number: member.name for number, member in numbered.items()})
            self.assertEqual(list(kind), list(numbered.values()))
            self.assertEqual([member.value for member in kind], [name.lower() for name in names.values()])
        formats = {name[12:].lower(): number for name, number in constants.items() if name.startswith("HART_FORMAT_")}
        self.assertEqual(formats, hart._FILE_FORMATS)
        formats = {name[11:].lower(): number for name, number in constants.items() if name.startswith("HART_PIXEL_")}
        self.assertEqual(formats, {name: number for name, (number, _) in hart._PIXEL_FORMATS.items()})
        levels = {number: name[9:] for name, number in constants.items() if name.startswith("HART_LOG_")}
        self.assertEqual(levels, {number: logging.getLevelName(hart._LOG_LEVELS[number]) for number in levels})
        self.assertEqual(constants["HART_ABI_VERSION"], hart._ABI_VERSION)

    def test_the_version_is_the_librarys(self) -> None:
        self.assertEqual(hart.__version__, hart.version())
        self.assertEqual(hart.build_info()["version"], hart.version())
        self.assertEqual(hart.build_info()["abi"], hart._lib.hart_abi_version())

    def test_devices(self) -> None:
        backends = hart.build_info()["backends"]
        self.assertEqual(backends[0], "cpu")
        for device in hart.devices():
            self.assertIn(device.name.split(":")[0], backends)


class Generating(Case):
    def test_a_seed_determines_the_image(self) -> None:
        first = self.model.generate(PROMPT, seed=7)
        self.assertEqual((len(first), first[0].prompt, first[0].seed), (1, PROMPT, 7))
        self.assertIn("guidance", first[0].settings or "")
        self.assertEqual(pixels(first[0]), pixels(self.model.generate(PROMPT, seed=7)[0]))
        self.assertNotEqual(pixels(first[0]), pixels(self.model.generate(PROMPT, seed=8)[0]))
        self.assertGreater(first.timings.total, first.timings.transformer)
        self.assertEqual(first.truncated, ())

    def test_images_are_ordered_by_prompt_and_seed(self) -> None:
        result = self.model.generate(["a parrot", "a guitar"], images_per_prompt=2, seed=2**64 - 1)
        expected = [("a parrot", 2**64 - 1), ("a parrot", 0), ("a guitar", 2**64 - 1), ("a guitar", 0)]
        self.assertEqual([(image.prompt, image.seed) for image in result], expected)
        self.assertEqual(result[1:3], result.images[1:3])
        self.assertEqual(pixels(result[-1]), pixels(self.model.generate("a guitar")[0]))

    def test_settings_have_an_effect(self) -> None:
        settings: dict[str, Any] = {"guidance": 2, "smoothing": True, "top_k": 5, "top_p": 0.5, "system_prompt": "draw"}
        image = self.model.generate(PROMPT, **settings, steps="4")[0]
        for part in ("guidance 2", "smoothing true", "top-k 5", "top-p 0.5", "steps 4"):
            self.assertIn(part, image.settings or "")
        self.assertEqual(pixels(image), pixels(self.model.generate(PROMPT, **settings, steps=4)[0]))
        self.assertNotEqual(pixels(image), pixels(self.model.generate(PROMPT)[0]))

    def test_marks_and_again(self) -> None:
        image = self.model.generate(PROMPT, seed=3, guidance=2.5, top_k=50, steps="10,5", system_prompt="draw ")[0]
        formats: tuple[hart.FileFormat, ...] = ("png", "webp", "jpeg")
        for format in formats:
            read = hart.Image.decode(image.encode(format))
            again = self.model.again(read)[0]
            self.assertEqual((pixels(again), again.settings, again.seed), (pixels(image), image.settings, 3), format)
            self.assertEqual(read.model_fingerprint, self.model.info.fingerprint)
        # Of the three formats, WebP has no checksums.
        other = hart.Image.decode(image.encode("webp").replace(self.model.info.fingerprint.encode(), b"0" * 64))
        with self.assertWarnsRegex(UserWarning, "another model"):
            self.model.again(other)
        self.assertIsNone(hart.Image(1, 1, bytes(3)).model_fingerprint)
        for marks, present, absent in (
            ("settings", b'"top_k":50', b"trainedAlgorithmicMedia"),
            ("source", b"trainedAlgorithmicMedia", PROMPT.encode()),
            ("none", b"IDAT", b"tEXt"),
        ):
            marked = self.model.generate(PROMPT, marks=marks)[0] if marks != "settings" else None
            marked = marked or self.model.generate(PROMPT, top_k=50, marks=marks)[0]
            self.assertIn(present, marked.png())
            self.assertNotIn(absent, marked.png())
            if marks != "settings":
                with self.assertRaisesRegex(hart.RequestError, "has no settings of hart"):
                    self.model.again(hart.Image.decode(marked.png()))
        with self.assertRaisesRegex(hart.RequestError, "expected all, none, or names"):
            self.model.generate(PROMPT, marks="promt")

    def test_pruned_scales(self) -> None:
        image = self.model.generate(PROMPT, prune=(0.5, 0.75))[0]
        self.assertIn("prune 0.5,0.75", image.settings or "")
        self.assertEqual(pixels(image), pixels(self.model.generate(PROMPT, prune="0.5,0.75")[0]))
        self.assertNotEqual(pixels(image), pixels(self.model.generate(PROMPT)[0]))
        with self.model.stream(PROMPT, prune=[0.5, 0.75]) as events:
            self.assertEqual(pixels(events.result()[0]), pixels(image))

    def test_a_prompt_that_is_too_long_is_reported(self) -> None:
        (cut,) = self.model.generate(["a parrot", "a parrot " * self.model.info.context_tokens]).truncated
        self.assertEqual((cut.prompt, cut.kept <= self.model.info.context_tokens < cut.tokens), (1, True))
        self.assertIn("parrot", cut.cut)

    def test_info_and_memory(self) -> None:
        info, memory = self.model.info, self.model.memory()
        self.assertEqual((info.device, info.precision), ("cpu", "f32"))
        self.assertGreater(memory.weights, info.parameters)
        self.assertGreater(memory.peak, memory.weights)
        more = self.model.memory(["a", "b"], images_per_prompt=8).peak - memory.peak
        self.assertGreaterEqual(more, 15 * 3 * info.width * info.height)
        with hart.Model(MODEL, parallel=1) as model:
            more = model.memory(["a", "b"], images_per_prompt=8).peak - model.memory().peak
            self.assertEqual(more, 15 * 3 * info.width * info.height)
        with hart.Model(MODEL, threads=2, parallel=2) as model:
            one, two = model.memory(), model.memory(images_per_prompt=2)
            self.assertGreater(two.peak - two.weights, 1.9 * (one.peak - one.weights))

    def test_files_in_memory_are_the_same_model(self) -> None:
        files: dict[str, Any] = model_files()
        # Any buffer is accepted.
        files["llm/config.json"] = bytearray(files["llm/config.json"])
        files["text/config.json"] = memoryview(files["text/config.json"])
        with hart.Model.from_files(files) as model:
            del files
            self.assertEqual(model.info, self.model.info)
            self.assertEqual(pixels(model.generate(PROMPT)[0]), pixels(self.model.generate(PROMPT)[0]))
        with self.assertRaisesRegex(TypeError, "llm/config.json must be bytes"):
            hart.Model.from_files({"llm/config.json": "{}"})  # type: ignore[arg-type]
        empty: list[Any] = [{}, [], iter([])]
        for files in empty:
            with self.assertRaisesRegex(hart.RequestError, "files is empty"):
                hart.Model.from_files(files)
        wrong: list[Any] = [["llm/config.json"], [3], 3, None, "llm"]
        for files in wrong:
            with self.assertRaisesRegex(TypeError, "files must be a mapping"):
                hart.Model.from_files(files)
        with self.assertRaisesRegex(hart.CheckpointError, "no such file"):
            hart.Model.from_files({"llm/x": b""})

    def test_threads_share_a_model(self) -> None:
        alone = pixels(self.model.generate(PROMPT, seed=5)[0])
        images: list[bytes] = []
        threads = [threading.Thread(target=lambda: images.append(pixels(self.model.generate(PROMPT, seed=5)[0]))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(images, [alone] * 8)

    def test_options_do_not_change_the_image(self) -> None:
        events: list[hart.Event] = []
        with hart.Model(MODEL, threads=2, memory_map=False, text_model=MODEL / "text", weights="plain", strict=True) as model:
            image = model.generate(PROMPT, on_event=events.append)[0]
        self.assertEqual(pixels(image), pixels(self.model.generate(PROMPT)[0]))
        self.assertEqual(events[-1].step, "images")


class Opening(Case):
    def test_progress(self) -> None:
        openers: list[Callable[..., hart.Model]] = [functools.partial(hart.Model, MODEL)]
        openers.append(functools.partial(hart.Model.from_files, model_files()))
        for open_model in openers:
            events: list[hart.Event] = []
            with open_model(progress=events.append) as model:
                self.assertFalse(model.closed)
            self.assertEqual({event.step for event in events}, {hart.Step.TENSOR})
            self.assertEqual({event.stage for event in events}, set(hart.Stage) - {hart.Stage.SAMPLING, hart.Stage.OTHER})
            self.assertEqual([(event.index, event.count) for event in events], [(i + 1, len(events)) for i in range(len(events))])
            fractions = [event.fraction for event in events]
            self.assertEqual((fractions, fractions[-1]), (sorted(fractions), 1.0))
            self.assertFalse(any(event.has_preview for event in events))

    def test_cancelling(self) -> None:
        cancel = hart.Cancel()
        indices: list[int] = []

        def request(event: hart.Event) -> None:
            indices.append(event.index)
            cancel.request()

        def fail(event: hart.Event) -> None:
            raise LookupError(event.step)

        calls: list[Callable[[], object]] = [
            lambda: hart.Model(MODEL, progress=request, cancel=cancel),
            lambda: hart.Model(MODEL, cancel=cancel),
            lambda: hart.Model.from_files(model_files(), cancel=cancel),
            lambda: hart.Model(MODEL, progress=lambda event: hart.STOP),
        ]
        for call in calls:
            with self.assertRaises(hart.Cancelled) as caught:
                call()
            self.assertEqual((caught.exception.status, caught.exception.completed), (hart.Status.CANCELLED, ()))
        self.assertLess(len(indices), 100)
        with self.assertRaisesRegex(LookupError, "tensor"):
            hart.Model(MODEL, progress=fail)
        # The token is not that of the model's runs.
        cancel.reset()
        with hart.Model(MODEL, cancel=cancel) as model:
            cancel.request()
            self.assertEqual(len(model.generate(PROMPT)), 1)

        async def coroutine(event: hart.Event) -> None:
            pass

        wrong: list[tuple[dict[str, Any], str]] = [
            ({"progress": coroutine}, "progress must be a plain function, not a coroutine function"),
            ({"progress": lambda event: coroutine(event)}, "progress must be a plain function, but it returned an awaitable"),
            ({"progress": 3}, "progress must be callable, not int"),
            ({"cancel": 3}, "cancel must be hart.Cancel, not int"),
        ]
        for options, message in wrong:
            with self.assertRaisesRegex(TypeError, message):
                hart.Model(MODEL, **options)

    @unittest.skipUnless(hasattr(signal, "raise_signal") and os.name == "posix", "needs POSIX signals")
    def test_a_signal_handler_that_raises(self) -> None:
        with self.raising_signal_handler():
            with self.assertRaises(Alarm):
                hart.Model(MODEL, progress=lambda event: signal.raise_signal(signal.SIGALRM) if event.index == 2 else None)
            with self.within_time_limit(), self.assertRaises(Alarm):
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                while True:
                    hart.Model(MODEL)

    def test_files_in_memory_are_not_copied(self) -> None:
        files: dict[str, Any] = model_files()
        expected = self.model.generate(PROMPT)[0]
        largest = max(files, key=lambda name: len(files[name]))
        kept, references = len(hart._kept), sys.getrefcount(files[largest])
        model = hart.Model.from_files(files)
        self.assertEqual(sys.getrefcount(files[largest]), references + 1)
        self.assertEqual(model.generate(PROMPT)[0], expected)
        # Everything that uses the weights keeps the memory.
        tokens = model.tokenize(expected)
        model.close()
        del model
        self.assertEqual(sys.getrefcount(files[largest]), references + 1)
        del tokens
        self.assertEqual((sys.getrefcount(files[largest]), len(hart._kept)), (references, kept))
        # Mapped files can't be closed while the model is open.
        with contextlib.ExitStack() as stack:
            mapped: dict[str, Any] = {}
            for name in files:
                file = stack.enter_context((MODEL / name).open("rb"))
                mapped[name] = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            with hart.Model.from_files(mapped) as model:
                self.assertEqual(model.generate(PROMPT)[0], expected)
                with self.assertRaises(BufferError):
                    mapped[largest].close()
            del model
        # Memory with gaps is copied.
        gaps = bytearray(2 * len(files["llm/config.json"]))
        gaps[::2] = files["llm/config.json"]
        files["llm/config.json"] = memoryview(gaps)[::2]
        files["llm/empty"] = bytearray()
        with hart.Model.from_files(files) as model:
            self.assertEqual(model.generate(PROMPT)[0], expected)
        # Failures release the memory too.
        for wrong in ({"llm/config.json": b"{}"}, {"../x": b""}, {"": b""}):
            with self.assertRaises(hart.Error):
                hart.Model.from_files(wrong)
        del model
        gc.collect()
        self.assertEqual(len(hart._kept), kept)

    def test_the_log(self) -> None:
        kept, reported = len(hart._kept), []

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                with contextlib.suppress(hart.RequestError):
                    hart.log_to(None)
                reported.append(record.getMessage())

        def panic() -> None:
            with hart.Model(MODEL) as model, self.assertRaises(hart.InternalError):
                hart._lib.hart_model_test_panic(model._handle)

        try:
            with self.assertLogs("hart", logging.ERROR) as logs:
                hart.log_to()
                panic()
            self.assertEqual(len(logs.records), 1)
            self.assertRegex(logs.records[0].getMessage(), "^panic at .*a test panic")
            # A handler that changes the log, which is refused.
            other = logging.Logger("other")
            other.addHandler(Handler())
            hart.log_to(other)
            panic()
            self.assertEqual(len(reported), 1)
        finally:
            hart.log_to(None)
        panic()
        self.assertEqual((len(reported), len(hart._kept)), (1, kept))
        with self.assertRaisesRegex(TypeError, "logger must be a name, a logging.Logger or None, not int"):
            hart.log_to(3)  # type: ignore[arg-type]

    def test_nothing_is_printed(self) -> None:
        code = """
            import hart, os, sys
            model = hart.Model(os.environ["HART_MODEL"])
            if sys.argv[1] == "log":
                import logging
                logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
                hart.log_to()
            try:
                hart._lib.hart_model_test_panic(model._handle)
            except hart.InternalError:
                print("done")
        """
        for way, expected in (("", r"\A\Z"), ("log", r"\AERROR hart panic at .*a test panic")):
            process = python(code, way)
            self.assertEqual((process.returncode, process.stdout), (0, "done\n"), process.stderr)
            self.assertRegex(process.stderr, expected)


class Events(Case):
    def test_images_at_once(self) -> None:
        with hart.Model(MODEL, threads=1) as one, hart.Model(MODEL, threads=2, parallel=2) as two:
            self.assertEqual((one.parallel, two.parallel), (1, 2))
            events: list[hart.Event] = []
            expected = [pixels(image) for image in one.generate([PROMPT, "a crown"], images_per_prompt=2)]
            result = two.generate([PROMPT, "a crown"], images_per_prompt=2, on_event=events.append)
            self.assertEqual([pixels(image) for image in result], expected)
            fractions = [event.fraction for event in events]
            self.assertEqual((fractions, fractions[-1]), (sorted(fractions), 1.0))
            finished = [(event.image_index, event.index) for event in events if event.step == "images"]
            self.assertEqual(finished, [(image, image + 1) for image in range(4)])
            scales = two.info.scales
            for image in range(4):
                done = [event.index for event in events if event.image_index == image and event.step == "scale_done"]
                self.assertEqual(done, list(range(1, scales + 1)))
            # Calls from several threads run at once.
            with concurrent.futures.ThreadPoolExecutor(3) as executor:
                images = executor.map(lambda seed: two.generate(PROMPT, seed=seed)[0], [0, 1] * 3)
                self.assertEqual([pixels(image) for image in images], expected[:2] * 3)
        for parallel in (0, 3):
            with self.assertRaisesRegex(hart.RequestError, "parallel.* expected 1 to"):
                hart.Model(MODEL, threads=2, parallel=parallel)

    def test_order_and_fraction(self) -> None:
        events: list[hart.Event] = []
        with hart.Model(MODEL, parallel=1) as model:
            model.generate(PROMPT, images_per_prompt=2, on_event=events.append)
        fractions = [event.fraction for event in events]
        self.assertEqual(fractions, sorted(fractions))
        self.assertEqual((events[-1].fraction, events[-1].step, events[-1].index), (1.0, "images", 2))
        self.assertEqual((events[0].stage, events[0].step), ("text", "text_layer"))
        scales = self.model.info.scales
        done = [(event.index, event.count) for event in events if event.step == "scale_done"]
        self.assertEqual(done, [(k, scales) for k in range(1, scales + 1)] * 2)
        self.assertEqual({event.step for event in events if event.has_preview}, {"scale_done", "images"})
        self.assertTrue(all(a.elapsed <= b.elapsed for a, b in zip(events, events[1:])))
        with self.assertRaises(dataclasses.FrozenInstanceError):
            events[0].index = 3  # type: ignore[misc]

    def test_stages_and_steps_are_names_too(self) -> None:
        event = next(iter(self.model.stream(PROMPT)))
        self.assertIs(event.stage, hart.Stage.TEXT)
        self.assertIs(event.step, hart.Step("text_layer"))
        self.assertEqual((event.step, f"{event.step:>11}", str(event.step)), ("text_layer", " text_layer", "text_layer"))
        self.assertEqual(json.dumps([event.stage]), '["text"]')
        self.assertEqual({"text": 1}[event.stage], 1)

    def test_previews_change_nothing(self) -> None:
        previews: list[hart.Image] = []

        def on_event(event: hart.Event) -> None:
            if event.has_preview:
                previews.extend([event.preview(), event.preview(16)])

        image = self.model.generate(PROMPT, on_event=on_event)[0]
        self.assertEqual(pixels(image), pixels(self.model.generate(PROMPT)[0]))
        self.assertEqual(pixels(previews[-2]), pixels(image))
        self.assertEqual((previews[-2].prompt, previews[-2].seed), (PROMPT, 0))
        self.assertEqual((previews[0].width, previews[1].width), (image.width, min(16, image.width)))

    def test_previews_work_in_the_callback_only(self) -> None:
        events: list[hart.Event] = []

        def on_event(event: hart.Event) -> None:
            events.append(event)
            if not event.has_preview:
                with self.assertRaisesRegex(hart.RequestError, "no preview"):
                    event.preview()
            # The library would return the preview of the current event for an old one.
            if len(events) > 1:
                with self.assertRaisesRegex(hart.RequestError, "callback has returned"):
                    events[0].preview()

        self.model.generate(PROMPT, on_event=on_event)
        with self.assertRaisesRegex(hart.RequestError, "callback has returned") as caught:
            events[-1].preview()
        self.assertEqual(caught.exception.status, hart.Status.ERR_STATE)

    def test_callbacks_may_use_the_model(self) -> None:
        inner: list[hart.Result] = []

        def on_event(event: hart.Event) -> None:
            if event.step == "images":
                inner.append(self.model.generate("a parrot", on_event=lambda event: None))

        outer = self.model.generate(PROMPT, on_event=on_event)
        self.assertEqual(pixels(outer[0]), pixels(self.model.generate(PROMPT)[0]))
        self.assertEqual(pixels(inner[0][0]), pixels(self.model.generate("a parrot")[0]))


class Cancelling(Case):
    def test_a_token_from_another_thread(self) -> None:
        cancel = hart.Cancel()
        timer = threading.Timer(0.5, cancel.request)
        with self.within_time_limit(), self.assertRaises(hart.Cancelled) as caught:
            timer.start()
            self.model.generate(PROMPT, images_per_prompt=1000, cancel=cancel)
        self.assertTrue(cancel.requested)
        self.assertLess(len(caught.exception.completed), 1000)
        with self.assertRaises(hart.Cancelled):
            self.model.generate(PROMPT, cancel=cancel)
        cancel.reset()
        self.assertEqual(len(self.model.generate(PROMPT, cancel=cancel)), 1)

    def test_only_stop_cancels(self) -> None:
        with self.assertRaises(hart.Cancelled) as caught:
            self.model.generate(PROMPT, images_per_prompt=3, on_event=lambda event: hart.STOP if event.step == "images" else None)
        (finished,) = caught.exception.completed
        self.assertEqual(caught.exception.status, hart.Status.CANCELLED)
        self.assertEqual(pixels(finished), pixels(self.model.generate(PROMPT)[0]))
        returned: list[object] = [None, False, 0, "", True, []]
        self.model.generate(PROMPT, on_event=lambda event: returned[event.index % len(returned)])

    def test_an_exception_of_on_event_is_raised(self) -> None:
        class Falsy(BaseException):
            def __bool__(self) -> bool:
                return False

        for error in (ValueError("mine"), Falsy(), SystemExit(3), GeneratorExit(), StopIteration(), KeyboardInterrupt()):
            calls: list[hart.Event] = []

            def on_event(event: hart.Event, calls: list[hart.Event] = calls, error: BaseException = error) -> None:
                calls.append(event)
                if len(calls) == 3:
                    raise error

            stderr = io.StringIO()
            with self.assertRaises(type(error)) as caught, contextlib.redirect_stderr(stderr):
                self.model.generate(PROMPT, on_event=on_event)
            self.assertIs(caught.exception, error)
            self.assertEqual((len(calls), stderr.getvalue()), (3, ""))

    def test_an_exception_of_the_last_event_is_raised(self) -> None:
        def on_event(event: hart.Event) -> None:
            if event.fraction == 1.0 and event.step == "images":
                raise ValueError("late")

        with self.assertRaisesRegex(ValueError, "late"):
            self.model.generate(PROMPT, on_event=on_event)

    def test_a_preview_of_a_cancelled_run(self) -> None:
        cancel = hart.Cancel()

        def on_event(event: hart.Event) -> None:
            if event.step == "scale_done" and event.scale == 2:
                cancel.request()
                event.preview()

        with self.assertRaises(hart.Cancelled):
            self.model.generate(PROMPT, images_per_prompt=2, on_event=on_event, cancel=cancel)

    @unittest.skipUnless(hasattr(signal, "raise_signal") and os.name == "posix", "needs POSIX signals")
    def test_a_signal_handler_that_raises(self) -> None:
        with self.raising_signal_handler():
            for on_event in (None, lambda event: None):
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                with self.within_time_limit(), self.assertRaises(Alarm):
                    self.model.generate(PROMPT, images_per_prompt=1000, on_event=on_event)

    @unittest.skipUnless(os.name == "posix", "needs POSIX signals")
    def test_ctrl_c_ends_a_program(self) -> None:
        code = """
            import hart, os, signal, sys, threading, time
            model = hart.Model(os.environ["HART_MODEL"])
            interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
            def silent(event): pass
            def raising(event):
                if event.step == "scale_done":
                    interrupt()
            way, many = sys.argv[1], dict(prompt="a parrot", images_per_prompt=1000)
            if way != "raising":
                threading.Timer(0.3, interrupt).start()
            if way == "events":
                for event in model.stream(**many): pass
            elif way == "result":
                with model.stream(**many) as stream: stream.result()
            else:
                model.generate(**many, on_event={"none": None, "silent": silent, "raising": raising}[way])
        """
        for way in ("none", "silent", "raising", "events", "result"):
            with self.subTest(way), self.within_time_limit():
                process = python(code, way)
                self.assertEqual(process.stderr.strip().splitlines()[-1], "KeyboardInterrupt")
                self.assertNotIn("ignored", process.stderr)
                self.assertIn(process.returncode, (-signal.SIGINT, 1, 130))

    def test_daemon_threads_at_the_end_of_the_program(self) -> None:
        code = """
            import hart, os, sys, threading, time
            model = hart.Model(os.environ["HART_MODEL"])
            if sys.argv[1] in ("stream", "new stream"):
                stream = model.stream("a parrot", images_per_prompt=1000, previews=0)
                if sys.argv[1] == "stream":
                    next(stream)
            else:
                def repeat(run):
                    while True:
                        try:
                            run()
                        except hart.Error:
                            pass
                files = dict.fromkeys(["llm/config.json", "text/config.json"], b"{}")
                runs = {
                    "thread": lambda: model.generate("a parrot", images_per_prompt=1000, on_event=lambda event: None),
                    "opening": lambda: hart.Model(os.environ["HART_MODEL"], progress=lambda event: None),
                    "files": lambda: hart.Model.from_files(files),
                }
                threading.Thread(target=repeat, args=[runs[sys.argv[1]]], daemon=True).start()
                time.sleep(0.3)
        """
        for way in ("stream", "new stream", "thread", "opening", "files"):
            with self.subTest(way), self.within_time_limit():
                process = python(code, way)
                self.assertEqual(process.returncode, 0, process.stderr)


class Streams(Case):
    def test_same_events_and_image_as_generate(self) -> None:
        events: list[hart.Event] = []
        expected = self.model.generate(PROMPT, on_event=events.append)
        with self.model.stream(PROMPT) as stream:
            streamed = list(stream)
            result = stream.result()
        self.assertEqual(pixels(result[0]), pixels(expected[0]))
        self.assertEqual([(e.stage, e.step, e.index) for e in streamed], [(e.stage, e.step, e.index) for e in events])
        self.assertEqual(list(stream), [], "an exhausted stream stays exhausted")
        self.assertIs(stream.result(), result)

    def test_previews(self) -> None:
        with self.model.stream(PROMPT, previews=0) as stream:
            events = list(stream)
        self.assertTrue(all((event.image is not None) == event.has_preview for event in events))
        assert events[-1].image is not None
        self.assertEqual(pixels(events[-1].image), pixels(self.model.generate(PROMPT)[0]))
        with self.assertRaisesRegex(hart.RequestError, "previews="):
            events[-1].preview()

    def test_leaving_early_cancels(self) -> None:
        def stream_threads() -> int:
            return sum(thread.name == "hart-stream" for thread in threading.enumerate())

        with self.within_time_limit():
            with self.model.stream(PROMPT, images_per_prompt=1000) as stream:
                for event in stream:
                    if event.scale == 2:
                        break
            self.assertEqual(stream_threads(), 0)
            with self.assertRaises(hart.Cancelled):
                stream.result()
            stream.close()
            list(stream)
            # Dropping a stream without closing it.
            for _ in self.model.stream(PROMPT, images_per_prompt=1000):
                break
            gc.collect()
            self.assertEqual(stream_threads(), 0)

    def test_closing_keeps_finished_images(self) -> None:
        with self.model.stream(PROMPT, images_per_prompt=1000) as stream:
            next(event for event in stream if event.step == "images")
        with self.assertRaises(hart.Cancelled) as caught:
            stream.result()
        self.assertGreaterEqual(len(caught.exception.completed), 1)

    def test_errors(self) -> None:
        with self.assertRaises(hart.RequestError):
            self.model.stream("")
        with self.assertRaises(hart.RequestError):
            self.model.stream(PROMPT, previews=-1)
        cancel = hart.Cancel()
        cancel.request()
        stream = self.model.stream(PROMPT, cancel=cancel)
        with self.assertRaises(hart.Cancelled):
            list(stream)
        with self.assertRaises(hart.Cancelled):
            stream.result()

    def test_the_result_without_consuming_events(self) -> None:
        self.assertEqual(len(self.model.stream(PROMPT).result()), 1)

    def test_a_finished_stream_releases_the_model(self) -> None:
        model = hart.Model(MODEL)
        stream = model.stream(PROMPT)
        stream.result()
        handle = model._handle
        model.close()
        # This variable, and the argument of getrefcount.
        self.assertEqual(sys.getrefcount(handle), 2)


#: A PNG file with a white pixel and a transparent one, which EXIF turns to the right.
LAYER = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAYAAAD0In+KAAAAGmVYSWZNTQAqAAAACAABARIAAwAA"
    "AAEABgAAAAAAANZnS2kAAAARSURBVHicY/j///9/BgYGBgAZ7wP9lhJ2KwAAAABJRU5ErkJggg=="
)


class Batches(Case):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def results(self) -> dict[str, dict[str, Any]]:
        """Return the lines of all shards by id, each of which must occur once."""
        lines = [line for path in self.folder.glob("results-*") for line in self.lines(path.name)]
        by_id = {line["id"]: line for line in lines}
        self.assertEqual(len(by_id), len(lines))
        self.assertEqual({f"{id}.png" for id in by_id}, {path.name for path in self.folder.glob("*.png")})
        return by_id

    def test_an_entry_gives_the_image_of_generate(self) -> None:
        entries: list[Any] = [
            "a parrot",
            {"id": "a", "prompt": "a house", "seed": None},
            {"id": 7, "prompt": "a guitar", "seed": "18446744073709551615", "guidance": 3, "steps": 4, "smoothing": False},
            {"custom_id": "c", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a cat", "top_k": 5}},
        ]
        results = {result.id: result for result in hart.batch(entries, self.model, parallel=2)}
        seeds = {"line-00000001": None, "a": 14598278634844962250, "7": 2**64 - 1, "c": None}
        self.assertEqual(set(results), set(seeds))
        settings: dict[str, dict[str, Any]] = {"7": {"guidance": 3, "steps": 4, "smoothing": False}, "c": {"top_k": 5}}
        for number, (id, seed) in enumerate(seeds.items(), 1):
            result = results[id]
            assert result.image is not None and result.seed is not None and result.milliseconds is not None
            self.assertEqual((result.line, result.error, result.file), (number, None, None))
            self.assertGreater(result.milliseconds, 0)
            self.assertEqual(result.seed, result.seed if seed is None else seed)
            image = self.model.generate(result.image.prompt, seed=result.seed, **settings.get(id, {}))[0]
            self.assertEqual(result.image, image)
        self.assertEqual(pickle.loads(pickle.dumps(results["a"])), results["a"])

    def test_fields_of_other_programs(self) -> None:
        body = {"prompt": PROMPT, "model": "x", "n": 1, "size": "64x64", "user": "u", "y": None, "guidance": "2.5", "top_k": 5.0}
        row = {"prompt": PROMPT, "seed": 7.0, "prune": False, "steps": 4, "x": 1}
        entries: list[Any] = [{"id": "a", "body": body, "extra": 1}, row]
        first, second = sorted(hart.batch(entries, self.model), key=lambda result: result.line)
        assert first.image is not None and second.image is not None
        self.assertEqual((first.id, first.warnings), ("a", ("`size` is unknown and was ignored",)))
        self.assertEqual((second.seed, second.warnings), (7, ("`x` is unknown and was ignored",)))
        self.assertEqual(first.image, self.model.generate(PROMPT, seed=hart._hash_of_id("a"), guidance=2.5, top_k=5)[0])
        self.assertEqual(second.image, self.model.generate(PROMPT, seed=7, steps=4)[0])

    def test_settings_of_the_batch_apply_to_entries_without_their_own(self) -> None:
        entries: list[Any] = [{"id": "a", "prompt": PROMPT}, {"id": "b", "prompt": PROMPT, "top_k": 7}]
        results = {result.id: result.image for result in hart.batch(entries, self.model, top_k=5, prune=iter([0.0]), marks="none")}
        for id, top_k in (("a", 5), ("b", 7)):
            image = results[id]
            assert image is not None
            self.assertIn(f"top-k {top_k}", image.settings or "")
            self.assertNotIn(PROMPT.encode(), image.png())

    def test_an_invalid_entry_is_an_error_and_the_batch_continues(self) -> None:
        wrong: list[tuple[Any, str | None, str]] = [
            (7, None, "an entry must be a prompt or a mapping of fields, not int"),
            ({"id": "b"}, "b", "prompt is missing"),
            ({"id": "../c", "prompt": "x"}, None, "id is '../c', expected 1 to 128"),
            ({"id": "com1.x", "prompt": "x"}, None, "device on Windows"),
            ({"id": True, "prompt": "x"}, None, "id must be str, not bool"),
            ({"id": "f", "prompt": "x", "seed": 2.0**60}, "f", "a text if it is large"),
            ({"id": "g", "prompt": "x", "seed": -1}, "g", "seed is -1"),
            ({"id": "h", "prompt": "x", "seed": "7.5"}, "h", "seed must be int, not str"),
            ({"id": "i", "prompt": " "}, "i", "describe an image"),
            ({"id": "j", "prompt": "x", "top_p": 2}, "j", "top_p is 2"),
            ({"id": "k", "prompt": ["x"]}, "k", "prompt must be str"),
            ({"custom_id": "l", "body": {"prompt": "x", "n": 2}}, "l", "n is 2, expected 1"),
            ({"custom_id": "m"}, "m", "body must be a mapping"),
            ({"custom_id": "n", "url": "/v1/chat/completions", "body": {"prompt": "x"}}, "n", "url is"),
            ("\ud800", "line-00000016", "not UTF-8"),
            (hart.BatchEntry(70, ValueError("mine")), None, "mine"),
            ({"id": "a", "prompt": "again"}, "a", "that of an earlier entry"),
        ]
        entries: list[Any] = [{"id": "a", "prompt": "a parrot"}, *(entry for entry, _, _ in wrong), "a house"]
        results = {result.line: result for result in hart.batch(entries, self.model, out=self.folder)}
        for line, (_, id, message) in enumerate(wrong, 2):
            result = results[70 if message == "mine" else line]
            self.assertEqual((result.image, result.seed, result.file), (None, None, None))
            self.assertRegex(str(result.error), message)
            self.assertEqual(result.id, id, result)
        self.assertEqual(sorted(self.results()), ["a", "line-00000019"])
        errors = {line["line"]: line for line in self.lines("errors-0-of-1.jsonl")}
        self.assertEqual(errors, {r.line: {"id": r.id, "line": r.line, "error": str(r.error)} for r in results.values() if r.error})

    def test_a_folder_continues(self) -> None:
        entries = [{"id": f"e{number}", "prompt": f"{number} apples"} for number in range(8)]
        first = hart.batch(entries, self.model, out=self.folder)
        seen = [next(first).id, next(first).id]
        with self.assertRaisesRegex(hart.RequestError, "another batch is writing"):
            hart.batch(entries, self.model, out=self.folder)
        first.close()
        done = self.results()
        self.assertLessEqual(set(seen), set(done))
        self.assertLess(len(done), 8)
        times = {path.name: path.stat().st_mtime_ns for path in self.folder.glob("*.png")}
        # An image without a line, a line without its end, a line without an image, a repeated line, and a damaged file.
        with open(self.folder / "results-0-of-1.jsonl", "ab") as file:
            repeated = json.dumps(done[seen[0] or ""]).encode()
            file.write(b'{"id": "e7", "file": "e7.png", "seed": "1"}\n' + repeated + b'\n{"id": "e6", "fi')
        self.model.generate("6 apples", seed=hart._hash_of_id("e6"))[0].save(self.folder / "e6.png")
        (self.folder / "e5.png").write_bytes(b"\x89PNG")
        (self.folder / ".batch-0-of-1-e4.png").write_bytes(b"\x89PNG")
        found = (self.folder / "e6.png").stat().st_mtime_ns
        rest = [result.id for result in hart.batch(entries, self.model, out=self.folder)]
        self.assertEqual(sorted([*done, *rest]), [entry["id"] for entry in entries])
        self.assertEqual((self.folder / "e6.png").stat().st_mtime_ns, found)
        self.assertEqual([path.name for path in self.folder.glob(".batch*")], [])
        for name, time_of_file in times.items():
            self.assertEqual((self.folder / name).stat().st_mtime_ns, time_of_file)
        self.assertEqual(list(hart.batch(entries, self.model, out=self.folder)), [])
        for id, line in self.results().items():
            self.assertEqual((line["file"], line["seed"], line["warnings"]), (f"{id}.png", str(hart._hash_of_id(id)), []))
            image = self.model.generate(f"{id[1:]} apples", seed=int(line["seed"]))[0]
            self.assertEqual(hart.Image.open(self.folder / line["file"]), image)

    def test_an_image_of_something_else_is_not_replaced(self) -> None:
        self.model.generate("another")[0].save(self.folder / "a.png")
        before = (self.folder / "a.png").read_bytes()
        (result,) = hart.batch([{"id": "a", "prompt": "a parrot"}], self.model, out=self.folder)
        self.assertRegex(str(result.error), "a.png exists and is another image")
        self.assertEqual((self.folder / "a.png").read_bytes(), before)

    def test_a_removed_image_is_generated_again(self) -> None:
        entries = [{"id": id, "prompt": "a parrot"} for id in "ab"]
        list(hart.batch(entries, self.model, out=self.folder))
        (self.folder / "a.png").unlink()
        self.assertEqual([result.id for result in hart.batch(entries, self.model, out=self.folder)], ["a"])
        self.assertEqual(sorted(self.results()), ["a", "b"])

    def test_shards_share_the_entries(self) -> None:
        entries = [{"id": f"e{number}", "prompt": "a parrot"} for number in range(9)]
        parts = [[r.id for r in hart.batch(entries, self.model, out=self.folder, shard=(k, 2))] for k in range(2)]
        self.assertTrue(all(parts))
        self.assertEqual(sorted(sum(parts, [])), [entry["id"] for entry in entries])  # noqa: RUF017
        for k, part in enumerate(parts):
            self.assertTrue(all(hart._hash_of_id(id or "") % 2 == k for id in part))
            self.assertEqual({line["id"] for line in self.lines(f"results-{k}-of-2.jsonl")}, set(part))
        # Other shards know what is done.
        self.assertEqual(list(hart.batch(entries, self.model, out=self.folder, shard=(1, 3))), [])
        self.assertEqual(len(self.results()), 9)

    def test_entries_are_consumed_lazily(self) -> None:
        consumed: list[str] = []

        def entries() -> Any:
            for number in itertools.count():
                consumed.append(f"{number} apples")
                yield consumed[-1]

        results = hart.batch(entries(), self.model, parallel=2)
        for number in range(1, 7):
            next(results)
            self.assertLessEqual(len(consumed), number + 4)
        results.close()

    def test_closing_cancels(self) -> None:
        before = threading.active_count()
        for is_closed in (True, False):
            slow = ({"prompt": PROMPT, "steps": 1000} if number else "a parrot" for number in itertools.count())
            results = hart.batch(slow, self.model, parallel=3)
            next(results)
            with self.within_time_limit():
                if is_closed:
                    results.close()
                del results
            self.assertEqual(threading.active_count(), before)
        # A generator that was never started holds no lock.
        hart.batch([], self.model, out=self.folder)
        self.assertEqual(list(hart.batch([], self.model, out=self.folder)), [])

    def test_an_error_of_the_model_ends_the_batch(self) -> None:
        cancel = hart.Cancel()
        results = hart.batch(itertools.repeat("a parrot"), self.model, cancel=cancel, parallel=2)
        next(results)
        cancel.request()
        with self.within_time_limit(), self.assertRaises(hart.Cancelled):
            list(results)
        model = hart.Model(MODEL)
        results = hart.batch(itertools.repeat("a parrot"), model, out=self.folder)
        next(results)
        model.close()
        with self.within_time_limit(), self.assertRaisesRegex(hart.RequestError, "the model is closed"):
            list(results)
        self.assertEqual(self.lines("errors-0-of-1.jsonl"), [])

        def entries() -> Any:
            yield "a parrot"
            raise KeyError("mine")

        with self.within_time_limit(), self.assertRaisesRegex(KeyError, "mine"):
            list(hart.batch(entries(), self.model))

    def test_a_file_that_cannot_be_written_ends_the_batch(self) -> None:
        (self.folder / "a.png").mkdir()
        with self.assertRaises(OSError):
            list(hart.batch([{"id": "a", "prompt": "a parrot"}], self.model, out=self.folder))

    @unittest.skipUnless(os.name == "posix", "needs limits of POSIX")
    def test_a_line_that_a_full_disk_has_cut(self) -> None:
        (self.folder / "x.png").touch()
        line = b'{"id": "e%03d", "file": "x.png", "seed": "1", "milliseconds": 1, "warnings": []}\n'
        limit = 1 << 16
        lines = [line % number for number in range((limit - 40) // len(line % 0))]
        (self.folder / "results-0-of-1.jsonl").write_bytes(b"".join(lines))
        code = """
            import os, resource, signal, sys, hart
            model = hart.Model(os.environ["HART_MODEL"])
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
            list(hart.batch([{"id": "a", "prompt": "a parrot"}], model, out=sys.argv[1]))
        """
        process = python(code, str(self.folder))
        self.assertIn("OSError", process.stderr)
        self.assertEqual((self.folder / "results-0-of-1.jsonl").stat().st_size, limit)
        (result,) = hart.batch([{"id": "a", "prompt": "a parrot"}], self.model, out=self.folder)
        self.assertEqual((result.id, result.milliseconds), ("a", 0), "the image is found")
        self.assertEqual(len(self.lines("results-0-of-1.jsonl")), len(lines) + 1)

    @unittest.skipUnless(os.name == "posix", "needs the locks of POSIX")
    def test_a_file_system_without_locks(self) -> None:
        refused = unittest.mock.patch("fcntl.flock", side_effect=OSError(95, "not supported"))
        with refused, self.assertWarnsRegex(UserWarning, "locked"):
            list(hart.batch([], self.model, out=self.folder))

    def test_wrong_arguments(self) -> None:
        for prompts, message in (("a parrot", "use hart.read_batch"), (Path("x.csv"), "use hart.read_batch"), (7, "not int")):
            with self.assertRaisesRegex(TypeError, message):
                hart.batch(prompts, self.model)  # type: ignore[arg-type]
        for arguments in ({"shard": (2, 2)}, {"parallel": 0}, {"guidance": 1e9}):
            with self.assertRaises(hart.RequestError):
                hart.batch([], self.model, **arguments)
        with self.assertRaises(TypeError):
            hart.batch([], "model")  # type: ignore[arg-type]

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_a_program_that_ends_inside_a_batch(self) -> None:
        code = """
            import itertools, os, sys, warnings, hart
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks in programs with threads
            model = hart.Model(os.environ["HART_MODEL"])
            slow = ({"prompt": "a parrot", "steps": 1000} if n > 1 else "a parrot" for n in itertools.count())
            results = hart.batch(slow, model, out=sys.argv[1], parallel=2)
            next(results)
            pid = os.fork()
            if pid == 0:
                try:
                    next(results)
                except hart.RequestError as error:
                    os._exit(7 if "forked" in str(error) else 1)
                os._exit(2)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
        with self.within_time_limit():
            process = python(code, str(self.folder))
        self.assertEqual((process.returncode, process.stdout, process.stderr), (0, "7\n", ""))
        self.assertEqual(self.lines("errors-0-of-1.jsonl"), [])

    def test_a_batch_that_exists_until_the_program_ends(self) -> None:
        code = """
            import itertools, os, hart
            slow = ({"prompt": "a parrot", "steps": 1000} if n > 1 else "a parrot" for n in itertools.count())
            kept = hart.batch(slow, hart.Model(os.environ["HART_MODEL"]), parallel=2)
            next(kept)
            kept_in_cycle = [kept]
            kept_in_cycle.append(kept_in_cycle)
            raise SystemExit(3)
        """
        with self.within_time_limit():
            process = python(code)
        self.assertEqual((process.returncode, process.stderr), (3, ""))

    def test_files_of_prompts(self) -> None:
        def read(name: str, content: bytes, format: Any = None) -> list[tuple[int, Any]]:
            (self.folder / name).write_bytes(content)
            entries = hart.read_batch(self.folder / name, format)
            return [(line, str(value) if isinstance(value, Exception) else value) for line, value in entries]

        text = "\ufeffa caf\u00e9\r\n\n# no\n  a house  \nlast".encode()
        self.assertEqual(read("p.txt", text), [(1, "a caf\u00e9"), (4, "a house"), (5, "last")])
        self.assertRegex(read("p.txt", b"a\nb\xff\n")[1][1], "not UTF-8 from byte 2")
        long = read("p.txt", b"x" * (2 * hart._MAX_LINE) + b"\nnext")
        self.assertEqual(long, [(1, "the line has more than 8 MB"), (2, "next")])
        with self.assertRaisesRegex(hart.RequestError, "UTF-16"):
            read("p.txt", "a".encode("utf-16"))
        json_lines = read("p.jsonl", b'\n{"prompt": "a", "seed": 14598278634844962250}\n{\n"b"\n' + b"[" * 100_000)
        self.assertEqual(json_lines[0], (2, {"prompt": "a", "seed": 14598278634844962250}))
        self.assertEqual([line for line, _ in json_lines[1:]], [3, 4, 5])
        for _, problem in json_lines[1:]:
            self.assertRegex(problem, "the line is not a JSON object: ")
        # Without an ending that is known, the first line tells.
        self.assertEqual(read("p", b'\n{"prompt": "a"}'), [(2, {"prompt": "a"})])
        self.assertEqual(read("p", b'{"prompt": "a"}', "text"), [(1, '{"prompt": "a"}')])
        self.assertEqual(read("p", b"a\n{"), [(1, "a"), (2, "{")])
        cells = b'id,prompt,seed,guidance,smoothing,top_k,extra\n1,"a, b\nc",7,2.5,FALSE,5,\n,d\n2,e,,x\n3,f,,,,,,g\n4,\xff\n'
        rows = read("p.csv", cells)
        first = {"id": "1", "prompt": "a, b\nc", "seed": "7", "guidance": "2.5", "smoothing": False, "top_k": "5"}
        self.assertEqual(rows[:2], [(3, first), (4, {"prompt": "d"})])
        self.assertEqual(rows[3], (6, "the row has more cells than the header"))
        results = sorted(hart.batch([hart.BatchEntry(*row) for row in rows if row[0] != 6], self.model), key=lambda r: r.line)
        self.assertEqual([str(r.error) for r in results[2:3]], ["guidance is 'x', expected a number"])
        self.assertRegex(str(results[3].error), "not UTF-8")
        self.assertEqual(results[0].image, self.model.generate("a, b\nc", seed=7, guidance=2.5, smoothing=False, top_k=5)[0])
        self.assertEqual(read("p.TSV", b"prompt\tseed\na\t1\n"), [(2, {"prompt": "a", "seed": "1"})])
        self.assertEqual(len(read("p.csv", b"prompt\n" + b"x" * 200_000 + b"\nnext\n")), 2)
        for name, content in (("p.csv", b"text\na\n"), ("empty.csv", b"")):
            with self.assertRaisesRegex(hart.RequestError, "expected prompt"):
                read(name, content)
        with self.assertRaises(FileNotFoundError):
            hart.read_batch("/no/such.csv")
        with self.assertRaisesRegex(hart.RequestError, "format is 'xlsx'"):
            hart.read_batch("a.xlsx", "xlsx")  # type: ignore[arg-type]

    def test_parquet(self) -> None:
        try:
            arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        except ImportError:
            self.skipTest("needs PyArrow")
        seeds = arrow.array([2**64 - 1, None], arrow.uint64())
        parquet.write_table(arrow.table({"prompt": ["a", "b"], "seed": seeds, "top_k": [None, 5]}), self.folder / "p.parquet")
        rows = list(hart.read_batch(self.folder / "p.parquet"))
        fields = [("a", 2**64 - 1, None), ("b", None, 5)]
        self.assertEqual(rows, [(n, dict(zip(("prompt", "seed", "top_k"), row))) for n, row in enumerate(fields, 1)])
        results = {result.line: result for result in hart.batch(rows, self.model)}
        self.assertEqual([results[1].seed, results[2].seed], [2**64 - 1, hart._hash_of_id("line-00000002")])


class Editing(Case):
    def test_editing_changes_the_image(self) -> None:
        image = self.model.generate(PROMPT, seed=7)[0]
        size, half = image.width * image.height * 3, image.width // 2
        row = b"\xff" * (3 * half) + b"\0" * (3 * (image.width - half))
        mask = hart.Image(image.width, image.height, row * image.height)
        starts = [hart.FromImage.inpaint(image, mask), hart.FromImage.vary(image, 1)]
        starts.append(hart.FromImage.outpaint(hart.Image(2, 2, bytes(12)), 1, 1))
        for start, name in zip(starts, ("inpainting", "variation", "outpainting")):
            edited = self.model.generate("a house", seed=1, from_image=start)[0]
            self.assertEqual(len(edited.pixels), size)
            self.assertNotEqual(pixels(edited), pixels(image))
            self.assertIn(name, edited.settings or "")
        for wrong in (hart.FromImage.vary(image, 0), hart.FromImage.inpaint(image, hart.Image(2, 1, b"\xff" * 6))):
            with self.assertRaises(hart.RequestError):
                self.model.generate("a house", from_image=wrong)
        with self.assertRaises(TypeError):
            hart.FromImage.vary("image.png", 1)  # type: ignore[arg-type]

    def test_pixels_outside_the_mask_stay(self) -> None:
        image = self.model.generate(PROMPT, seed=7)[0]
        kept = 3 * image.width * (image.height // 2)
        mask = hart.Image(1, 2, b"\0\0\0\xff\xff\xff")
        # The proportions of the mask are checked, its resolution is not.
        with self.assertRaisesRegex(hart.RequestError, "its mask 1 x 2"):
            self.model.generate("a house", from_image=hart.FromImage.inpaint(image, mask))
        mask = hart.Image(2, 2, b"\0" * 6 + b"\xff" * 6)
        edited = self.model.generate("a house", seed=1, from_image=hart.FromImage.inpaint(image, mask))[0]
        self.assertEqual(pixels(edited)[:kept], pixels(image)[:kept])
        self.assertNotEqual(pixels(edited)[kept:], pixels(image)[kept:])
        start = hart.FromImage.inpaint(image, mask, keep="latent")
        edited = self.model.generate("a house", seed=1, from_image=start)[0]
        self.assertNotEqual(pixels(edited)[:kept], pixels(image)[:kept])
        self.assertIn("keep latent", edited.settings or "")
        with self.assertRaisesRegex(hart.RequestError, "expected 'pixels' or 'latent'"):
            hart.FromImage.inpaint(image, mask, keep="all")  # type: ignore[arg-type]

    def test_a_layer_is_turned_upright_and_its_transparency_is_a_mask(self) -> None:
        layer = hart.Image.from_png(LAYER)
        self.assertEqual((layer.width, layer.height), (1, 2))
        self.assertEqual(pixels(layer.transparency()), b"\0\0\0\xff\xff\xff")


class Copying(Case):
    """Objects that can be copied and pickled, and objects that can't."""

    def copies(self, value: Any) -> list[Any]:
        pickled = [pickle.loads(pickle.dumps(value, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
        return [*pickled, copy.copy(value), copy.deepcopy(value)]

    def test_images(self) -> None:
        generated = self.model.generate("a café 🦜", seed=2**64 - 1)[0]
        # All 65,536 pairs of a value and an alpha.
        layer = hart.Image.from_numpy(
            memoryview(bytes(v for a in range(256) for c in range(256) for v in (c, c, 255 - c, a))).cast("B", (256, 256, 4))
        )
        for image in (generated, layer, hart.Image(2, 1, b"rgbRGB"), hart.Image.from_png(LAYER)):
            for other in self.copies(image):
                self.assertEqual(other, image)
                self.assertEqual(hash(other), hash(image))
                self.assertEqual((pixels(other), pixels(other.transparency())), (pixels(image), pixels(image.transparency())))
                self.assertEqual((other.prompt, other.seed, other.settings), (image.prompt, image.seed, image.settings))
        self.assertEqual(len({generated, layer, *self.copies(generated)}), 2)

    def test_different_images_are_not_equal(self) -> None:
        image = self.model.generate(PROMPT, seed=7)[0]
        others = [
            hart.Image(image.width, image.height, image.pixels),
            self.model.generate(PROMPT, seed=8)[0],
            image.transparency(),
            hart.Image(1, 1, b"rgb"),
        ]
        for other in others:
            self.assertNotEqual(image, other)
        self.assertNotEqual(hart.Image(2, 1, bytes(6)), hart.Image(1, 2, bytes(6)))
        self.assertNotEqual(image, pixels(image))
        # Only the transparency differs.
        white = hart.Image.from_numpy(memoryview(bytes([255, 255, 255, 0])).cast("B", (1, 1, 4)))
        self.assertNotEqual(white, hart.Image(1, 1, b"\xff" * 3))

    def test_a_large_image(self) -> None:
        # It has too many pixels for a PNG file that hart reads.
        image = hart.Image(3, 2, bytes(range(18)))
        with unittest.mock.patch.object(hart, "_MAX_PNG_PIXELS", 5):
            self.assertEqual(set(self.copies(image)), {image})
            self.assertNotIn(b"PNG", pickle.dumps(image))

    def test_results_events_and_settings(self) -> None:
        events: list[hart.Event] = []

        def on_event(event: hart.Event) -> None:
            events.append(pickle.loads(pickle.dumps(event)))
            self.assertEqual(events[-1], event)
            with self.assertRaisesRegex(hart.RequestError, "callback has returned"):
                events[-1].preview()

        result = self.model.generate([PROMPT, "a parrot " * 50], on_event=on_event)
        with self.model.stream(PROMPT, previews=16) as stream:
            streamed = [event for event in stream if event.image is not None]
        starts = [hart.FromImage.vary(result[0], 2), hart.FromImage.outpaint(result[0], 1, 2, keep="latent")]
        starts.append(hart.FromImage.inpaint(result[0], result[1], 1))
        values = [
            result,
            *streamed,
            *starts,
            hart.Status.ERR_IO,
            hart.Step.IMAGES,
            hart.Stage.TEXT,
            self.model.info,
            *hart.devices(),
        ]
        for value in values:
            for other in self.copies(value):
                self.assertEqual((type(other), other), (type(value), value))
                self.assertEqual(hash(other), hash(value))
        self.assertTrue(all(other is hart.STOP for other in self.copies(hart.STOP)))
        edited = [
            self.model.generate("a house", from_image=start)[0] for start in (starts[0], pickle.loads(pickle.dumps(starts[0])))
        ]
        self.assertEqual(edited[0], edited[1])
        self.assertNotEqual(starts[0], hart.FromImage.vary(result[0], 3))
        with self.assertRaisesRegex(TypeError, "inpaint, outpaint or vary"):
            hart.FromImage()

    def test_errors(self) -> None:
        with self.assertRaises(hart.Cancelled) as caught:
            self.model.generate(PROMPT, images_per_prompt=2, on_event=lambda event: hart.STOP if event.step == "images" else None)
        errors: list[hart.Error] = [caught.exception]
        kinds = [value for value in vars(hart).values() if isinstance(value, type) and issubclass(value, hart.Error)]
        self.assertEqual(len(kinds), 8)
        errors += [kind(hart.Status.ERR_IO, "x: gone") for kind in kinds]
        errors.append(hart._error(450, "new"))
        for error in errors:
            for other in self.copies(error):
                self.assertEqual((type(other), other.status, str(other)), (type(error), error.status, str(error)))
                self.assertIs(type(other.status), type(error.status))
                self.assertEqual(getattr(other, "completed", None), getattr(error, "completed", None))
        self.assertEqual(len(caught.exception.completed), 1)

    def test_objects_of_a_process(self) -> None:
        image = self.model.generate(PROMPT)[0]
        owners = {
            "open the model in each worker": self.model,
            "pass its events": self.model.stream(PROMPT),
            "create one in each process": hart.Cancel(),
            "call Model.tokenize": self.model.tokenize(image),
            "call Model.encode": self.model.encode(PROMPT),
        }
        for advice, owner in owners.items():
            for duplicate in (copy.deepcopy, pickle.dumps):
                with self.assertRaisesRegex(TypeError, f"hart.{type(owner).__name__} can't be copied or pickled: .*{advice}"):
                    duplicate(owner)
            with self.assertRaisesRegex(TypeError, "can't be copied"):
                pickle.dumps(getattr(owner, "_handle", hart._hart_request()))
        for owner in (self.model, hart.Cancel()):
            self.assertIsNotNone(copy.copy(owner))
        # A shallow copy is another reference to the model, which is closed separately.
        other = copy.copy(self.model)
        other.close()
        self.assertTrue(other.closed and not self.model.closed)

    def test_worker_processes(self) -> None:
        start = hart.FromImage.vary(self.model.generate(PROMPT)[0], 1)
        settings: list[dict[str, Any]] = [{"seed": 1}, {"seed": 2, "from_image": start}]
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            for setting in settings:
                self.assertEqual(pool.submit(generate_in_worker, setting).result()[0], self.model.generate(PROMPT, **setting)[0])
            with self.assertRaisesRegex(hart.RequestError, "empty"):
                pool.submit(generate_in_worker, {"prompt": ""}).result()
            with self.assertRaisesRegex(TypeError, "open the model in each worker process"):
                pool.submit(id, self.model).result()


def generate_in_worker(settings: dict[str, Any]) -> hart.Result:
    with hart.Model(MODEL, threads=1) as model:
        return model.generate(**{"prompt": PROMPT, **settings})


#: A model for `generate_in_fork`, which a child process inherits.
inherited: list[hart.Model] = []


def generate_in_fork(seed: int) -> hart.Image:
    return inherited[0].generate(PROMPT, seed=seed)[0]


@unittest.skipUnless(hasattr(os, "fork"), "the system has no fork")
class Forks(Case):
    def setUp(self) -> None:
        # Python warns of forks of processes with threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        self.addCleanup(warnings.resetwarnings)

    def fork(self, work: Callable[[], object]) -> Callable[[], Any]:
        """Run `work` in a forked process, which must end in time. Return a function that waits for its outcome."""
        receiver, sender = os.pipe()
        process = os.fork()
        if process == 0:
            signal.alarm(60)
            try:
                outcome = work()
            except BaseException as error:
                outcome = error
            with open(sender, "wb") as file:
                pickle.dump(outcome, file)
            os._exit(0)
        os.close(sender)

        def wait() -> Any:
            with open(receiver, "rb") as file:
                data = file.read()
            _, status = os.waitpid(process, 0)
            self.assertEqual(status, 0, "the child process did not end by itself")
            return pickle.loads(data)

        return wait

    def assert_refused(self, outcome: object) -> None:
        self.assertIsInstance(outcome, hart.RequestError)
        assert isinstance(outcome, hart.RequestError)
        self.assertEqual(outcome.status, hart.Status.ERR_STATE)

    def test_a_child_may_use_models(self) -> None:
        expected = self.model.generate(PROMPT, seed=3)[0]

        def use_both() -> list[hart.Image]:
            with hart.Model(MODEL, threads=1) as other:
                images = [model.generate(PROMPT, seed=3)[0] for model in (self.model, other)]
            with self.model.stream(PROMPT, seed=3) as stream:
                return [*images, stream.result()[0]]

        self.assertEqual(self.fork(use_both)(), [expected] * 3)
        # The parent is not affected, and a child of a child may use the model too.
        self.assertEqual(self.fork(lambda: self.fork(use_both)())(), [expected] * 3)
        self.assertEqual(self.model.generate(PROMPT, seed=3)[0], expected)

    def test_workers_of_multiprocessing(self) -> None:
        inherited[:] = [self.model]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            images = pool.map(generate_in_fork, [1, 2, 3])
        self.assertEqual(images, [self.model.generate(PROMPT, seed=seed)[0] for seed in (1, 2, 3)])

    def test_a_child_of_a_callback(self) -> None:
        waits: list[Callable[[], Any]] = []

        def on_event(event: hart.Event) -> None:
            if event.step is hart.Step.SCALE_DONE and event.index == 2:
                waits.append(self.fork(lambda: self.model.generate(PROMPT)))
                waits.append(self.fork(lambda: hart.Model(MODEL)))

        self.model.generate(PROMPT, on_event=on_event)
        for wait in waits:
            self.assert_refused(wait())
        self.assertEqual(len(waits), 2)

    def test_a_child_of_a_process_that_streams(self) -> None:
        def errors(stream: hart.Stream) -> list[object]:
            found: list[object] = []
            for call in (lambda: next(stream), stream.result, lambda: self.model.generate(PROMPT)):
                try:
                    found.append(call())
                except hart.RequestError as error:
                    found.append(error)
            stream.close()
            return found

        with self.model.stream(PROMPT, images_per_prompt=1000) as stream, self.within_time_limit():
            next(stream)
            for error in self.fork(lambda: errors(stream))():
                self.assert_refused(error)
            self.assertGreater(next(stream).fraction, 0)

    def test_the_end_of_a_child(self) -> None:
        code = """
            import hart, os, sys, warnings
            warnings.simplefilter("ignore")
            model = hart.Model(os.environ["HART_MODEL"])
            stream = model.stream("a parrot", images_per_prompt=1000)
            next(stream)
            child = os.fork()
            if child == 0:
                if sys.argv[1] == "close":
                    model.close()
                    stream.close()
                sys.exit(3)
            print(os.waitpid(child, 0)[1] >> 8)
        """
        for way in ("exit", "close"):
            with self.subTest(way), self.within_time_limit():
                process = python(code, way)
                self.assertEqual((process.returncode, process.stdout, process.stderr), (0, "3\n", ""))


class Interface:
    """An array that has NumPy's array interface only, in a bytearray."""

    def __init__(
        self, data: bytes, shape: tuple[int, ...], strides: tuple[int, ...] | None, start: int = 0, code: str = "|u1"
    ) -> None:
        self.data = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        pointer = (ctypes.addressof(self.data) + start, True)
        self.__array_interface__ = {"version": 3, "shape": shape, "strides": strides, "typestr": code, "data": pointer}


class Arrays(Case):
    def test_every_layout(self) -> None:
        grey, rgb = bytes(range(6)), bytes(range(18))
        rgba = b"".join(rgb[3 * i :][:3] + b"\xff" for i in range(6))
        flipped = b"".join(rgb[i : i + 9] for i in (9, 0))
        cases: list[tuple[Any, bytes]] = [
            (memoryview(grey).cast("B", (2, 3)), bytes(v for v in grey for _ in range(3))),
            (memoryview(grey).cast("B", (2, 3, 1)), bytes(v for v in grey for _ in range(3))),
            (memoryview(rgb).cast("B", (2, 3, 3)), rgb),
            (memoryview(rgba).cast("B", (2, 3, 4)), rgb),
            ((ctypes.c_uint8 * 3 * 3 * 2).from_buffer_copy(rgb), rgb),
            (memoryview(grey + rgb).cast("B", (8, 3))[::4], bytes(v for v in grey[:3] + rgb[6:9] for _ in range(3))),
            (Interface(rgb, (2, 3, 3), None), rgb),
            (Interface(rgb, (2, 3, 3), (9, 3, 1)), rgb),
            (Interface(rgb, (2, 3, 3), (-9, 3, 1), 9), flipped),
            (Interface(rgb[::-1], (2, 3, 3), (-9, -3, -1), 17), rgb),
            (Interface(b"rgb", (2, 3, 3), (0, 0, 1)), b"rgb" * 6),
            (Interface(rgba, (2, 3, 3), (12, 4, 1)), rgb),
            (Interface(rgb, (2, 3), (9, 3)), bytes(v for v in rgb[::3] for _ in range(3))),
            (hart.Image(3, 2, rgb), rgb),
        ]
        for array, expected in cases:
            image = hart.Image.from_numpy(array)
            self.assertEqual((image.width, image.height, pixels(image)), (3, 2, expected))
        # Colours of transparent pixels, over white.
        image = hart.Image.from_numpy(memoryview(bytes([0, 100, 255, 0, 0, 100, 255, 128])).cast("B", (1, 2, 4)))
        self.assertEqual(pixels(image), bytes([255, 255, 255, 127, 177, 255]))
        self.assertEqual(pixels(image.transparency()), bytes([255] * 3 + [127] * 3))

    def test_wrong_shapes_and_types(self) -> None:
        shapes: list[tuple[tuple[int, ...], str]] = [
            ((12,), r"\(12,\), expected \(height, width\)"),
            ((3, 2, 2), r"\(3, 2, 2\).*move the first axis to the end"),
            ((2, 3, 2), r"\(2, 3, 2\), expected .* 1, 3 or 4 channels$"),
            ((1, 2, 2, 3), r"\(1, 2, 2, 3\)"),
            ((0, 3), r"\(0, 3\), expected at least one pixel"),
            ((), r"\(\), expected"),
        ]
        for shape, message in shapes:
            with self.assertRaisesRegex(hart.RequestError, f"array has the shape {message}"):
                hart.Image.from_numpy(Interface(bytes(12), shape, None))
        types: list[tuple[Any, str]] = [
            (memoryview(bytes(48)).cast("f", (3, 4)), "float32, expected uint8: multiply values from 0 to 1 by 255"),
            (memoryview(bytes(96)).cast("d", (3, 4)), "float64, expected uint8: multiply"),
            (memoryview(bytes(12)).cast("?", (3, 4)), "bool, expected uint8: multiply"),
            (memoryview(bytes(48)).cast("i", (3, 4)), "int32, expected uint8: convert"),
            (memoryview(bytes(12)).cast("b", (3, 4)), "int8, expected uint8: convert"),
            (Interface(bytes(96), (3, 4), None, code="<f8"), "float64"),
            (Interface(bytes(96), (3, 4), None, code=">i8"), "i8"),
        ]
        for array, message in types:
            with self.assertRaisesRegex(TypeError, f"array has the type {message}"):
                hart.Image.from_numpy(array)
        wrong: list[Any] = ["a.png", [[1]], None, 3, object()]
        for array in wrong:
            with self.assertRaisesRegex(TypeError, "array must be an array of uint8, not"):
                hart.Image.from_numpy(array)
        with self.assertRaisesRegex(TypeError, "image must be a PIL.Image.Image, not bytes"):
            hart.Image.from_pil(b"rgb")
        with self.assertRaisesRegex(TypeError, "pixels has the type float32, expected uint8"):
            hart.Image(2, 2, memoryview(bytes(12)).cast("f"))
        for shape in ((3, 2, 3), (2, 9), (2, 3, 4)):
            data = memoryview(bytes(math.prod(shape))).cast("B", shape)
            with self.assertRaisesRegex(hart.RequestError, rf"pixels has the shape {re.escape(str(shape))}, expected \(2, 3, 3\)"):
                hart.Image(3, 2, data)
        self.assertEqual(hart.Image(3, 2, memoryview(bytes(18)).cast("B", (2, 3, 3))).width, 3)
        with self.assertRaisesRegex(TypeError, "data must be bytes"):
            hart.Image.from_png("a.png")  # type: ignore[arg-type]
        for value, advice in (("a.png", "open"), (HERE, "open"), (Interface(bytes(3), (1, 1, 3), None), "from_numpy")):
            with self.assertRaisesRegex(TypeError, f"image must be hart.Image, not .*: use hart.Image.{advice}"):
                hart.FromImage.vary(value, 1)  # type: ignore[arg-type]

    def test_pixel_formats(self) -> None:
        image = hart.Image(3, 2, bytes(range(100, 118)))
        rgb = [tuple(range(start, start + 3)) for start in range(100, 118, 3)]
        layouts: dict[Any, list[tuple[int, ...]]] = {
            "rgb": rgb,
            "bgr": [pixel[::-1] for pixel in rgb],
            "rgba": [(*pixel, 255) for pixel in rgb],
            "bgra": [(*pixel[::-1], 255) for pixel in rgb],
        }
        for name, layout in layouts.items():
            data, depth = bytes(itertools.chain(*layout)), len(layout[0])
            array = memoryview(data).cast("B", (2, 3, depth))
            for same in (hart.Image.from_numpy(array, name), hart.Image(3, 2, data, name), hart.Image(3, 2, array, name)):
                self.assertEqual(same, image, name)
            buffer = bytearray(len(data))
            image.copy_to(buffer, name)
            self.assertEqual(buffer, data)
            buffers: list[Any] = [(ctypes.c_uint8 * len(data))(), (ctypes.c_uint8 * depth * 3 * 2)()]
            for target in buffers:
                image.copy_to(target, name)
                self.assertEqual(bytes(target), data)
            padded = bytearray(b"\7" * 40)
            image.copy_to(padded, name, stride=20)
            row = 3 * depth
            self.assertEqual(padded, data[:row] + b"\7" * (20 - row) + data[row:] + b"\7" * (20 - row))
        grey = bytearray(6)
        image.copy_to(grey, "grey")
        self.assertEqual(list(grey), [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in rgb])
        self.assertEqual(pixels(hart.Image(3, 2, grey, "grey")), bytes(v for v in grey for _ in range(3)))
        hole = hart.Image(1, 1, bytes([1, 2, 3, 0]), "bgra")
        self.assertEqual((pixels(hole), pixels(hole.transparency())), (b"\xff" * 3, b"\xff" * 3))
        wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
            (bytearray(17), {}, hart.RequestError, "17 bytes .* expected 18"),
            (bytearray(19), {}, hart.RequestError, "19 bytes .* expected 18"),
            (bytearray(18), {"format": "rgba"}, hart.RequestError, "18 bytes .* expected 24"),
            (bytearray(18), {"format": "argb"}, hart.RequestError, "format is 'argb', expected 'rgb', 'bgr'"),
            (bytearray(18), {"stride": 8}, hart.RequestError, "stride is 8, expected 9 to"),
            (bytearray(18), {"stride": 10}, hart.RequestError, "expected at least 19"),
            (bytearray(18), {"stride": 2**64 + 9}, hart.RequestError, "stride is"),
            (bytearray(18), {"stride": True}, TypeError, "stride must be int, not bool"),
            (bytes(18), {}, TypeError, "buffer must be a writable buffer, not bytes"),
            (image, {}, TypeError, "buffer must be a writable buffer, not Image"),
            ([0] * 18, {}, TypeError, "buffer must be a writable buffer, not list"),
            (memoryview(bytearray(36))[::2], {}, hart.RequestError, "buffer has gaps"),
            (memoryview(bytearray(72)).cast("f"), {}, TypeError, "buffer has the type float32, expected uint8"),
            (
                (ctypes.c_uint8 * 3 * 2 * 3)(),
                {},
                hart.RequestError,
                r"buffer has the shape \(3, 2, 3\), expected \(2, 3, 3\) for 'rgb'",
            ),
            ((ctypes.c_uint8 * 3 * 3 * 2)(), {"format": "grey"}, hart.RequestError, r"expected \(2, 3\) for 'grey'"),
            ((ctypes.c_uint8 * 3 * 3 * 2)(), {"stride": 9}, hart.RequestError, "stride is for a buffer with one dimension"),
        ]
        for buffer, settings, kind, message in wrong:
            with self.assertRaisesRegex(kind, message):
                image.copy_to(buffer, **settings)
        array = memoryview(bytes(18)).cast("B", (2, 3, 3))
        with self.assertRaisesRegex(hart.RequestError, "but the format 'rgba' has 4 channels"):
            hart.Image.from_numpy(array, "rgba")
        with self.assertRaisesRegex(hart.RequestError, r"expected \(2, 3\)"):
            hart.Image(3, 2, array, "grey")

    def test_masks(self) -> None:
        image = self.model.generate(PROMPT, seed=7)[0]
        half, shape = image.width * image.height // 2, (image.height, image.width)
        floats = struct.pack(f"{2 * half}f", *([0.49] * half + [0.5] * half))
        masks: list[Any] = [
            hart.Image(*shape, bytes(3 * half) + b"\xff" * (3 * half)),
            memoryview(bytes(half) + b"\1" * half).cast("?", shape),
            memoryview(b"\x7f" * half + b"\x80" * half).cast("B", shape),
            memoryview(bytes(half) + b"\xff" * half).cast("B", (*shape, 1)),
            memoryview(bytes(3 * half) + b"\xff" * 3 * half).cast("B", (*shape, 3)),
            memoryview(b"\xff\xff\xff\0" * half + b"\xff" * 4 * half).cast("B", (*shape, 4)),
            memoryview(floats).cast("B").cast("f", shape),
            Interface(floats, shape, None, code="<f4" if sys.byteorder == "little" else ">f4"),
            Interface(struct.pack(f">{2 * half}d", *([0.49] * half + [0.5] * half)), shape, None, code=">f8"),
            Interface(bytes(half) + b"\2" * half, shape, None, code="|b1"),
        ]
        starts = [hart.FromImage.inpaint(image, mask) for mask in masks]
        edited = [self.model.generate("a house", seed=1, from_image=start)[0] for start in starts]
        for index, other in enumerate(edited):
            self.assertEqual(edited[0], other, index)
        self.assertNotEqual(pixels(edited[0]), pixels(image))
        wrong: list[tuple[Any, type[Exception], str]] = [
            (memoryview(bytes(3) + b"\1").cast("B", (2, 2)), hart.RequestError, "only the values 0 and 1, but white is 255"),
            (
                memoryview(struct.pack("4f", 0, 1, 1, 1.01)).cast("B").cast("f", (2, 2)),
                hart.RequestError,
                "expected values from 0 to 1",
            ),
            (memoryview(struct.pack("1f", math.nan)).cast("B").cast("f", (1, 1)), hart.RequestError, "expected values from 0 to 1"),
            (memoryview(bytes(16)).cast("i", (2, 2)), TypeError, "int32, expected bool, uint8 from 0 to 255, or float"),
            (memoryview(bytes(12)).cast("?", (2, 2, 3)), TypeError, "bool, expected uint8"),
            (bytes(4), hart.RequestError, r"shape \(4,\), expected \(height, width\)"),
            (memoryview(bytes(4)).cast("B", (1, 2, 2)), hart.RequestError, "shape"),
            ([[0, 255]], TypeError, "must be a hart.Image, an image of Pillow or an array, not list"),
            ("mask.png", TypeError, "not str"),
            (None, TypeError, "not NoneType"),
        ]
        for mask, kind, message in wrong:
            with self.assertRaisesRegex(kind, f"mask .*{message}"):
                hart.FromImage.inpaint(image, mask)

    def test_the_array_interface(self) -> None:
        image = hart.Image(3, 2, bytes(range(18)))
        interface = image.__array_interface__
        self.assertEqual((interface["shape"], interface["strides"], interface["typestr"]), ((2, 3, 3), (9, 3, 1), "|u1"))
        address, readonly = interface["data"]
        self.assertTrue(readonly)
        self.assertEqual(ctypes.string_at(address, 18), image.tobytes())

    def test_numpy(self) -> None:
        try:
            numpy: Any = importlib.import_module("numpy")
        except ImportError:
            self.skipTest("NumPy is not installed")
        image = self.model.generate(PROMPT)[0]
        shared = numpy.asarray(image)
        self.assertEqual((shared.shape, shared.dtype, shared.flags.writeable), ((image.height, image.width, 3), numpy.uint8, False))
        self.assertEqual(shared.ctypes.data, image.numpy().ctypes.data)
        self.assertEqual(numpy.asarray(self.model.generate(PROMPT, images_per_prompt=2)).shape, (2, *shared.shape))
        views = [
            shared[::-1],
            shared[:, ::-2],
            shared[..., ::-1],
            shared.transpose(1, 0, 2),
            numpy.asfortranarray(shared),
            shared[3:9],
        ]
        views += [shared[..., 0], shared[..., :1], numpy.broadcast_to(numpy.uint8(7), (4, 5, 3)), shared[1:2, 1:2]]
        for view in views:
            rgb = view if view.ndim == 3 else view[..., None]
            expected = numpy.broadcast_to(rgb, (*rgb.shape[:2], 3)).tobytes()
            self.assertEqual(pixels(hart.Image.from_numpy(view)), expected)
            # The same memory, without the buffer protocol.
            only = types.SimpleNamespace(__array_interface__=view.__array_interface__)
            self.assertEqual(pixels(hart.Image.from_numpy(only)), expected)
        tensor = types.SimpleNamespace(__array__=lambda: shared)
        self.assertEqual(pixels(hart.Image.from_numpy(tensor)), pixels(image))
        for wrong in (shared / 255, shared.astype(numpy.float16), shared.astype(int), shared == 0, shared.astype(object)):
            with self.assertRaisesRegex(
                TypeError, f"array has the type {wrong.dtype if wrong.dtype != object else 'O'}, expected uint8"
            ):
                hart.Image.from_numpy(wrong)
        orders: dict[Any, list[int]] = {"rgb": [0, 1, 2], "bgr": [2, 1, 0], "rgba": [0, 1, 2, 3], "bgra": [2, 1, 0, 3]}
        for name, order in orders.items():
            # A part of a larger array.
            frame = numpy.full((image.height + 3, image.width + 5, len(order)), 7, numpy.uint8)
            part = frame[1:-2, 2:-3]
            image.copy_to(part, name)
            self.assertEqual(part[..., order[:3]].tobytes(), pixels(image))
            self.assertTrue((part[..., 3:] == 255).all())
            self.assertEqual(hart.Image.from_numpy(part, name), hart.Image.from_numpy(shared))
            part[:] = 7
            self.assertTrue((frame == 7).all())
        for wrong in (
            numpy.zeros_like(shared)[::-1],
            numpy.zeros_like(shared)[:, ::-1],
            numpy.asfortranarray(numpy.zeros_like(shared)),
        ):
            with self.assertRaisesRegex(hart.RequestError, "buffer has the strides"):
                image.copy_to(wrong)
        with self.assertRaisesRegex(TypeError, "writable"):
            image.copy_to(shared)
        half = numpy.arange(image.height)[:, None] < numpy.full(image.width, image.height // 2)
        edited = self.model.generate("a house", from_image=hart.FromImage.inpaint(image, half))[0]
        for mask in (
            255 * half.astype(numpy.uint8),
            half.astype(float),
            half.astype(">f4"),
            half.astype(numpy.float16),
            half.T.copy().T,
        ):
            self.assertEqual(self.model.generate("a house", from_image=hart.FromImage.inpaint(image, mask))[0], edited)
        del image
        gc.collect()
        self.assertEqual(len(shared.tobytes()), shared.size)

    def test_pil(self) -> None:
        try:
            pil: Any = importlib.import_module("PIL.Image")
        except ImportError:
            self.skipTest("Pillow is not installed")
        image = self.model.generate(PROMPT)[0]
        rgb = image.pil()
        self.assertEqual(pil.fromarray(image).tobytes(), pixels(image))
        ramp = pil.frombytes("L", rgb.size, bytes(i % 256 for i in range(rgb.width * rgb.height)))
        grey, palette, alpha = rgb.convert("L"), rgb.quantize(9), rgb.copy()
        alpha.putalpha(ramp)
        keyed = [grey.copy(), rgb.copy(), palette.copy()]
        for layer, key in zip(keyed, (grey.getpixel((0, 0)), rgb.getpixel((0, 0)), 3)):
            layer.info["transparency"] = key
        # Each equals what `open` reads from a PNG file of it.
        for source in (rgb, grey, palette, rgb.convert("1"), alpha, pil.merge("LA", [grey, ramp]), *keyed):
            file = io.BytesIO()
            source.save(file, "PNG")
            self.assertEqual(hart.Image.from_pil(source), hart.Image.from_png(file.getvalue()), source.mode)
        for mode in ("CMYK", "YCbCr", "HSV", "RGBX"):
            self.assertEqual(hart.Image.from_pil(rgb.convert(mode)).width, rgb.width)
        for source in (alpha.convert("RGBa"), alpha.convert("PA"), pil.merge("LA", [grey, ramp]).convert("La")):
            self.assertTrue(any(hart.Image.from_pil(source).transparency().pixels), source.mode)
        for source in (grey.convert("I"), grey.convert("F"), pil.new("I;16", (2, 2))):
            with self.assertRaisesRegex(TypeError, f"image has the mode {source.mode}, expected at most 8 bits"):
                hart.Image.from_pil(source)
        with self.assertRaisesRegex(hart.RequestError, "at least one pixel"):
            hart.Image.from_pil(pil.new("RGB", (0, 3)))
        with self.assertRaisesRegex(TypeError, "use hart.Image.from_pil"):
            hart.Image.from_numpy(rgb)
        with self.assertRaisesRegex(TypeError, "use hart.Image.from_pil"):
            hart.FromImage.vary(rgb, 1)
        mask = ramp.point(lambda value: 255 * (value > 99))
        starts = [hart.FromImage.inpaint(image, where) for where in (mask, mask.convert("1"), hart.Image.from_pil(mask))]
        edited = {self.model.generate("a house", from_image=start)[0] for start in starts}
        self.assertEqual(len(edited), 1)


class Images(Case):
    def test_files(self) -> None:
        image = self.model.generate(PROMPT)[0]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "café 🦜.png"
            image.save(path)
            self.assertEqual(path.read_bytes(), image.png())
            self.assertEqual(pixels(hart.Image.open(str(path))), pixels(image))
            for again in (hart.Image.open(path), hart.Image.from_png(image.png())):
                self.assertEqual(pixels(again), pixels(image))
                self.assertEqual((again.prompt, again.seed, again.settings), (image.prompt, image.seed, image.settings))
            with self.assertRaises(hart.FileError):
                image.save(Path(folder) / "missing" / "x.png")
            path.write_bytes(b"not an image")
            with self.assertRaises(hart.FileError) as caught:
                hart.Image.open(path)
            self.assertEqual(caught.exception.status, hart.Status.ERR_IMAGE)
        self.assertEqual(image._repr_png_()[:8], b"\x89PNG\r\n\x1a\n")

    def test_formats_of_files(self) -> None:
        image = self.model.generate("a café 🦜", seed=2**64 - 1)[0]
        origin = (image.prompt, image.seed, image.settings)
        magics = {".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff", ".jpeg": b"\xff\xd8\xff", ".webp": b"RIFF", ".JPG": b"\xff\xd8\xff"}
        formats: dict[str, Any] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".JPG": "jpeg"}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for ending, magic in magics.items():
                path = folder / f"x{ending}"
                image.save(path)
                data = path.read_bytes()
                self.assertEqual((data[: len(magic)], data), (magic, image.encode(formats[ending])))
                for again in (hart.Image.open(path), hart.Image.decode(memoryview(data))):
                    self.assertEqual((again.prompt, again.seed, again.settings), origin)
                    self.assertEqual(again == image, "jp" not in ending.lower())
                    self.assertLess(sum(abs(a - b) for a, b in zip(again.pixels, image.pixels)) / len(image.pixels), 8)
            for wrong in ("x.gif", "x", "x.png.txt", ".png"):
                with self.assertRaises(hart.RequestError):
                    image.save(folder / wrong)
        self.assertEqual((image.png(), image.encode(), image.encode("png", quality=3)), (image.png(),) * 3)
        self.assertLess(len(image.encode("jpeg", quality=1)), len(image.encode("jpeg", quality=100)))
        self.assertEqual(image.encode("jpeg"), image.encode("jpeg", quality=90))
        for format, quality, kind in (
            ("gif", 90, ValueError),
            ("jpeg", 0, ValueError),
            ("jpeg", 101, ValueError),
            ("jpeg", 9.5, TypeError),
        ):
            with self.assertRaisesRegex(kind, "format is 'gif', expected|quality (is|must be)"):
                image.encode(format, quality=quality)  # type: ignore[arg-type]

    def test_pixels_outlive_everything(self) -> None:
        with hart.Model(MODEL) as model:
            result = model.generate(PROMPT)
            expected, view = pixels(result[0]), result[0].pixels
        del model, result
        gc.collect()
        junk = [bytearray(len(expected)) for _ in range(100)]
        self.assertEqual(bytes(view), expected)
        self.assertTrue(view.readonly and view.format == "B" and view.ndim == 1)
        del junk

    def test_an_image_from_pixels(self) -> None:
        data = bytes(range(24))
        for buffer in (data, bytearray(data), memoryview(data), memoryview(bytes(48))[::2]):
            image = hart.Image(4, 2, buffer)
            self.assertEqual((image.width, image.height, pixels(image)), (4, 2, bytes(buffer)))
        self.assertEqual((image.prompt, image.seed, image.settings), (None, None, None))
        for width, height in ((4, 3), (0, 0), (3, 2), (-4, -2), (2**33, 1)):
            with self.assertRaises(hart.RequestError):
                hart.Image(width, height, data)
        with self.assertRaises(TypeError):
            hart.Image(4, 2, "x" * 24)  # type: ignore[arg-type]

    def test_grid(self) -> None:
        small = [hart.Image(1, 1, bytes([i] * 3)) for i in range(3)]
        grid = hart.Image.grid(iter(small), columns=2)
        self.assertEqual((grid.width, grid.height, pixels(grid)), (2, 2, bytes([0, 0, 0, 1, 1, 1, 2, 2, 2, 255, 255, 255])))
        for images, columns in (([], 1), (small, 0), ([*small, grid], 2)):
            with self.assertRaises(hart.RequestError):
                hart.Image.grid(images, columns)
        with self.assertRaises(TypeError):
            hart.Image.grid([b"x"], 1)  # type: ignore[list-item]

    def test_numpy(self) -> None:
        try:
            numpy: Any = importlib.import_module("numpy")
        except ImportError:
            self.skipTest("NumPy is not installed")
        image = self.model.generate(PROMPT)[0]
        array, expected, size = image.numpy(), pixels(image), (image.height, image.width, 3)
        del image
        gc.collect()
        self.assertEqual((array.shape, array.dtype, array.flags.writeable), (size, numpy.uint8, False))
        self.assertEqual(array.tobytes(), expected)
        self.assertEqual(pixels(hart.Image(array.shape[1], array.shape[0], array)), expected)
        settings = {"seed": numpy.int64(3), "guidance": numpy.float32(1.5), "top_k": numpy.uint8(9), "smoothing": numpy.bool_(True)}
        plain = self.model.generate(PROMPT, seed=3, guidance=1.5, top_k=9, smoothing=True)[0]
        self.assertEqual(self.model.generate([numpy.str_(PROMPT)], **settings)[0], plain)

    def test_pil(self) -> None:
        try:
            pil: Any = importlib.import_module("PIL.Image")
        except ImportError:
            self.skipTest("Pillow is not installed")
        image = self.model.generate(PROMPT)[0]
        self.assertEqual((image.pil().size, image.pil().tobytes()), ((image.width, image.height), pixels(image)))
        read = pil.open(io.BytesIO(image.png()))
        self.assertEqual(read.tobytes(), pixels(image))
        self.assertTrue(read.info["parameters"].startswith(PROMPT + "\nSteps: "), read.info)

    def test_tokens(self) -> None:
        image = self.model.generate(PROMPT)[0]
        tokens = self.model.tokenize(image)
        codes = [list(tokens.codes(scale)) for scale in range(tokens.scales)]
        self.assertEqual((tokens.scales, len(codes[0])), (self.model.info.scales, 1))
        self.assertTrue(all(0 <= code < self.model.info.codes for scale in codes for code in scale))
        both, codes_only = self.model.reconstruct(tokens), self.model.reconstruct(tokens, with_residual=False)
        self.assertNotEqual(pixels(both), pixels(codes_only))
        view = tokens.codes(-1)
        with self.assertRaises(IndexError):
            tokens.codes(tokens.scales)
        with hart.Model(MODEL) as other, self.assertRaisesRegex(hart.RequestError, "another model"):
            other.reconstruct(tokens)
        del tokens
        gc.collect()
        self.assertEqual(list(view), codes[-1])

    def test_contexts(self) -> None:
        prompts = (PROMPT, "a crown")
        events: list[hart.Event] = []
        expected = self.model.generate(prompts, images_per_prompt=2, seed=5)
        context = self.model.encode(prompts, on_event=events.append)
        self.assertEqual({event.stage for event in events}, {"text"})
        self.assertEqual((context.prompts, len(context), repr(context)), (prompts, 2, "<hart.Context, 2 prompts>"))
        events.clear()
        result = self.model.generate(context=context, images_per_prompt=2, seed=5, on_event=events.append)
        self.assertNotIn("text", {event.stage for event in events})
        self.assertAlmostEqual(events[-1].fraction, 1, places=3)
        self.assertEqual([image.png() for image in result], [image.png() for image in expected])
        with self.model.stream(context=context, seed=5) as stream:
            self.assertEqual(stream.result()[1].png(), expected[2].png())
        # A context belongs to a model, and to no other prompts.
        with hart.Model(MODEL) as other, self.assertRaisesRegex(hart.RequestError, "belongs to another model"):
            other.generate(context=context)
        with self.assertRaisesRegex(hart.RequestError, "prompt and context"):
            self.model.generate("a house", context=context)
        with self.assertRaisesRegex(hart.RequestError, "system prompt: none, but the context was encoded with the model's"):
            self.model.generate(context=context, system_prompt="")
        with self.assertRaisesRegex(TypeError, "a prompt or a context"):
            self.model.generate()
        with self.assertRaises(TypeError):
            self.model.generate(context="a house")  # type: ignore[arg-type]
        with self.assertRaises(TypeError):
            hart.Context()

    def test_hidden_states_of_contexts(self) -> None:
        with self.model.encode(iter([PROMPT, "a crown"]), system_prompt="Draw: ") as context:
            hidden, mask = context.hidden(), context.mask(-1)
            tokens, channels = hidden.shape or ()
            self.assertEqual((tokens, hidden.format, mask.format), (self.model.info.context_tokens, "f", "?"))
            self.assertTrue(hidden.readonly and mask.readonly)
            self.assertNotEqual(hidden.tolist(), context.hidden(1).tolist())
            self.assertEqual(hidden.tolist(), context.hidden(-2).tolist())
            self.assertEqual((len(mask), mask[0], mask[-1]), (tokens, True, False))
            self.assertGreaterEqual(context.nbytes, 2 * 4 * tokens * channels)
            for missing in (context.hidden, context.mask):
                with self.assertRaises(IndexError):
                    missing(2)
            values = hidden.tolist()
        self.assertTrue(context.closed)
        self.assertEqual(repr(context), "<hart.Context, closed>")
        uses: list[Callable[[], object]] = [
            context.hidden,
            context.mask,
            lambda: len(context),
            lambda: context.nbytes,
            lambda: self.model.generate(context=context),
        ]
        for use in uses:
            with self.assertRaisesRegex(hart.RequestError, "the context is closed"):
                use()
        # A view outlives its context, which is closed again.
        context.close()
        gc.collect()
        self.assertEqual(hidden.tolist(), values)
        # Without a system prompt, the hidden states are different ones.
        self.assertNotEqual(self.model.encode(PROMPT, system_prompt="").hidden().tolist(), values)

    def test_encoding_can_be_cancelled(self) -> None:
        cancel = hart.Cancel()
        cancel.request()
        with self.assertRaises(hart.Cancelled) as caught:
            self.model.encode(PROMPT, cancel=cancel)
        self.assertEqual(caught.exception.completed, ())
        with self.assertRaises(hart.Cancelled):
            self.model.encode(PROMPT, on_event=lambda event: hart.STOP)

        def fail(event: hart.Event) -> None:
            raise LookupError(event.stage)

        with self.assertRaisesRegex(LookupError, "text"):
            self.model.encode(PROMPT, on_event=fail)
        with self.assertRaisesRegex(hart.RequestError, "empty"):
            self.model.encode(" ")

    def test_invalid_arguments_of_tokenize(self) -> None:
        with self.assertRaisesRegex(hart.RequestError, "1 x 1"):
            self.model.tokenize(hart.Image(1, 1, b"rgb"))
        with self.assertRaises(TypeError):
            self.model.tokenize(b"rgb")  # type: ignore[arg-type]
        with self.assertRaises(TypeError):
            self.model.reconstruct(self.model.generate(PROMPT)[0])  # type: ignore[arg-type]
        with self.assertRaises(TypeError):
            hart.Tokens()


class InvalidUse(Case):
    def test_invalid_values(self) -> None:
        wrong: list[dict[str, Any]] = [
            {"prompt": ""},
            {"prompt": " \n"},
            {"prompt": []},
            {"prompt": ["a parrot", ""]},
            {"prompt": "a\0parrot"},
            {"prompt": "a \ud800 parrot"},
            {"prompt": "x" * (1 << 20) + "x"},
            {"images_per_prompt": 0},
            {"images_per_prompt": 1025},
            {"images_per_prompt": 2**32},
            {"seed": -1},
            {"seed": 2**64},
            {"guidance": float("nan")},
            {"guidance": 101},
            {"top_k": 0},
            {"top_k": -1},
            {"top_p": 1.5},
            {"top_p": float("nan")},
            {"steps": ""},
            {"steps": "many"},
            {"steps": "8\0"},
            {"prune": ""},
            {"prune": "half"},
            {"prune": [0.5, 1]},
            {"prune": [0.5, float("nan")]},
            {"prune": [0.1] * 20},
            {"system_prompt": "\0"},
        ]
        for settings in wrong:
            with self.subTest(settings), self.assertRaises(hart.RequestError) as caught:
                self.model.generate(**{"prompt": PROMPT, **settings})
            self.assertIsInstance(caught.exception, ValueError)
            self.assertTrue(str(caught.exception))

    def test_wrong_types(self) -> None:
        wrong: list[dict[str, Any]] = [
            {"prompt": None},
            {"prompt": b"a parrot"},
            {"prompt": ["a parrot", 3]},
            {"images_per_prompt": 1.5},
            {"seed": "7"},
            {"seed": None},
            {"guidance": "4"},
            {"guidance": 1j},
            {"top_k": 3.0},
            {"top_p": "0"},
            {"steps": 8.5},
            {"prune": 0.5},
            {"prune": ["0.5"]},
            {"prune": True},
            {"system_prompt": 3},
            {"cancel": 3},
            {"cancel": self.model},
            {"on_event": 3},
        ]
        for settings in wrong:
            with self.subTest(settings), self.assertRaises(TypeError):
                self.model.generate(**{"prompt": PROMPT, **settings})

    def test_ranges_are_named(self) -> None:
        image = self.model.generate(PROMPT)[0]

        def generate(**settings: Any) -> Callable[[], object]:
            return lambda: self.model.generate(PROMPT, **settings)

        def option(**options: Any) -> Callable[[], object]:
            return lambda: hart.Model(MODEL, **options)

        # The largest and smallest values outside the ranges, and values that C integers would turn into valid ones.
        integers: list[tuple[str, Callable[..., Callable[[], object]], list[int], str]] = [
            ("steps", generate, [0, 1001, 3_000_000_000, 2**32 + 8], "1 to 1000"),
            ("images_per_prompt", generate, [0, 1025, 2**32 + 1], "1 to 1024"),
            ("seed", generate, [2**64], "0 to 18446744073709551615"),
            ("top_k", generate, [0, 2**32, 2**32 + 5], "1 to 4294967295"),
            ("threads", option, [0, 1025, 2**32 + 1], "1 to 1024"),
            ("max_memory", option, [0, 2**64], "1 to 18446744073709551615"),
            ("previews", lambda previews: lambda: self.model.stream(PROMPT, previews=previews), [2**32], "0 to 4294967295"),
            ("kept_scales", lambda kept_scales: lambda: hart.FromImage.vary(image, kept_scales), [2**32], "0 to 4294967295"),
            ("kept_scales", lambda kept_scales: lambda: hart.FromImage.inpaint(image, image, kept_scales), [2**32], "0 to"),
            ("left", lambda left: lambda: hart.FromImage.outpaint(image, left, 0), [2**32], "0 to 4294967295"),
            ("top", lambda top: lambda: hart.FromImage.outpaint(image, 0, top), [2**32], "0 to 4294967295"),
            ("columns", lambda columns: lambda: hart.Image.grid([image], columns), [0, 2**64], "1 to 4294967295"),
            ("width", lambda width: lambda: hart.Image(width, 1, b"rgb"), [0, 2**32 + 1], "1 to 4294967295"),
            ("height", lambda height: lambda: hart.Image(1, height, b"rgb"), [0, 2**32 + 1], "1 to 4294967295"),
        ]
        for name, call, values, expected in integers:
            for value in (*values, -1, -(2**64), 10**5000):
                shown = f"an integer of {value.bit_length()} bits" if value > 2**128 else str(value)
                with (
                    self.subTest(name, value=shown),
                    self.assertRaisesRegex(hart.RequestError, f"^{name} is {shown}, expected {expected}"),
                ):
                    call(**{name: value})()
            for wrong in (True, 1.0, "1", b"1", 1j):
                if name != "steps" or wrong != "1":
                    with self.subTest(name, wrong=wrong), self.assertRaisesRegex(TypeError, f"^{name} must be int, not"):
                        call(**{name: wrong})()
        for name, expected in (("guidance", "-100 to 100"), ("top_p", "0 to 1")):
            for number in (math.nan, math.inf, -math.inf, 100.5, -100.5, 1e300):
                with (
                    self.subTest(name, number=number),
                    self.assertRaisesRegex(hart.RequestError, f"^{name} is .*, expected {expected}"),
                ):
                    generate(**{name: number})()
            for large in (10**400, -(10**400), fractions.Fraction(10**400)):
                with self.assertRaisesRegex(hart.RequestError, f"^{name} is too large for a float, expected {expected}"):
                    generate(**{name: large})()
            for other in (True, "1", b"1", 1j, [1.0]):
                with self.subTest(name, other=other), self.assertRaisesRegex(TypeError, f"^{name} must be float, not"):
                    generate(**{name: other})()
        self.assertIn("guidance 1.5,", generate(guidance=fractions.Fraction(3, 2))()[0].settings)  # type: ignore[index]
        flags = {"smoothing": generate, "memory_map": option, "strict": option, "keep_text_model": option}
        for name, call in flags.items():
            for truth in ("no", 0, 1, "false", b""):
                with self.subTest(name, truth=truth), self.assertRaisesRegex(TypeError, f"^{name} must be bool, not"):
                    call(**{name: truth})()
        with self.assertRaisesRegex(TypeError, "^with_residual must be bool"):
            self.model.reconstruct(self.model.tokenize(image), with_residual="no")  # type: ignore[arg-type]

    def test_an_endless_iterable_of_prompts(self) -> None:
        with self.assertRaisesRegex(hart.RequestError, "1024"):
            self.model.generate(itertools.repeat(PROMPT))

    def test_texts_and_paths(self) -> None:
        class Text(str):
            pass

        class Name(str, enum.Enum):
            CPU = "cpu"

        class Pathlike:
            def __fspath__(self) -> bytes:
                return os.fsencode(MODEL)

        paths: list[Any] = [str(MODEL), Text(MODEL), os.fsencode(MODEL), MODEL, Pathlike()]
        for path in paths:
            with hart.Model(path, device=Name.CPU, text_model=os.fsencode(MODEL / "text")) as model:
                image = model.generate(Text(PROMPT), steps=Text("8"))[0]
            self.assertEqual(image, self.model.generate(PROMPT, steps=8)[0])
        uses: list[tuple[str, Callable[[Any], object]]] = [
            ("path", hart.Model),
            ("path", hart.Image.open),
            ("path", image.save),
            ("text_model", lambda value: hart.Model(MODEL, text_model=value)),
        ]
        wrong: list[Any] = [3, 1.5, io.BytesIO(), [str(MODEL)], bytearray(b"x")]
        for name, use in uses:
            for value in wrong:
                with self.assertRaisesRegex(TypeError, rf"^{name} must be a path \(str, bytes or os.PathLike\), not"):
                    use(value)
            for nul in ("a\0b", b"a\0b", Path("a\0b")):
                with self.assertRaisesRegex(hart.RequestError, f"^{name} contains a NUL character at 1"):
                    use(nul)
        if sys.platform == "linux":
            with self.assertRaisesRegex(hart.RequestError, "^path is not UTF-8"):
                hart.Model(b"caf\xe9")
        texts: list[tuple[str, Callable[[str], object]]] = [
            ("prompt", self.model.generate),
            ("prompt", self.model.encode),
            ("steps", lambda text: self.model.generate(PROMPT, steps=text)),
            ("system_prompt", lambda text: self.model.generate(PROMPT, system_prompt=text)),
            ("device", lambda text: hart.Model(MODEL, device=text)),
            ("precision", lambda text: hart.Model(MODEL, precision=text)),
            ("weights", lambda text: hart.Model(MODEL, weights=text)),
            ("a name in files", lambda text: hart.Model.from_files({text: b""})),
        ]
        for name, call in texts:
            with self.assertRaisesRegex(hart.RequestError, f"^{name} contains a NUL character at 3"):
                call("cpu\0")
            with self.assertRaisesRegex(TypeError, f"^{name} must be (str|int)"):
                call(b"cpu")  # type: ignore[arg-type]

    def test_callbacks_that_would_not_run(self) -> None:
        async def coroutine(event: hart.Event) -> None:
            pass

        async def asynchronous_generator(event: hart.Event) -> Any:
            yield event

        def generator(event: hart.Event) -> Any:
            yield event

        class Callbacks:
            async def __call__(self, event: hart.Event) -> None:
                pass

            async def method(self, event: hart.Event) -> None:
                pass

        wrong: list[tuple[Any, str]] = [
            (coroutine, "a plain function, not a coroutine function"),
            (functools.partial(coroutine), "a plain function, not a coroutine function"),
            (asynchronous_generator, "a plain function, not a coroutine function"),
            (Callbacks(), "a plain function, not a coroutine function"),
            (Callbacks().method, "a plain function, not a coroutine function"),
            (generator, "a plain function, not a generator function"),
            (lambda event: coroutine(event), r"a plain function, but it returned an awaitable \(coroutine\)"),
            (3, "callable, not int"),
            ("print", "callable, not str"),
        ]
        with warnings.catch_warnings():
            # A coroutine that was never awaited.
            warnings.simplefilter("error")
            for callback, message in wrong:
                for run in (self.model.generate, self.model.encode):
                    with self.subTest(callback), self.assertRaisesRegex(TypeError, f"^on_event must be {message}"):
                        run(PROMPT, on_event=callback)
            gc.collect()

        async def use_in_asyncio() -> None:
            loop, events = asyncio.get_running_loop(), asyncio.Queue()  # type: ignore[var-annotated]

            def on_event(event: hart.Event) -> None:
                loop.call_soon_threadsafe(events.put_nowait, event)

            result = await loop.run_in_executor(None, lambda: self.model.generate(PROMPT, on_event=on_event))
            self.assertEqual(result[0], self.model.generate(PROMPT)[0])
            await asyncio.sleep(0)
            self.assertGreater(events.qsize(), 1)
            # A time limit.
            cancel = hart.Cancel()
            run = loop.run_in_executor(None, lambda: self.model.generate(PROMPT, images_per_prompt=1000, cancel=cancel))
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(run), 0.2)
            cancel.request()
            with self.assertRaises(hart.Cancelled):
                await run

        asyncio.run(use_in_asyncio())

    def test_invalid_models_and_options(self) -> None:
        for path in ("/no/such/folder", HERE, ""):
            with self.subTest(path), self.assertRaises(hart.CheckpointError):
                hart.Model(path)
        with self.assertRaises(ValueError):
            hart.Model("a\0b")
        with self.assertRaises(TypeError):
            hart.Model(3)  # type: ignore[arg-type]
        options: list[tuple[dict[str, Any], type[Exception]]] = [
            ({"device": "abacus"}, hart.DeviceError),
            ({"precision": "f2"}, hart.RequestError),
            ({"weights": "heavy"}, hart.RequestError),
            ({"threads": 1025}, hart.RequestError),
            ({"threads": -1}, hart.RequestError),
            ({"text_model": "/no/such/folder"}, hart.CheckpointError),
            ({"max_memory": 1000}, hart.OutOfMemoryError),
            ({"max_memory": 1000}, MemoryError),
            ({"max_memory": -1}, hart.RequestError),
            ({"device": 3}, TypeError),
        ]
        for option, kind in options:
            with self.subTest(option), self.assertRaises(kind):
                hart.Model(MODEL, **option)
        # Enough for one image, but not for two. With a limit, a model keeps fewer weights in memory.
        with hart.Model(MODEL, max_memory=2**63) as model:
            peak = model.memory().peak
        with hart.Model(MODEL, max_memory=peak) as model, self.assertRaises(hart.OutOfMemoryError):
            model.generate(PROMPT, images_per_prompt=2)

    def test_after_close(self) -> None:
        image = self.model.generate(PROMPT)[0]
        tokens = self.model.tokenize(image)
        model = hart.Model(MODEL)
        model.close()
        model.close()
        self.assertTrue(model.closed)
        self.assertEqual(repr(model), "<hart.Model, closed>")
        uses: list[Callable[[], object]] = [
            lambda: model.info,
            model.memory,
            lambda: model.generate(PROMPT),
            lambda: model.stream(PROMPT),
            lambda: model.encode(PROMPT),
            lambda: model.tokenize(image),
            lambda: model.reconstruct(tokens),
            model.__enter__,
        ]
        for use in uses:
            with self.assertRaisesRegex(hart.RequestError, "closed") as caught:
                use()
            self.assertEqual(caught.exception.status, hart.Status.ERR_STATE)
        others: list[Any] = [self.model.encode(PROMPT), self.model.stream(PROMPT)]
        for other in others:
            with other:
                other.close()
            other.close()
            with self.assertRaisesRegex(hart.RequestError, "is closed") as caught, other:
                self.fail("a closed object was entered")
            self.assertEqual(caught.exception.status, hart.Status.ERR_STATE)

    def test_closing_during_a_run(self) -> None:
        model = hart.Model(MODEL)
        image = model.generate(PROMPT, on_event=lambda event: model.close())[0]
        self.assertEqual(pixels(image), pixels(self.model.generate(PROMPT)[0]))

    def test_a_panic_poisons_the_model(self) -> None:
        with hart.Model(MODEL) as model:
            for status in (hart.Status.ERR_PANIC, hart.Status.ERR_POISONED):
                with self.assertRaises(hart.InternalError) as caught:
                    hart._lib.hart_model_test_panic(model._handle)
                self.assertEqual(caught.exception.status, status)
            with self.assertRaises(hart.InternalError):
                model.generate(PROMPT)

    def test_statuses_of_a_newer_library(self) -> None:
        kinds = {150: hart.RequestError, 250: hart.FileError, 350: hart.DeviceError, 950: hart.InternalError, 450: hart.Error}
        for number, kind in kinds.items():
            error = hart._error(number, "new")
            self.assertEqual((type(error), error.status, str(error)), (kind, number, "new"))

    def test_handles_are_typed(self) -> None:
        for wrong in (7, b"x", hart._hart_request()):
            with self.assertRaises(ctypes.ArgumentError):
                hart._lib.hart_model_test_panic(wrong)

    def test_open_and_close_often(self) -> None:
        def resident() -> int:
            # In pages; 0 where the system does not report it.
            with contextlib.suppress(OSError):
                return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            return 0

        for cycle in range(100):
            with hart.Model(MODEL) as model:
                self.assertGreater(model.info.parameters, 0)
            if cycle == 20:
                before = resident()
        grown = (resident() - before) * 4096
        self.assertLess(grown, 2 * self.model.memory().weights, "leaking 80 models would take 80 times their weights")


class Loading(unittest.TestCase):
    def test_errors_name_the_searched_files(self) -> None:
        for named, message in (("/no/such/file", "HART_LIBRARY is /no/such/file"), (str(Path(__file__)), "can't be loaded")):
            process = python(f"import os; os.environ['HART_LIBRARY'] = {named!r}; import hart")
            self.assertEqual(process.returncode, 1)
            self.assertIn("ImportError: hart: ", process.stderr)
            self.assertIn(message, process.stderr)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "hart.py").write_text((HERE / "hart.py").read_text(encoding="utf-8"), encoding="utf-8")
            code = f"import os, sys; os.environ.pop('HART_LIBRARY', 0); sys.path.insert(0, {folder!r}); import hart"
            process = python(code)
            if process.returncode:  # the system may have one
                self.assertIn(f"no library found; searched {folder}", process.stderr)

    @unittest.skipUnless(sys.platform == "linux", "the file names apply to Linux")
    def test_the_library_is_found_in_the_prefix_and_in_the_folder(self) -> None:
        source = (HERE / "hart.py").read_text(encoding="utf-8")
        library = Path(hart._lib._name).resolve()
        for folder, file in (
            ("share/hart/python", "lib/libhart.so.0"),
            ("lib/python3/site-packages", "lib/libhart.so.0"),
            ("folder", "folder/libhart.so.0"),
            ("folder", "folder/libhart.so"),
        ):
            with self.subTest(folder=folder, file=file), tempfile.TemporaryDirectory() as name:
                prefix = Path(name).resolve()
                for path in (prefix / folder / "hart.py", prefix / file):
                    path.parent.mkdir(parents=True, exist_ok=True)
                (prefix / folder / "hart.py").write_text(source, encoding="utf-8")
                (prefix / file).symlink_to(library)
                module_folder = str(prefix / folder)
                code = f"import os, sys; os.environ.pop('HART_LIBRARY', 0); sys.path.insert(0, {module_folder!r}); import hart"
                process = python(code + "; print(hart._lib._name)")
                self.assertEqual(process.stdout.strip(), str(prefix / file), process.stderr)

    @unittest.skipUnless(sys.platform == "linux", "links Linux's library under the names of the other systems")
    def test_the_library_is_found_on_every_system(self) -> None:
        source, library = (HERE / "hart.py").read_text(encoding="utf-8"), Path(hart._lib._name).resolve()
        code = """
            import ctypes, ctypes.util, importlib, os, pathlib, platform, sys
            os.environ.pop("HART_LIBRARY", 0)
            os.add_dll_directory = lambda folder: print("folder", folder)
            sys.platform, folder = sys.argv[1], sys.argv[2]
            sys.path.insert(0, folder)
            import hart
            print(hart._lib._name)
        """
        for system, name in (
            ("win32", "hart.dll"),
            ("darwin", "libhart.dylib"),
            ("darwin", "libhart.0.dylib"),
            ("freebsd14", "libhart.so"),
        ):
            with self.subTest(system), tempfile.TemporaryDirectory() as temporary:
                folder = str(Path(temporary).resolve())
                (Path(folder) / "hart.py").write_text(source, encoding="utf-8")
                (Path(folder) / name).symlink_to(library)
                process = python(code, system, folder)
                printed = [f"folder {folder}"] * (system == "win32") + [str(Path(folder) / name)]
                self.assertEqual(process.stdout.splitlines(), printed, process.stderr)

    @unittest.skipUnless(sys.platform == "linux", "the file names apply to Linux")
    def test_a_relative_path_in_the_environment(self) -> None:
        library = Path(hart._lib._name).resolve()
        code = f"import os; os.chdir({str(library.parent)!r}); os.environ['HART_LIBRARY'] = {library.name!r}; import hart"
        process = python(code + "; print(hart._lib._name)")
        self.assertEqual(process.stdout.strip(), str(library), process.stderr)

    def test_reloading(self) -> None:
        code = """
            import hart, importlib, os, pickle
            before, path = hart, os.environ["HART_MODEL"]
            model, old_kind = hart.Model(path), hart.Image
            image, old_stop = model.generate("a crown", seed=3)[0], hart.STOP
            for _ in range(2):
                importlib.reload(hart)
            assert hart is before and hart.Image is not old_kind
            with hart.Model(path) as new:
                assert new.generate("a crown", seed=3)[0] == image
                # Objects from before can be used, also in new calls.
                assert new.generate("a crown", from_image=hart.FromImage.vary(image, 1))[0] != image
                assert hart.Image.grid([image], 1).pixels == image.pixels
            assert model.info.device and model.generate("a crown", seed=3)[0] == image
            for stop in (old_stop, hart.STOP):
                try:
                    model.generate("a crown", on_event=lambda event: stop)
                except hart.Cancelled:
                    pass
                else:
                    raise AssertionError
            try:
                model.generate("")
            except hart.RequestError:
                pass
            # The run that begins here is stopped at the end of the program.
            stream = model.stream("a crown", images_per_prompt=1000)
            importlib.reload(hart)
            print("done")
        """
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "hart.py").write_text((HERE / "hart.py").read_text(encoding="utf-8"), encoding="utf-8")
            start = f"import os, sys; os.environ['HART_LIBRARY'] = {hart._lib._name!r}; sys.path.insert(0, {folder!r})\n"
            process = python(start + textwrap.dedent(code))
        self.assertEqual((process.returncode, process.stdout.strip()), (0, "done"), process.stderr)
        self.assertEqual(process.stderr, "")

    @unittest.skipUnless(sys.platform == "linux", "only Linux has /proc")
    def test_another_library_and_an_old_one(self) -> None:
        process = python("import os; os.environ['HART_LIBRARY'] = '/proc/self/exe'; import hart")
        self.assertEqual(process.returncode, 1)
        self.assertIn("ImportError: hart: ", process.stderr)
        source = (HERE / "hart.py").read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            newer = Path(folder) / "hart.py"
            newer.write_text(source.replace("_ABI_VERSION = 1", "_ABI_VERSION = 1001"), encoding="utf-8")
            code = f"import os, sys; os.environ['HART_LIBRARY'] = {hart._lib._name!r}; sys.path.insert(0, {folder!r}); import hart"
            process = python(code)
        self.assertIn("needs 1001 or higher", process.stderr)


class Script(unittest.TestCase):
    def run_script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(HERE / "generate.py"), "--model", str(MODEL), *arguments]
        environment = dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    def test_image_files(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "x.png"
            process = self.run_script("a parrot", "--out", str(out), "--count", "2", "--seed", "3")
            self.assertEqual((process.returncode, process.stdout), (0, ""), process.stderr)
            self.assertEqual(sorted(path.name for path in Path(folder).iterdir()), ["x-1.png", "x.png"])
            with hart.Model(MODEL) as model:
                self.assertEqual(out.read_bytes(), model.generate("a parrot", seed=3)[0].png())

    def test_errors_are_one_line(self) -> None:
        wrong = [("", "prompt"), ("a parrot", "--seed=-1"), ("a parrot", "--model=/no/such"), ("a parrot", "--out=/no/such/x.png")]
        for arguments in wrong:
            process = self.run_script(*arguments)
            self.assertEqual(process.returncode, 1)
            self.assertRegex(process.stderr, r"\Aerror: .+\n\Z")

    @unittest.skipUnless(os.name == "posix", "needs POSIX signals")
    def test_ctrl_c(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "x.png"
            command = [sys.executable, str(HERE / "generate.py"), "--model", str(MODEL), "a parrot", "-n", "1000", "-o", str(out)]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            assert process.stderr is not None
            process.stderr.readline()  # wait for the first image
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=TIME_LIMIT)
            self.assertEqual(process.returncode, 130)
            self.assertTrue(rest.endswith("cancelled\n"), rest)
            self.assertNotIn("Traceback", rest)
            self.assertTrue(out.is_file(), "finished images are kept")


class BatchScript(unittest.TestCase):
    """The program batch.py."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def command(self, prompts: str, *arguments: str) -> list[str]:
        (self.folder / "p.jsonl").write_text(prompts, encoding="utf-8")
        folders = ["--model", str(MODEL), "--out", str(self.folder / "out")]
        return [sys.executable, "-B", str(HERE / "batch.py"), str(self.folder / "p.jsonl"), *folders, *arguments]

    def images(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "out").glob("*.png"))

    def test_errors_name_their_lines(self) -> None:
        for arguments, code in (((), 1), (("--max-failures", "1"), 0)):
            command = self.command('{"id": "a", "prompt": "a parrot"}\n{"id": "b"}\n', *arguments)
            process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            self.assertEqual(process.returncode, code)
            self.assertIn("p.jsonl:2, b: prompt is missing or empty: describe an image\n", process.stderr)
            self.assertNotIn("Traceback", process.stderr)
        self.assertEqual(self.images(), ["a"])
        for wrong in ("--model=/no/such", "--parallel=0"):
            process = subprocess.run([*command, wrong], capture_output=True, text=True, timeout=120, check=False)
            self.assertEqual(process.returncode, 1)
            self.assertRegex(process.stderr, r"\Aerror: .+\n\Z")

    @unittest.skipUnless(os.name == "posix", "needs POSIX signals")
    def test_sigterm_finishes_the_images_in_work_and_the_next_run_continues(self) -> None:
        count = 60
        prompts = "".join(f'{{"id": "{number:03}", "prompt": "{number} apples"}}\n' for number in range(count))
        for end, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
            before = len(self.images())
            interrupted = subprocess.Popen(self.command(prompts), stderr=subprocess.PIPE, text=True)
            while len(self.images()) < before + 3:
                self.assertIsNone(interrupted.poll())
                time.sleep(0.01)
            interrupted.send_signal(end)
            _, stderr = interrupted.communicate(timeout=TIME_LIMIT)
            self.assertEqual(interrupted.returncode, code, stderr)
            self.assertNotIn("Traceback", stderr)
            self.assertLess(len(self.images()), count)
        process = subprocess.run(self.command(prompts), capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertEqual(self.images(), [f"{number:03}" for number in range(count)])
        lines = (self.folder / "out" / "results-0-of-1.jsonl").read_text().splitlines()
        self.assertEqual(sorted(json.loads(line)["id"] for line in lines), self.images())
        for path in list((self.folder / "out").glob("*.png"))[::20]:
            hart.Image.open(path)


if __name__ == "__main__":
    unittest.main()
