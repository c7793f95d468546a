-- Generates an image through LuaJIT's ffi with the declarations in hart.cdef: generate.lua HART.CDEF LIBRARY MODEL PROMPT OUT.png SEED.

local ffi = require("ffi")
-- A compiled call can't call back into Lua.
jit.off(true, true)

local declarations, library, model_path, prompt, out, seed = unpack(arg)
local file = assert(io.open(declarations))
ffi.cdef(file:read("*a"))
file:close()
local hart = ffi.load(library)

local function check(status)
  if status ~= hart.HART_OK then error(ffi.string(hart.hart_last_error())) end
end

-- Returns the object that a function creates through its last parameter. It is freed with the returned value.
local function new(kind, create, ...)
  local pointer = ffi.new(kind .. " *[1]")
  local arguments = {...}
  arguments[#arguments + 1] = pointer
  check(create(unpack(arguments)))
  return ffi.gc(pointer[0], hart[kind .. "_free"])
end

-- The constants of the macros and of the enumerations.
assert(hart.HART_OK == 0 and hart.HART_ERR_IMAGE == 205 and hart.HART_STAGE_DECODE == 4 and hart.HART_STEP_OTHER == 99)
assert(hart.hart_version() == hart.HART_VERSION)

local fraction, destroyed = 0, 0
local observer = ffi.cast("hart_observer", function(event)
  assert(event.struct_size == ffi.sizeof("hart_event") and event.fraction >= fraction)
  fraction = event.fraction
  return 0
end)
local destroy = ffi.cast("hart_destroy", function() destroyed = destroyed + 1 end)

local options = new("hart_options", hart.hart_options_new)
check(hart.hart_options_set_observer(options, observer, nil, destroy))
local model = ffi.new("hart_model *[1]")
check(hart.hart_model_open(model_path, options, hart.HART_ABI_VERSION, model))
model = ffi.gc(model[0], hart.hart_model_free)
assert(fraction == 1 and destroyed == 0)
hart.hart_options_free(ffi.gc(options, nil))
assert(destroyed == 1)
fraction = 0

local request = new("hart_request", hart.hart_request_new)
check(hart.hart_request_set_prompt_n(request, prompt, #prompt))
check(hart.hart_request_set_seed(request, tonumber(seed)))
check(hart.hart_request_set_observer(request, observer, nil, nil))
local result = new("hart_result", hart.hart_generate, model, request)
local image = new("hart_image", hart.hart_result_image, result, 0)
assert(fraction > 0.99)
local view = ffi.new("hart_image_view", {struct_size = ffi.sizeof("hart_image_view")})
check(hart.hart_image_describe(image, view))
assert(view.seed == tonumber(seed) and ffi.string(view.prompt) == prompt)
local size = 4 * view.width * view.height
local bgra = ffi.new("uint8_t[?]", size)
check(hart.hart_image_copy_pixels(image, hart.HART_PIXEL_BGRA, 0, bgra, size))
assert(bgra[2] == view.pixels[0] and bgra[0] == view.pixels[2] and bgra[3] == 255)
check(hart.hart_image_save(image, out))
