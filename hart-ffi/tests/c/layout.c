/* Sizes, offsets and constants that compiled programs depend on. They never change; structs only grow at their end. The
 * values apply to 64-bit systems. */
#include <stddef.h>

#include "hart.h"

#define AT(type, field, offset) _Static_assert(offsetof(type, field) == (offset), #type "." #field)
#define SIZE(type, size) _Static_assert(sizeof(type) == (size), #type)

SIZE(hart_status, 4);
SIZE(hart_stage, 4);
SIZE(hart_step, 4);
SIZE(hart_keep, 4);
SIZE(hart_log_level, 4);
SIZE(hart_pixel_format, 4);

SIZE(hart_device_info, 24);
AT(hart_device_info, struct_size, 0);
AT(hart_device_info, reserved, 4);
AT(hart_device_info, name, 8);
AT(hart_device_info, description, 16);

SIZE(hart_model_info, 56);
AT(hart_model_info, struct_size, 0);
AT(hart_model_info, width, 4);
AT(hart_model_info, height, 8);
AT(hart_model_info, scales, 12);
AT(hart_model_info, context_tokens, 16);
AT(hart_model_info, codes, 20);
AT(hart_model_info, parameters, 24);
AT(hart_model_info, device, 32);
AT(hart_model_info, precision, 40);
AT(hart_model_info, fingerprint, 48);

SIZE(hart_event, 56);
AT(hart_event, struct_size, 0);
AT(hart_event, stage, 4);
AT(hart_event, step, 8);
AT(hart_event, index, 12);
AT(hart_event, count, 16);
AT(hart_event, scale, 20);
AT(hart_event, scales, 24);
AT(hart_event, side, 28);
AT(hart_event, fraction, 32);
AT(hart_event, has_preview, 36);
AT(hart_event, elapsed, 40);
AT(hart_event, image_index, 48);
AT(hart_event, reserved, 52);

SIZE(hart_timings, 56);
AT(hart_timings, struct_size, 0);
AT(hart_timings, reserved, 4);
AT(hart_timings, text, 8);
AT(hart_timings, transformer, 16);
AT(hart_timings, sampling, 24);
AT(hart_timings, residual, 32);
AT(hart_timings, decode, 40);
AT(hart_timings, total, 48);

SIZE(hart_truncation, 24);
AT(hart_truncation, struct_size, 0);
AT(hart_truncation, prompt, 4);
AT(hart_truncation, tokens, 8);
AT(hart_truncation, kept, 12);
AT(hart_truncation, cut, 16);

SIZE(hart_image_view, 72);
AT(hart_image_view, struct_size, 0);
AT(hart_image_view, width, 4);
AT(hart_image_view, height, 8);
AT(hart_image_view, channels, 12);
AT(hart_image_view, stride, 16);
AT(hart_image_view, size, 24);
AT(hart_image_view, pixels, 32);
AT(hart_image_view, seed, 40);
AT(hart_image_view, prompt, 48);
AT(hart_image_view, settings, 56);
AT(hart_image_view, model_fingerprint, 64);

/* A value never changes its meaning. */
_Static_assert(HART_OK == 0 && HART_CANCELLED == 1, "status");
_Static_assert(HART_ERR_NULL == 100 && HART_ERR_UTF8 == 101 && HART_ERR_ARGUMENT == 102, "status");
_Static_assert(HART_ERR_REQUEST == 103 && HART_ERR_STATE == 104 && HART_ERR_ABI == 105, "status");
_Static_assert(HART_ERR_REFUSED == 106, "status");
_Static_assert(HART_ERR_IO == 200 && HART_ERR_CHECKPOINT == 201 && HART_ERR_CONFIG == 202, "status");
_Static_assert(HART_ERR_WEIGHTS == 203 && HART_ERR_NOT_FINITE == 204 && HART_ERR_IMAGE == 205, "status");
_Static_assert(HART_ERR_DEVICE == 300 && HART_ERR_MEMORY == 301 && HART_ERR_OVERFLOW == 302, "status");
_Static_assert(HART_ERR_THREADS == 303, "status");
_Static_assert(HART_ERR_PANIC == 900 && HART_ERR_POISONED == 901 && HART_ERR_OTHER == 902, "status");
_Static_assert(HART_FORMAT_PNG == 0 && HART_FORMAT_JPEG == 1 && HART_FORMAT_WEBP == 2, "format");
_Static_assert(HART_STAGE_TEXT == 0 && HART_STAGE_TRANSFORMER == 1 && HART_STAGE_SAMPLING == 2, "stage");
_Static_assert(HART_STAGE_RESIDUAL == 3 && HART_STAGE_DECODE == 4 && HART_STAGE_OTHER == 99, "stage");
_Static_assert(HART_STEP_TEXT_LAYER == 0 && HART_STEP_SCALE == 1 && HART_STEP_BLOCK == 2, "step");
_Static_assert(HART_STEP_SCALE_DONE == 3 && HART_STEP_DIFFUSION == 4 && HART_STEP_DECODER == 5, "step");
_Static_assert(HART_STEP_IMAGES == 6 && HART_STEP_TENSOR == 7 && HART_STEP_OTHER == 99, "step");
_Static_assert(HART_KEEP_PIXELS == 0 && HART_KEEP_LATENT == 1, "keep");
_Static_assert(HART_LOG_ERROR == 1 && HART_LOG_WARNING == 2, "log");
_Static_assert(HART_PIXEL_RGB == 0 && HART_PIXEL_BGR == 1 && HART_PIXEL_RGBA == 2, "pixels");
_Static_assert(HART_PIXEL_BGRA == 3 && HART_PIXEL_GREY == 4, "pixels");

int main(void) {
    return 0;
}
