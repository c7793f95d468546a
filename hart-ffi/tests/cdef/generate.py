"""Generates an image through cffi with the declarations in hart.cdef: generate.py HART.CDEF LIBRARY MODEL PROMPT OUT.png SEED."""

import sys

import cffi

declarations, library, model_path, prompt, out, seed = sys.argv[1:]
ffi = cffi.FFI()
with open(declarations) as file:
    ffi.cdef(file.read())
hart = ffi.dlopen(library)


def check(status: int) -> None:
    if status != hart.HART_OK:
        raise RuntimeError(ffi.string(hart.hart_last_error()).decode())


def new(kind: str, function, *arguments):
    """Returns the object that a function creates through its last parameter. It is freed with the returned value."""
    pointer = ffi.new(f"{kind} **")
    check(function(*arguments, pointer))
    return ffi.gc(pointer[0], getattr(hart, f"{kind}_free"))


# The constants of the macros and of the enumerations, and the size of a struct.
assert (hart.HART_OK, hart.HART_ERR_IMAGE, hart.HART_STAGE_DECODE, hart.HART_STEP_OTHER) == (0, 205, 4, 99)
assert hart.hart_version() == hart.HART_VERSION == hart.HART_VERSION_MAJOR * 10**6 + hart.HART_VERSION_MINOR * 1000 + hart.HART_VERSION_PATCH
assert ffi.string(hart.hart_status_text(hart.HART_ERR_IMAGE)) == b"an image file is malformed"
event_size = ffi.sizeof("hart_event")

fractions = []
destroyed = []


@ffi.callback("hart_observer")
def observer(event, user_data):
    assert event.struct_size == event_size and ffi.from_handle(user_data) is fractions
    fractions.append(event.fraction)
    return 0


@ffi.callback("hart_destroy")
def destroy(user_data):
    destroyed.append(ffi.from_handle(user_data))


handle = ffi.new_handle(fractions)
options = new("hart_options", hart.hart_options_new)
check(hart.hart_options_set_observer(options, observer, handle, destroy))
model = new("hart_model", hart.hart_model_open, model_path.encode(), options, hart.HART_ABI_VERSION)
assert fractions[-1] == 1.0 and not destroyed
ffi.release(options)
assert destroyed == [fractions]
fractions.clear()

request = new("hart_request", hart.hart_request_new)
text = prompt.encode()
check(hart.hart_request_set_prompt_n(request, ffi.from_buffer(text), len(text)))
check(hart.hart_request_set_seed(request, int(seed)))
check(hart.hart_request_set_observer(request, observer, handle, ffi.NULL))
result = new("hart_result", hart.hart_generate, model, request)
image = new("hart_image", hart.hart_result_image, result, 0)
assert fractions[-1] > 0.99
view = ffi.new("hart_image_view *", {"struct_size": ffi.sizeof("hart_image_view")})
check(hart.hart_image_describe(image, view))
assert view.seed == int(seed) and ffi.string(view.prompt) == text
bgra = bytearray(4 * view.width * view.height)
check(hart.hart_image_copy_pixels(image, hart.HART_PIXEL_BGRA, 0, ffi.from_buffer(bgra), len(bgra)))
assert bytes(bgra[2::-1]) == bytes(ffi.buffer(view.pixels, 3)) and bgra[3] == 255
check(hart.hart_image_save(image, out.encode()))
