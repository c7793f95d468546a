/* Correct and incorrect uses of every function in hart.h: abi MODEL SCRATCH [brief]. `brief` generates fewer images and
 * accepts any model, for valgrind. */
#include <pthread.h>

#include "check.h"

static int brief;

static void versions_and_statuses(void) {
    CHECK(hart_version() == HART_VERSION);
    CHECK(hart_abi_version() == HART_ABI_VERSION);
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", HART_VERSION_MAJOR, HART_VERSION_MINOR, HART_VERSION_PATCH);
    CHECK(strcmp(text, hart_version_text()) == 0);
    CHECK(strstr(hart_build_info(), "\"backends\":[\"cpu\"") != NULL);
    CHECK(strcmp(hart_status_text(HART_OK), "done") == 0);
    CHECK(strcmp(hart_status_text(HART_ERR_OTHER), "another error") == 0);
    CHECK(strcmp(hart_status_text(-7), "an unknown status") == 0);
    CHECK(strcmp(hart_last_error(), "") == 0);
}

static void devices(void) {
    hart_device_list *list = NULL;
    OK(hart_device_list_new(&list));
    CHECK(hart_device_list_count(list) >= 1);
    hart_device_info info = {.struct_size = sizeof info};
    OK(hart_device_list_get(list, 0, &info));
    CHECK(info.struct_size == sizeof info && strcmp(info.name, "cpu") == 0 && strlen(info.description) > 0);
    FAILS(hart_device_list_get(list, 1000, &info), HART_ERR_ARGUMENT, "1000");
    HART_FREE(device_list, list);
    CHECK(list == NULL);
    HART_FREE(device_list, list);
}

/* Structs grow: the smaller struct of an older program is filled to its end, the larger one of a newer program has zeros
 * at its end. */
static void structs_of_other_versions(const hart_model *model) {
    hart_model_info info;
    memset(&info, 0xab, sizeof info);
    FAILS(hart_model_describe(model, &info), HART_ERR_ARGUMENT, "struct_size");
    info.struct_size = 0;
    FAILS(hart_model_describe(model, &info), HART_ERR_ARGUMENT, "struct_size");
    info.struct_size = offsetof(hart_model_info, scales);
    OK(hart_model_describe(model, &info));
    CHECK(info.width == info.height && (brief || info.width == 64) && info.scales == 0xabababab);
    struct {
        hart_model_info known;
        uint64_t appended;
    } newer = {.known = {.struct_size = sizeof newer}, .appended = 7};
    OK(hart_model_describe(model, &newer.known));
    CHECK(newer.known.struct_size == sizeof newer && newer.appended == 0);
    CHECK(newer.known.scales > 1 && newer.known.codes > 1 && newer.known.context_tokens > 1 && newer.known.parameters > 1000);
    CHECK(strcmp(newer.known.device, "cpu") == 0 && strcmp(newer.known.precision, "f32") == 0);
    CHECK(strlen(newer.known.fingerprint) == 64);
}

/* NULL for every pointer of every function. */
static void nulls(const hart_model *model, const char *path, const char *scratch) {
    hart_options *options = NULL;
    hart_files *files = NULL;
    hart_cancel *cancel = NULL;
    hart_request *request = new_request("a house", 0);
    hart_image *image = image_of(model, request), *no_image;
    hart_tokens *tokens = NULL, *no_tokens;
    hart_result *result = NULL, *no_result;
    hart_context *context = NULL, *no_context;
    const float *hidden;
    hart_model *no_model;
    uint32_t parallel = 7;
    hart_device_list *list = NULL;
    hart_device_info device = {.struct_size = sizeof device};
    hart_image_view view = {.struct_size = sizeof view};
    hart_timings timings = {.struct_size = sizeof timings};
    uint64_t weights = 1, peak = 1;
    const uint32_t *codes;
    const uint8_t *bytes;
    size_t count, channels;
    uint8_t pixel[3] = {1, 2, 3};
    OK(hart_options_new(&options));
    OK(hart_files_new(&files));
    OK(hart_cancel_new(&cancel));
    OK(hart_generate(model, request, &result));
    OK(hart_model_tokenize(model, image, &tokens));
    OK(hart_encode(model, request, &context));
    OK(hart_device_list_new(&list));

#define IS_NULL(call, name) FAILS(call, HART_ERR_NULL, "`" name "` is NULL")
/* Checks that a call returns 0 and leaves the last error unchanged. */
#define IS_ZERO(call)                                              \
    do {                                                           \
        IS_NULL(hart_options_new(NULL), "options");                \
        CHECK((call) == 0);                                        \
        CHECK(strstr(hart_last_error(), "`options`") != NULL);     \
    } while (0)
    CHECK(hart_last_error_copy(NULL, 5, NULL) == HART_ERR_NULL);
    IS_NULL(hart_device_list_new(NULL), "list");
    IS_ZERO(hart_device_list_count(NULL));
    IS_NULL(hart_device_list_get(NULL, 0, &device), "list");
    IS_NULL(hart_device_list_get(list, 0, NULL), "info");
    IS_NULL(hart_options_new(NULL), "options");
    IS_NULL(hart_options_set_device(NULL, "cpu"), "options");
    IS_NULL(hart_options_set_device(options, NULL), "device");
    IS_NULL(hart_options_set_precision(NULL, "f32"), "options");
    IS_NULL(hart_options_set_precision(options, NULL), "precision");
    IS_NULL(hart_options_set_text_model(NULL, "text"), "options");
    IS_NULL(hart_options_set_text_model(options, NULL), "path");
    IS_NULL(hart_options_set_weights(NULL, "ema"), "options");
    IS_NULL(hart_options_set_weights(options, NULL), "weights");
    IS_NULL(hart_options_set_memory_map(NULL, 1), "options");
    IS_NULL(hart_options_set_strict(NULL, 1), "options");
    IS_NULL(hart_options_set_threads(NULL, 1), "options");
    IS_NULL(hart_options_set_parallel(NULL, 1), "options");
    IS_NULL(hart_options_set_max_memory(NULL, 1), "options");
    IS_NULL(hart_options_set_keep_text_model(NULL, 1), "options");
    IS_NULL(hart_files_new(NULL), "files");
    IS_NULL(hart_files_add(NULL, "x", pixel, 3), "files");
    IS_NULL(hart_files_add(files, NULL, pixel, 3), "name");
    IS_NULL(hart_files_add(files, "x", NULL, 3), "data");
    IS_NULL(hart_files_add_reader(NULL, "x", 0, NULL, NULL, NULL), "files");
    IS_NULL(hart_files_add_reader(files, NULL, 0, NULL, NULL, NULL), "name");
    IS_NULL(hart_files_add_reader(files, "x", 0, NULL, NULL, NULL), "reader");
    no_model = (hart_model *)pixel;
    IS_NULL(hart_model_open(NULL, NULL, HART_ABI_VERSION, &no_model), "path");
    CHECK(no_model == NULL);
    IS_NULL(hart_model_open(path, NULL, HART_ABI_VERSION, NULL), "model");
    IS_NULL(hart_model_open_files(NULL, NULL, HART_ABI_VERSION, &no_model), "files");
    IS_NULL(hart_model_open_files(files, NULL, HART_ABI_VERSION, NULL), "model");
    IS_NULL(hart_model_share(NULL, &no_model), "model");
    IS_NULL(hart_model_share(model, NULL), "shared");
    IS_NULL(hart_model_describe(NULL, NULL), "model");
    IS_NULL(hart_model_describe(model, NULL), "info");
    IS_NULL(hart_model_memory(NULL, request, &weights, &peak), "model");
    CHECK(weights == 0 && peak == 0);
    OK(hart_model_memory(model, NULL, NULL, NULL));
    IS_NULL(hart_model_parallel(model, NULL), "parallel");
    IS_NULL(hart_model_parallel(NULL, &parallel), "model");
    CHECK(parallel == 0);
    IS_NULL(hart_model_warm_up(NULL), "model");
    OK(hart_model_warm_up(model));
    IS_NULL(hart_model_test_panic(NULL), "model");
    IS_NULL(hart_cancel_new(NULL), "cancel");
    CHECK(hart_cancel_request(NULL) == HART_ERR_NULL);
    IS_NULL(hart_cancel_reset(NULL), "cancel");
    IS_ZERO(hart_cancel_is_requested(NULL));
    no_image = (hart_image *)pixel;
    IS_NULL(hart_event_preview(NULL, 0, &no_image), "event");
    CHECK(no_image == NULL);
    IS_NULL(hart_event_preview(NULL, 0, NULL), "image");
    IS_NULL(hart_request_new(NULL), "request");
    IS_NULL(hart_request_set_prompt(NULL, "a"), "request");
    IS_NULL(hart_request_set_prompt(request, NULL), "prompt");
    IS_NULL(hart_request_add_prompt(NULL, "a"), "request");
    IS_NULL(hart_request_add_prompt(request, NULL), "prompt");
    IS_NULL(hart_request_set_images_per_prompt(NULL, 1), "request");
    IS_NULL(hart_request_set_seed(NULL, 1), "request");
    IS_NULL(hart_request_set_guidance(NULL, 1), "request");
    IS_NULL(hart_request_set_smoothing(NULL, 1), "request");
    IS_NULL(hart_request_set_top_k(NULL, 1), "request");
    IS_NULL(hart_request_set_top_p(NULL, 1), "request");
    IS_NULL(hart_request_set_steps(NULL, "8"), "request");
    IS_NULL(hart_request_set_steps(request, NULL), "steps");
    IS_NULL(hart_request_set_prune(NULL, "0.5"), "request");
    IS_NULL(hart_request_set_marks(NULL, "none"), "request");
    IS_NULL(hart_request_set_system_prompt(NULL, NULL), "request");
    IS_NULL(hart_request_set_inpaint(NULL, image, image, 0), "request");
    IS_NULL(hart_request_set_inpaint(request, image, NULL, 0), "mask");
    IS_NULL(hart_request_set_inpaint(request, NULL, image, 0), "image");
    IS_NULL(hart_request_set_outpaint(NULL, image, 0, 0), "request");
    IS_NULL(hart_request_set_variation(NULL, image, 1), "request");
    IS_NULL(hart_request_set_keep(NULL, HART_KEEP_PIXELS), "request");
    OK(hart_request_set_inpaint(request, NULL, NULL, 0));
    OK(hart_request_set_outpaint(request, NULL, 0, 0));
    OK(hart_request_set_variation(request, NULL, 1));
    IS_NULL(hart_request_set_observer(NULL, NULL, NULL, NULL), "request");
    OK(hart_request_set_observer(request, NULL, NULL, NULL));
    IS_NULL(hart_request_set_cancel(NULL, cancel), "request");
    OK(hart_request_set_cancel(request, NULL));
    IS_NULL(hart_request_set_context(NULL, context), "request");
    OK(hart_request_set_context(request, NULL));
    no_context = (hart_context *)pixel;
    IS_NULL(hart_encode(NULL, request, &no_context), "model");
    CHECK(no_context == NULL);
    IS_NULL(hart_encode(model, NULL, &no_context), "request");
    IS_NULL(hart_encode(model, request, NULL), "context");
    IS_ZERO(hart_context_count(NULL));
    IS_ZERO(hart_context_bytes(NULL));
    IS_NULL(hart_context_hidden(NULL, 0, &hidden, &count, &channels), "context");
    IS_NULL(hart_context_hidden(context, 0, NULL, &count, &channels), "hidden");
    IS_NULL(hart_context_hidden(context, 0, &hidden, NULL, &channels), "tokens");
    IS_NULL(hart_context_hidden(context, 0, &hidden, &count, NULL), "channels");
    IS_NULL(hart_context_mask(NULL, 0, &bytes, &count), "context");
    IS_NULL(hart_context_mask(context, 0, NULL, &count), "mask");
    IS_NULL(hart_context_mask(context, 0, &bytes, NULL), "tokens");
    no_result = (hart_result *)pixel;
    IS_NULL(hart_generate(NULL, request, &no_result), "model");
    CHECK(no_result == NULL);
    IS_NULL(hart_generate(model, NULL, &no_result), "request");
    IS_NULL(hart_generate(model, request, NULL), "result");
    IS_ZERO(hart_result_count(NULL));
    IS_NULL(hart_result_image(NULL, 0, &no_image), "result");
    IS_NULL(hart_result_image(result, 0, NULL), "image");
    IS_NULL(hart_result_timings(NULL, &timings), "result");
    IS_NULL(hart_result_timings(result, NULL), "timings");
    IS_ZERO(hart_result_truncation_count(NULL));
    IS_NULL(hart_result_truncation(NULL, 0, NULL), "result");
    IS_NULL(hart_image_new(1, 1, 0, NULL, &no_image), "pixels");
    IS_NULL(hart_image_new(1, 1, 0, pixel, NULL), "image");
    IS_NULL(hart_image_open(NULL, &no_image), "path");
    IS_NULL(hart_image_open(scratch, NULL), "image");
    IS_NULL(hart_image_open_memory(NULL, 1, &no_image), "data");
    IS_NULL(hart_image_open_memory(pixel, 1, NULL), "image");
    IS_NULL(hart_image_describe(NULL, &view), "image");
    IS_NULL(hart_image_describe(image, NULL), "view");
    IS_NULL(hart_image_save(NULL, scratch), "image");
    IS_NULL(hart_image_save(image, NULL), "path");
    IS_NULL(hart_image_encode(NULL, HART_FORMAT_PNG, 0, &bytes, &count), "image");
    IS_NULL(hart_image_encode(image, HART_FORMAT_PNG, 0, NULL, &count), "data");
    IS_NULL(hart_image_encode(image, HART_FORMAT_PNG, 0, &bytes, NULL), "size");
    IS_NULL(hart_image_png(NULL, &bytes, &count), "image");
    IS_NULL(hart_image_png(image, NULL, &count), "data");
    IS_NULL(hart_image_png(image, &bytes, NULL), "size");
    IS_NULL(hart_image_transparency(NULL, &no_image), "image");
    IS_NULL(hart_image_transparency(image, NULL), "mask");
    IS_NULL(hart_image_grid(NULL, 1, 1, &no_image), "images");
    IS_NULL(hart_image_grid((const hart_image *const *)&no_image, 1, 1, &no_image), "images[i]");
    IS_NULL(hart_image_grid((const hart_image *const *)&image, 1, 1, NULL), "grid");
    IS_NULL(hart_model_tokenize(NULL, image, &no_tokens), "model");
    IS_NULL(hart_model_tokenize(model, NULL, &no_tokens), "image");
    IS_NULL(hart_model_tokenize(model, image, NULL), "tokens");
    IS_ZERO(hart_tokens_scales(NULL));
    IS_NULL(hart_tokens_codes(NULL, 0, &codes, &count), "tokens");
    IS_NULL(hart_tokens_codes(tokens, 0, NULL, &count), "codes");
    IS_NULL(hart_tokens_codes(tokens, 0, &codes, NULL), "count");
    IS_NULL(hart_model_reconstruct(NULL, tokens, 1, &no_image), "model");
    IS_NULL(hart_model_reconstruct(model, NULL, 1, &no_image), "tokens");
    IS_NULL(hart_model_reconstruct(model, tokens, 1, NULL), "image");

    hart_device_list_free(NULL);
    hart_options_free(NULL);
    hart_files_free(NULL);
    hart_model_free(NULL);
    hart_cancel_free(NULL);
    hart_request_free(NULL);
    hart_result_free(NULL);
    hart_image_free(NULL);
    hart_tokens_free(NULL);
    hart_context_free(NULL);
    HART_FREE(context, context);
    HART_FREE(tokens, tokens);
    HART_FREE(image, image);
    HART_FREE(result, result);
    HART_FREE(request, request);
    HART_FREE(cancel, cancel);
    HART_FREE(files, files);
    HART_FREE(options, options);
    HART_FREE(device_list, list);
}

static void wrong_arguments(const hart_model *model, const char *path) {
    hart_request *request = NULL;
    hart_options *options = NULL;
    hart_cancel *cancel = NULL;
    hart_model *other = NULL;
    hart_result *result = NULL;
    hart_image *image = NULL;
    OK(hart_request_new(&request));
    OK(hart_options_new(&options));
    OK(hart_cancel_new(&cancel));

    /* A request without a prompt. */
    FAILS(hart_generate(model, request, &result), HART_ERR_REQUEST, "prompt");
    CHECK(result == NULL);
    /* Objects of another type. */
    FAILS(hart_generate((const hart_model *)(void *)request, request, &result), HART_ERR_ARGUMENT, "`model` is not a hart_model");
    FAILS(hart_generate(model, (const hart_request *)(const void *)cancel, &result), HART_ERR_ARGUMENT, "`request` is not a hart_request");
    hart_image_free((hart_image *)(void *)request);
    OK(hart_request_set_prompt(request, "a house"));
    /* Strings. */
    FAILS(hart_request_set_prompt(request, "caf\xe9"), HART_ERR_UTF8, "from byte 3 on");
    FAILS(hart_request_set_prompt(request, " \n"), HART_ERR_REQUEST, "empty");
    FAILS(hart_request_add_prompt(request, ""), HART_ERR_REQUEST, "number 2 is empty");
    FAILS(hart_request_set_steps(request, "many"), HART_ERR_REQUEST, "many");
    FAILS(hart_request_set_prune(request, "half"), HART_ERR_REQUEST, "half");
    FAILS(hart_request_set_marks(request, "promt"), HART_ERR_REQUEST, "expected all, none, or names");
    FAILS(hart_request_set_prune(request, "0.5,1"), HART_ERR_REQUEST, "ratio 2 is 1");
    /* Settings. An invalid one leaves the request unchanged. */
    FAILS(hart_request_set_guidance(request, 0.0 / 0.0 * 1.0), HART_ERR_REQUEST, "guidance");
    FAILS(hart_request_set_guidance(request, 1e300), HART_ERR_REQUEST, "guidance");
    FAILS(hart_request_set_top_p(request, 1.5), HART_ERR_REQUEST, "top-p");
    FAILS(hart_request_set_top_k(request, 0), HART_ERR_REQUEST, "top-k");
    FAILS(hart_request_set_images_per_prompt(request, 0), HART_ERR_REQUEST, "images");
    FAILS(hart_request_set_images_per_prompt(request, UINT32_MAX), HART_ERR_REQUEST, "images");
    OK(hart_generate(model, request, &result));
    CHECK(hart_result_count(result) == 1);
    FAILS(hart_result_image(result, 1, &image), HART_ERR_ARGUMENT, "1 images");
    CHECK(image == NULL);
    HART_FREE(result, result);
    /* Models. */
    FAILS(hart_model_open("no such folder", NULL, HART_ABI_VERSION, &other), HART_ERR_CHECKPOINT, "no such folder: pass");
    FAILS(hart_model_open(path, NULL, HART_ABI_VERSION + 1, &other), HART_ERR_ABI, "newer hart");
    FAILS(hart_options_set_device(options, "abacus"), HART_ERR_DEVICE, "abacus");
    FAILS(hart_options_set_precision(options, "f7"), HART_ERR_ARGUMENT, "f7");
    FAILS(hart_options_set_weights(options, "heavy"), HART_ERR_ARGUMENT, "heavy");
    FAILS(hart_options_set_threads(options, 100000), HART_ERR_ARGUMENT, "100000");
    OK(hart_options_set_max_memory(options, 1000));
    FAILS(hart_model_open(path, options, HART_ABI_VERSION, &other), HART_ERR_MEMORY, "opening this model");
    CHECK(other == NULL);
    /* Images. */
    uint8_t pixel[3] = {0};
    FAILS(hart_image_new(0, 1, 0, pixel, &image), HART_ERR_ARGUMENT, "at least one pixel");
    FAILS(hart_image_new(1, 1, 2, pixel, &image), HART_ERR_ARGUMENT, "stride");
    FAILS(hart_image_new(UINT32_MAX, UINT32_MAX, SIZE_MAX, pixel, &image), HART_ERR_ARGUMENT, "at least one pixel");
    FAILS(hart_image_new(UINT32_MAX, UINT32_MAX, 0, pixel, &image), HART_ERR_ARGUMENT, "4294967295");
    FAILS(hart_image_open("no such file.png", &image), HART_ERR_IO, "no such file.png");
    FAILS(hart_image_grid((const hart_image *const *)&image, 0, 1, &image), HART_ERR_REQUEST, "grid");
    /* The message is copied completely or cut. */
    char text[200];
    size_t needed = 0;
    OK(hart_last_error_copy(NULL, 0, &needed));
    CHECK(needed == strlen(hart_last_error()) + 1 && needed <= sizeof text);
    OK(hart_last_error_copy(text, sizeof text, NULL));
    CHECK(strcmp(text, hart_last_error()) == 0);
    OK(hart_last_error_copy(text, 5, &needed));
    CHECK(strlen(text) == 4);

    HART_FREE(cancel, cancel);
    HART_FREE(options, options);
    HART_FREE(request, request);
}

struct observed {
    const hart_model *model;
    hart_request *request;
    hart_image *preview; /* The last one. */
    hart_event last;
    int previews, events, cancel_after;
};

static int32_t on_event(const hart_event *event, void *user_data) {
    struct observed *observed = user_data;
    CHECK(event->struct_size == sizeof *event);
    CHECK(event->fraction >= observed->last.fraction && event->fraction <= 1.0f);
    CHECK(event->elapsed >= observed->last.elapsed);
    CHECK(event->stage >= HART_STAGE_TEXT && event->stage <= HART_STAGE_DECODE);
    CHECK(event->step >= HART_STEP_TEXT_LAYER && event->step <= HART_STEP_IMAGES);
    CHECK(event->index >= 1 && event->index <= event->count && event->scale <= event->scales);
    int has_preview = event->step == HART_STEP_SCALE_DONE || event->step == HART_STEP_IMAGES;
    CHECK(event->has_preview == has_preview);
    hart_image *image = NULL;
    if (event->has_preview) {
        observed->previews++;
        HART_FREE(image, observed->preview);
        OK(hart_event_preview(event, 16, &image));
        hart_image_view view = view_of(image);
        CHECK(view.width <= 16 && view.height == view.width && (brief || view.width == 16));
        HART_FREE(image, image);
        OK(hart_event_preview(event, 0, &observed->preview));
    } else {
        FAILS(hart_event_preview(event, 0, &image), HART_ERR_STATE, "no preview");
    }
    if (observed->events++ == 0) {
        /* The running request can't be changed or run, another one can. */
        hart_result *result = NULL;
        FAILS(hart_request_set_seed(observed->request, 9), HART_ERR_STATE, "running");
        FAILS(hart_generate(observed->model, observed->request, &result), HART_ERR_STATE, "running");
        hart_request *inner = new_request("a key", 1);
        HART_FREE(image, image);
        image = image_of(observed->model, inner);
        HART_FREE(image, image);
        HART_FREE(request, inner);
    }
    observed->last = *event;
    return observed->cancel_after != 0 && observed->events >= observed->cancel_after;
}

static void events(const hart_model *model) {
    hart_request *request = new_request("a red heart", 3);
    hart_image *alone = image_of(model, request);
    struct observed observed = {.model = model, .request = request};
    OK(hart_request_set_observer(request, on_event, &observed, NULL));
    hart_image *watched = image_of(model, request);
    hart_model_info info = {.struct_size = sizeof info};
    OK(hart_model_describe(model, &info));
    CHECK(observed.previews == (int)info.scales + 1);
    CHECK(observed.last.step == HART_STEP_IMAGES && observed.last.index == 1 && observed.last.fraction > 0.99f);
    CHECK(same_pixels(alone, watched));
    CHECK(same_pixels(alone, observed.preview));
    CHECK(view_of(alone).seed == 3 && strcmp(view_of(alone).prompt, "a red heart") == 0);
    CHECK(strstr(view_of(alone).settings, "guidance") != NULL);
    /* An event after its callback. */
    hart_image *late = NULL;
    FAILS(hart_event_preview(&observed.last, 0, &late), HART_ERR_STATE, "no callback");
    HART_FREE(image, observed.preview);
    /* A callback that cancels after the first of three images. The finished image is in the result. */
    int per_image = observed.events;
    observed = (struct observed){.model = model, .request = request, .cancel_after = per_image + 5};
    hart_result *result = NULL;
    OK(hart_request_set_images_per_prompt(request, 3));
    FAILS(hart_generate(model, request, &result), HART_CANCELLED, "1 of 3 images");
    CHECK(hart_result_count(result) == 1);
    hart_image *finished = NULL;
    OK(hart_result_image(result, 0, &finished));
    CHECK(same_pixels(alone, finished));
    HART_FREE(result, result);
    HART_FREE(image, finished);
    HART_FREE(image, observed.preview);
    HART_FREE(image, watched);
    HART_FREE(image, alone);
    HART_FREE(request, request);
}

struct alternating {
    float fraction;
    double elapsed;
    uint32_t finished, cancel_after, last_image, changes, scale[4];
};

static int32_t on_alternating_event(const hart_event *event, void *user_data) {
    struct alternating *seen = user_data;
    CHECK(event->fraction >= seen->fraction && event->fraction <= 1.0f && event->elapsed >= seen->elapsed);
    seen->fraction = event->fraction;
    seen->elapsed = event->elapsed;
    CHECK(event->image_index < 4 && event->reserved == 0);
    seen->changes += event->image_index != seen->last_image;
    seen->last_image = event->image_index;
    /* The scale is that of the event's image. */
    if (event->step == HART_STEP_SCALE) seen->scale[event->image_index] = event->index;
    CHECK(event->scale == seen->scale[event->image_index]);
    if (event->step == HART_STEP_IMAGES) {
        /* Images are finished in the order of the result. */
        CHECK(event->index == ++seen->finished && event->image_index == event->index - 1 && event->count == 4);
        return seen->finished == seen->cancel_after;
    }
    return 0;
}

/* Images that are generated at once are those that are generated one by one. */
static void side_by_side(const char *path) {
    hart_model *one = open_parallel(path, 1), *two = open_parallel(path, 2);
    uint32_t parallel = 0;
    OK(hart_model_parallel(one, &parallel));
    CHECK(parallel == 1);
    OK(hart_model_parallel(two, &parallel));
    CHECK(parallel == 2);
    hart_request *request = new_request("a red heart", 3);
    struct alternating seen = {0};
    hart_result *expected = NULL, *result = NULL;
    OK(hart_request_set_images_per_prompt(request, 4));
    OK(hart_generate(one, request, &expected));
    OK(hart_request_set_observer(request, on_alternating_event, &seen, NULL));
    OK(hart_generate(two, request, &result));
    CHECK(seen.finished == 4 && seen.fraction == 1.0f && seen.changes > 4);
    for (size_t i = 0; i < 4; i++) {
        hart_image *a = NULL, *b = NULL;
        OK(hart_result_image(expected, i, &a));
        OK(hart_result_image(result, i, &b));
        CHECK(same_pixels(a, b) && view_of(b).seed == 3 + i);
        HART_FREE(image, a);
        HART_FREE(image, b);
    }
    HART_FREE(result, result);
    /* The images that were finished before the callback cancelled are in the result. */
    seen = (struct alternating){.cancel_after = 2};
    FAILS(hart_generate(two, request, &result), HART_CANCELLED, "2 of 4 images");
    CHECK(hart_result_count(result) == 2);
    HART_FREE(result, result);
    HART_FREE(result, expected);
    HART_FREE(request, request);
    HART_FREE(model, two);
    HART_FREE(model, one);

    hart_options *options = NULL;
    OK(hart_options_new(&options));
    OK(hart_options_set_threads(options, 2));
    OK(hart_options_set_parallel(options, 3));
    FAILS(hart_model_open(path, options, HART_ABI_VERSION, &one), HART_ERR_REQUEST, "3, expected 1 to 2");
    HART_FREE(options, options);
}

struct objects {
    hart_model *model;
    hart_request *request;
    hart_cancel *cancel;
};

static int32_t free_all(const hart_event *event, void *user_data) {
    struct objects *objects = user_data;
    (void)event;
    HART_FREE(model, objects->model);
    HART_FREE(request, objects->request);
    HART_FREE(cancel, objects->cancel);
    return 0;
}

/* A callback that frees the model, the request and the token of its own run. */
static void free_in_callback(const char *path) {
    struct objects objects = {.model = open_model(path), .request = new_request("a house", 0)};
    hart_result *result = NULL;
    OK(hart_cancel_new(&objects.cancel));
    OK(hart_request_set_cancel(objects.request, objects.cancel));
    OK(hart_request_set_observer(objects.request, free_all, &objects, NULL));
    OK(hart_generate(objects.model, objects.request, &result));
    CHECK(objects.model == NULL && hart_result_count(result) == 1);
    HART_FREE(result, result);
}

static void settings(const hart_model *model) {
    hart_request *request = new_request("a panda", 0);
    hart_result *result = NULL;
    hart_image *image = NULL;
    OK(hart_request_add_prompt(request, "a crown"));
    OK(hart_request_set_images_per_prompt(request, 2));
    OK(hart_request_set_seed(request, UINT64_MAX));
    OK(hart_request_set_guidance(request, 2.0));
    OK(hart_request_set_smoothing(request, 1));
    OK(hart_request_set_top_k(request, 20));
    OK(hart_request_set_top_p(request, 0.9));
    OK(hart_request_set_steps(request, "4"));
    OK(hart_request_set_prune(request, "0.5"));
    OK(hart_request_set_system_prompt(request, "Draw: "));
    OK(hart_request_set_system_prompt(request, ""));
    OK(hart_generate(model, request, &result));
    CHECK(hart_result_count(result) == 4);
    OK(hart_result_image(result, 3, &image));
    hart_image_view view = view_of(image);
    CHECK(view.seed == 0 && strcmp(view.prompt, "a crown") == 0);
    CHECK(strcmp(view.settings, "guidance 2, smoothing true, top-k 20, top-p 0.9, steps 4, system prompt none, prune 0.5") == 0);
    hart_timings timings = {.struct_size = sizeof timings};
    OK(hart_result_timings(result, &timings));
    double parts = timings.text + timings.transformer + timings.sampling + timings.residual + timings.decode;
    CHECK(timings.total > 0 && timings.transformer > 0 && parts <= timings.total * 1.000001);
    CHECK(hart_result_truncation_count(result) == 0);
    hart_truncation truncation = {.struct_size = sizeof truncation};
    FAILS(hart_result_truncation(result, 0, &truncation), HART_ERR_ARGUMENT, "0 prompts were cut");
    HART_FREE(result, result);
    CHECK(view_of(image).seed == 0); /* The image outlives its result. */

    /* The settings of an image generate it again. */
    hart_request *again = NULL;
    IS_NULL(hart_request_again(NULL, &again), "image");
    IS_NULL(hart_request_again(image, NULL), "request");
    OK(hart_request_again(image, &again));
    OK(hart_request_set_marks(again, "none"));
    OK(hart_generate(model, again, &result));
    hart_image *same = NULL;
    OK(hart_result_image(result, 0, &same));
    hart_image_view expected = view_of(image), repeated = view_of(same);
    hart_model_info info = {.struct_size = sizeof info};
    OK(hart_model_describe(model, &info));
    CHECK(strcmp(expected.model_fingerprint, info.fingerprint) == 0);
    CHECK(repeated.size == expected.size && memcmp(repeated.pixels, expected.pixels, expected.size) == 0);
    CHECK(strcmp(repeated.settings, expected.settings) == 0 && strcmp(repeated.prompt, "a crown") == 0);
    const uint8_t *file = NULL;
    size_t file_size = 0;
    OK(hart_image_png(same, &file, &file_size));
    HART_FREE(result, result);
    HART_FREE(request, again);
    hart_image *unmarked = NULL;
    OK(hart_image_open_memory(file, file_size, &unmarked));
    FAILS(hart_request_again(unmarked, &again), HART_ERR_REQUEST, "has no settings of hart");
    CHECK(again == NULL);
    HART_FREE(image, unmarked);
    HART_FREE(image, same);
    HART_FREE(image, image);

    /* A prompt that is far too long. */
    char *prompt = malloc(20000);
    CHECK(prompt != NULL);
    for (int i = 0; i < 19999; i += 7) memcpy(prompt + i, "parrots ", 8);
    prompt[19999] = '\0';
    OK(hart_request_set_prompt(request, prompt));
    OK(hart_request_set_images_per_prompt(request, 1));
    OK(hart_request_set_system_prompt(request, NULL));
    OK(hart_generate(model, request, &result));
    CHECK(hart_result_truncation_count(result) == 1);
    OK(hart_result_truncation(result, 0, &truncation));
    CHECK(truncation.prompt == 0 && truncation.tokens > truncation.kept && truncation.kept > 0 && strlen(truncation.cut) > 1000);
    free(prompt);
    HART_FREE(result, result);
    HART_FREE(request, request);
}

static void memory(const char *path) {
    hart_model *model = open_parallel(path, 1);
    hart_model_info info = {.struct_size = sizeof info};
    uint64_t weights = 0, peak = 0, more = 0;
    OK(hart_model_describe(model, &info));
    OK(hart_model_memory(model, NULL, &weights, &peak));
    /* Weights stay in half precision where the files have them so, and those of stages that are done do not count. */
    CHECK(weights > 2 * info.parameters && weights <= 4 * info.parameters && peak > weights);
    hart_request *request = new_request("a house", 0);
    OK(hart_request_set_images_per_prompt(request, 100));
    OK(hart_model_memory(model, request, NULL, &more));
    CHECK(more == peak + 99 * 3 * info.width * info.height);
    HART_FREE(model, model);
    /* Images that are generated at once need memory at once. */
    uint64_t two = 0;
    model = open_parallel(path, 2);
    OK(hart_model_memory(model, NULL, NULL, &two));
    CHECK(two == peak);
    OK(hart_model_memory(model, request, &weights, &two));
    CHECK(two - weights > more - weights + info.width * info.height);
    HART_FREE(model, model);

    hart_options *options = NULL;
    hart_result *result = NULL;
    OK(hart_options_new(&options));
    OK(hart_options_set_device(options, "cpu"));
    OK(hart_options_set_precision(options, "f32"));
    OK(hart_options_set_weights(options, "plain"));
    OK(hart_options_set_memory_map(options, 0));
    OK(hart_options_set_strict(options, 1));
    OK(hart_options_set_keep_text_model(options, 1));
    /* One thread, and a callback that generates with the same model. */
    OK(hart_options_set_threads(options, 1));
    OK(hart_model_open(path, options, HART_ABI_VERSION, &model));
    OK(hart_model_memory(model, NULL, NULL, &peak));
    HART_FREE(model, model);
    OK(hart_options_set_max_memory(options, peak - 1));
    FAILS(hart_model_open(path, options, HART_ABI_VERSION, &model), HART_ERR_MEMORY, "an image of this model");
    OK(hart_options_set_max_memory(options, peak));
    OK(hart_model_open(path, options, HART_ABI_VERSION, &model));
    FAILS(hart_generate(model, request, &result), HART_ERR_MEMORY, "this request");
    OK(hart_request_set_images_per_prompt(request, 1));
    struct observed observed = {.model = model, .request = request};
    OK(hart_request_set_observer(request, on_event, &observed, NULL));
    hart_image *image = image_of(model, request);
    CHECK(same_pixels(image, observed.preview));
    HART_FREE(image, observed.preview);
    HART_FREE(image, image);
    HART_FREE(model, model);
    /* No limit, the shared threads, and another folder for the text model. */
    char text[4096];
    snprintf(text, sizeof text, "%s/text", path);
    OK(hart_options_set_max_memory(options, 0));
    OK(hart_options_set_threads(options, 0));
    OK(hart_options_set_text_model(options, text));
    OK(hart_model_open(path, options, HART_ABI_VERSION, &model));
    HART_FREE(model, model);
    HART_FREE(options, options);
    HART_FREE(request, request);
}

static int32_t read_file(void *user_data, uint64_t offset, uint8_t *buffer, size_t size) {
    FILE *file = user_data;
    return fseek(file, (long)offset, SEEK_SET) != 0 || fread(buffer, 1, size, file) != size;
}

static int32_t fail_to_read(void *user_data, uint64_t offset, uint8_t *buffer, size_t size) {
    (void)user_data, (void)offset, (void)buffer, (void)size;
    return 5;
}

/* The same model from files in memory, half of them through a reader. */
static void files_in_memory(const char *path) {
    hart_files *files = NULL;
    hart_options *options = NULL;
    hart_model *model = NULL, *copy = NULL;
    OK(hart_options_new(&options));
    OK(hart_options_set_weights(options, "plain"));
    OK(hart_model_open(path, options, HART_ABI_VERSION, &model));
    OK(hart_files_new(&files));
    FAILS(hart_model_open_files(files, NULL, HART_ABI_VERSION, &copy), HART_ERR_CHECKPOINT, "config.json: no such file");
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%s", path, FILES[i]);
        FILE *file = fopen(name, "rb");
        if (file == NULL && strstr(name, "generation_config") != NULL) continue; /* Optional. */
        CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
        size_t size = (size_t)ftell(file);
        if (i % 2 == 0) {
            OK(hart_files_add_reader(files, FILES[i], size, read_file, file, NULL));
        } else {
            uint8_t *data = malloc(size);
            CHECK(data != NULL && read_file(file, 0, data, size) == 0);
            OK(hart_files_add(files, FILES[i], data, size));
            free(data);
        }
        fclose(file);
    }
    FAILS(hart_files_add(files, "../outside", NULL, 0), HART_ERR_REQUEST, "below the checkpoint's root");
    FAILS(hart_files_add(files, FILES[0], NULL, 0), HART_ERR_REQUEST, "already");
    FAILS(hart_files_add_reader(files, "x", 10, fail_to_read, NULL, NULL), HART_ERR_IO, "returned 5");
    FAILS(hart_files_add_reader(files, "x", UINT64_MAX / 4, read_file, NULL, NULL), HART_ERR_MEMORY, "no memory");
    OK(hart_model_open_files(files, options, HART_ABI_VERSION, &copy));
    HART_FREE(files, files);
    HART_FREE(options, options);
    hart_request *request = new_request("a guitar", 5);
    hart_image *a = image_of(model, request), *b = image_of(copy, request);
    CHECK(same_pixels(a, b));
    HART_FREE(image, a);
    HART_FREE(image, b);
    HART_FREE(request, request);
    HART_FREE(model, copy);
    HART_FREE(model, model);
}

static void images(const hart_model *model, const char *scratch) {
    /* Rows with padding. */
    uint8_t padded[2][8] = {{1, 2, 3, 4, 5, 6, 99, 99}, {7, 8, 9, 10, 11, 12, 99, 99}};
    hart_image *small = NULL, *again = NULL, *grid = NULL;
    OK(hart_image_new(2, 2, 8, padded[0], &small));
    hart_image_view view = view_of(small);
    CHECK(view.width == 2 && view.height == 2 && view.channels == 3 && view.stride == 6 && view.size == 12);
    CHECK(view.pixels[5] == 6 && view.pixels[6] == 7 && view.prompt == NULL && view.settings == NULL && view.seed == 0);
    CHECK(view.model_fingerprint == NULL);
    char name[4096];
    snprintf(name, sizeof name, "%s/caf\xc3\xa9.png", scratch);
    OK(hart_image_save(small, name));
    OK(hart_image_open(name, &again));
    CHECK(same_pixels(small, again));
    const uint8_t *png = NULL, *same = NULL;
    size_t size = 0;
    OK(hart_image_png(small, &png, &size));
    OK(hart_image_png(small, &same, &size));
    CHECK(png == same && size > 8 && memcmp(png, "\x89PNG\r\n\x1a\n", 8) == 0);
    hart_image *copy = NULL;
    OK(hart_image_open_memory(png, size, &copy));
    CHECK(same_pixels(small, copy));
    HART_FREE(image, copy);
    FAILS(hart_image_open_memory(png, size / 2, &copy), HART_ERR_IMAGE, "in memory");
    /* Other formats: the ending chooses, and the bytes are those of the file. */
    const char *endings[3] = {"PNG", "jpeg", "webp"};
    for (hart_image_format format = HART_FORMAT_PNG; format <= HART_FORMAT_WEBP; format++) {
        const uint8_t *bytes = NULL, *again_bytes = NULL;
        size_t length = 0, again_length = 0;
        OK(hart_image_encode(small, format, 0, &bytes, &length));
        OK(hart_image_encode(small, format, 0, &again_bytes, &again_length));
        CHECK(bytes == again_bytes && length == again_length && length > 8);
        snprintf(name, sizeof name, "%s/small.%s", scratch, endings[format]);
        OK(hart_image_save(small, name));
        OK(hart_image_open(name, &copy));
        CHECK(view_of(copy).width == 2 && (format == HART_FORMAT_JPEG || same_pixels(small, copy)));
        HART_FREE(image, copy);
        OK(hart_image_open_memory(bytes, length, &copy));
        HART_FREE(image, copy);
    }
    const uint8_t *poor = NULL, *good = NULL;
    size_t poor_size = 0, good_size = 0;
    OK(hart_image_encode(small, HART_FORMAT_JPEG, 90, &good, &good_size));
    OK(hart_image_encode(small, HART_FORMAT_JPEG, 1, &poor, &poor_size));
    CHECK(good != poor && memcmp(poor, "\xff\xd8\xff", 3) == 0 && memcmp(good, "\xff\xd8\xff", 3) == 0);
    FAILS(hart_image_encode(small, HART_FORMAT_JPEG, 101, &good, &good_size), HART_ERR_ARGUMENT, "expected 0 to 100");
    FAILS(hart_image_encode(small, 3, 0, &good, &good_size), HART_ERR_ARGUMENT, "HART_FORMAT_WEBP");
    FAILS(hart_image_save(small, "small.gif"), HART_ERR_REQUEST, "small.gif ends in .gif, expected");
    FAILS(hart_image_save(small, "small"), HART_ERR_REQUEST, "small has no ending");
    FAILS(hart_image_save(small, ""), HART_ERR_REQUEST, "the name is empty");
    const hart_image *both[3] = {small, again, small};
    OK(hart_image_grid(both, 3, 2, &grid));
    CHECK(view_of(grid).width == 4 && view_of(grid).height == 4);
    FAILS(hart_image_save(small, "no such folder/x.png"), HART_ERR_IO, "no such folder");
    snprintf(name, sizeof name, "%s/no.png", scratch);
    FILE *file = fopen(name, "wb");
    CHECK(file != NULL && fputs("not an image", file) >= 0);
    fclose(file);
    HART_FREE(image, again);
    FAILS(hart_image_open(name, &again), HART_ERR_IMAGE, "no.png");

    /* Images to tokens and back. */
    hart_tokens *tokens = NULL;
    FAILS(hart_model_tokenize(model, small, &tokens), HART_ERR_REQUEST, "has 2 x 2 pixels, the model reads");
    hart_request *request = new_request("a house", 2);
    hart_image *image = image_of(model, request), *hybrid = NULL, *codes_only = NULL;
    OK(hart_model_tokenize(model, image, &tokens));
    OK(hart_image_png(image, &png, &size));
    OK(hart_image_open_memory(png, size, &copy));
    CHECK(view_of(copy).seed == 2 && strcmp(view_of(copy).prompt, "a house") == 0 && view_of(copy).settings != NULL);
    HART_FREE(image, copy);
    hart_model_info info = {.struct_size = sizeof info};
    OK(hart_model_describe(model, &info));
    CHECK(hart_tokens_scales(tokens) == info.scales);
    for (size_t scale = 0; scale < info.scales; scale++) {
        const uint32_t *codes = NULL;
        size_t count = 0;
        OK(hart_tokens_codes(tokens, scale, &codes, &count));
        CHECK(count >= 1 && (scale != 0 || count == 1));
        for (size_t i = 0; i < count; i++) CHECK(codes[i] < info.codes);
    }
    const uint32_t *codes = NULL;
    size_t count = 0;
    FAILS(hart_tokens_codes(tokens, info.scales, &codes, &count), HART_ERR_ARGUMENT, "scales");
    OK(hart_model_reconstruct(model, tokens, 1, &hybrid));
    OK(hart_model_reconstruct(model, tokens, 0, &codes_only));
    double errors[2] = {0, 0};
    for (size_t i = 0; i < view_of(image).size; i++) {
        errors[0] += abs(view_of(image).pixels[i] - view_of(hybrid).pixels[i]);
        errors[1] += abs(view_of(image).pixels[i] - view_of(codes_only).pixels[i]);
    }
    /* Random weights reconstruct nothing. */
    CHECK(brief || (errors[0] < errors[1] && errors[0] / (64 * 64 * 3) < 20));
    HART_FREE(tokens, tokens);
    HART_FREE(image, hybrid);
    HART_FREE(image, codes_only);
    HART_FREE(image, image);
    HART_FREE(image, grid);
    HART_FREE(image, small);
    HART_FREE(request, request);
}

/* Generation from an image. */
static void editing(const hart_model *model) {
    /* A PNG file. */
    static const uint8_t layer[] = {
        137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 2, 0, 0, 0, 1,
        8, 6, 0, 0, 0, 244, 34, 127, 138, 0, 0, 0, 26, 101, 88, 73, 102, 77, 77, 0, 42, 0, 0, 0,
        8, 0, 1, 1, 18, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 214, 103, 75, 105, 0,
        0, 0, 17, 73, 68, 65, 84, 120, 156, 99, 248, 255, 255, 255, 127, 6, 6, 6, 6, 0, 25, 239, 3, 253,
        150, 18, 118, 43, 0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96, 130};
    hart_request *request = new_request("a red heart", 3);
    hart_image *image = image_of(model, request), *mask = NULL, *edited = NULL, *corner = NULL;
    hart_image_view view = view_of(image);
    hart_result *result = NULL;
    uint8_t *white = calloc(view.size, 1);
    CHECK(white != NULL);
    memset(white, 255, view.stride); /* The first row. */
    OK(hart_image_new(view.width, view.height, 0, white, &mask));
    OK(hart_request_set_inpaint(request, image, mask, 0));
    OK(hart_request_set_seed(request, 8));
    edited = image_of(model, request);
    CHECK(!same_pixels(image, edited) && strstr(view_of(edited).settings, "inpainting") != NULL);
    /* All rows but the first stay. */
    CHECK(memcmp(view.pixels + view.stride, view_of(edited).pixels + view.stride, view.size - view.stride) == 0);
    HART_FREE(image, edited);
    OK(hart_request_set_keep(request, HART_KEEP_LATENT));
    edited = image_of(model, request);
    CHECK(strstr(view_of(edited).settings, "keep latent") != NULL);
    CHECK(memcmp(view.pixels + view.stride, view_of(edited).pixels + view.stride, view.size - view.stride) != 0);
    HART_FREE(image, edited);
    OK(hart_request_set_keep(request, HART_KEEP_PIXELS));
    /* Stored with a white pixel and a transparent one; EXIF turns it to the right. */
    OK(hart_image_open_memory(layer, sizeof layer, &corner));
    CHECK(view_of(corner).width == 1 && view_of(corner).height == 2);
    OK(hart_image_transparency(corner, &edited));
    CHECK(memcmp(view_of(edited).pixels, "\0\0\0\xff\xff\xff", 6) == 0);
    HART_FREE(image, edited);
    HART_FREE(image, corner);
    OK(hart_request_set_variation(request, image, 1));
    HART_FREE(image, image); /* The request keeps it. */
    edited = image_of(model, request);
    CHECK(strstr(view_of(edited).settings, "variation") != NULL);
    HART_FREE(image, edited);
    OK(hart_image_new(2, 1, 0, white, &corner));
    OK(hart_request_set_outpaint(request, corner, 0, 0));
    edited = image_of(model, request);
    CHECK(strstr(view_of(edited).settings, "outpainting") != NULL);
    HART_FREE(image, edited);
    /* Whether the image fits the model is checked by hart_generate. */
    OK(hart_request_set_outpaint(request, corner, view.width, 0));
    FAILS(hart_generate(model, request, &result), HART_ERR_REQUEST, "reach beyond");
    OK(hart_request_set_variation(request, corner, 1));
    FAILS(hart_generate(model, request, &result), HART_ERR_REQUEST, "resize it");
    OK(hart_request_set_inpaint(request, mask, corner, 0));
    FAILS(hart_generate(model, request, &result), HART_ERR_REQUEST, "its mask 2 x 1");
    FAILS(hart_request_set_keep(request, 2), HART_ERR_ARGUMENT, "expected HART_KEEP_PIXELS");
    OK(hart_request_set_inpaint(request, NULL, NULL, 0));
    edited = image_of(model, request);
    CHECK(strstr(view_of(edited).settings, "painting") == NULL);
    HART_FREE(image, edited);
    HART_FREE(image, corner);
    HART_FREE(image, mask);
    HART_FREE(request, request);
    free(white);
}

/* Counts the events of the text encoder and of the other stages, and cancels a run in the text encoder if `cancel` is set. */
struct stages {
    int text, others, cancel;
};

static int32_t count_stages(const hart_event *event, void *user_data) {
    struct stages *stages = user_data;
    *(event->stage == HART_STAGE_TEXT ? &stages->text : &stages->others) += 1;
    return stages->cancel;
}

/* Encoded prompts. */
static void contexts(const hart_model *model, const char *path) {
    hart_model_info info = {.struct_size = sizeof info};
    OK(hart_model_describe(model, &info));
    hart_request *request = new_request("a banana", 4), *other_request = NULL;
    OK(hart_request_add_prompt(request, "a crown"));
    OK(hart_request_set_system_prompt(request, "Draw: "));
    hart_result *result = NULL;
    hart_image *expected = NULL, *image = NULL;
    OK(hart_generate(model, request, &result));
    OK(hart_result_image(result, 1, &expected));
    HART_FREE(result, result);

    struct stages stages = {0};
    hart_context *context = NULL, *none = NULL;
    OK(hart_request_set_observer(request, count_stages, &stages, NULL));
    OK(hart_encode(model, request, &context));
    CHECK(stages.text > 0 && stages.others == 0);
    CHECK(hart_context_count(context) == 2);
    const float *hidden[2] = {NULL, NULL}, *again = NULL;
    const uint8_t *mask = NULL;
    size_t tokens = 0, channels = 0, length = 0;
    for (size_t i = 0; i < 2; i++) {
        OK(hart_context_hidden(context, i, &hidden[i], &tokens, &channels));
        OK(hart_context_mask(context, i, &mask, &length));
        CHECK(tokens == info.context_tokens && length == tokens && channels > 0);
        CHECK(mask[0] == 1 && mask[length - 1] == 0);
        for (size_t k = 0; k < length; k++) CHECK(mask[k] <= 1);
    }
    CHECK(memcmp(hidden[0], hidden[1], tokens * channels * sizeof(float)) != 0);
    OK(hart_context_hidden(context, 0, &again, &tokens, &channels));
    CHECK(again == hidden[0]);
    CHECK(hart_context_bytes(context) >= 2 * tokens * channels * sizeof(float));
    FAILS(hart_context_hidden(context, 2, &again, &tokens, &channels), HART_ERR_ARGUMENT, "2 prompts");
    CHECK(again == NULL && tokens == 0 && channels == 0);
    FAILS(hart_context_mask(context, SIZE_MAX, &mask, &tokens), HART_ERR_ARGUMENT, "2 prompts");
    CHECK(mask == NULL && tokens == 0);

    /* A request that has no prompts of its own, for which the context may be freed. */
    OK(hart_request_new(&other_request));
    OK(hart_request_set_seed(other_request, 4));
    OK(hart_request_set_observer(other_request, count_stages, &stages, NULL));
    OK(hart_request_set_context(other_request, context));
    HART_FREE(context, context);
    stages = (struct stages){0};
    OK(hart_generate(model, other_request, &result));
    CHECK(hart_result_count(result) == 2 && stages.text == 0 && stages.others > 0);
    OK(hart_result_image(result, 1, &image));
    CHECK(same_pixels(image, expected) && strcmp(view_of(image).settings, view_of(expected).settings) == 0);
    CHECK(strcmp(view_of(image).prompt, "a crown") == 0);
    HART_FREE(image, image);
    HART_FREE(result, result);

    /* Other prompts contradict the context; all other settings can be changed. */
    FAILS(hart_request_set_prompt(other_request, "a house"), HART_ERR_REQUEST, "the context encodes 2");
    FAILS(hart_request_add_prompt(other_request, "a house"), HART_ERR_REQUEST, "the context encodes 2");
    FAILS(hart_request_set_system_prompt(other_request, NULL), HART_ERR_REQUEST, "the context was encoded with \"Draw:\"");
    FAILS(hart_request_set_system_prompt(other_request, ""), HART_ERR_REQUEST, "system prompt: none");
    OK(hart_request_set_system_prompt(other_request, "Draw: "));
    OK(hart_request_set_guidance(other_request, 1.0));
    FAILS(hart_request_set_images_per_prompt(other_request, 513), HART_ERR_REQUEST, "1026");
    /* Encoding a request with a context returns the same context. */
    stages = (struct stages){0};
    OK(hart_encode(model, other_request, &context));
    CHECK(hart_context_count(context) == 2 && stages.text == 0);
    /* Without the context, its prompts stay. */
    OK(hart_request_set_context(other_request, NULL));
    OK(hart_request_set_system_prompt(other_request, NULL));
    OK(hart_generate(model, other_request, &result));
    CHECK(hart_result_count(result) == 2 && stages.text > 0);
    HART_FREE(result, result);
    OK(hart_request_set_prompt(other_request, "a house"));
    /* A context replaces prompts; too many images are refused and leave the request unchanged. */
    OK(hart_request_set_images_per_prompt(other_request, 513));
    FAILS(hart_request_set_context(other_request, context), HART_ERR_REQUEST, "1026");
    OK(hart_request_set_prompt(other_request, "a cat face"));
    OK(hart_request_set_images_per_prompt(other_request, 1));
    OK(hart_request_set_context(other_request, context));
    FAILS(hart_request_set_context(other_request, (const hart_context *)(const void *)model), HART_ERR_ARGUMENT, "not a hart_context");

    /* The context of another model, and models that share their weights. */
    hart_model *other = open_model(path), *shared = NULL;
    FAILS(hart_generate(other, other_request, &result), HART_ERR_REQUEST, "context: belongs to another model");
    FAILS(hart_encode(other, other_request, &none), HART_ERR_REQUEST, "another model");
    CHECK(none == NULL);
    OK(hart_model_share(model, &shared));
    OK(hart_generate(shared, other_request, &result));
    HART_FREE(result, result);
    HART_FREE(model, shared);
    HART_FREE(model, other);

    /* Cancelled by the observer, and a request without prompts. */
    OK(hart_request_set_context(other_request, NULL));
    stages.cancel = 1;
    FAILS(hart_encode(model, other_request, &none), HART_CANCELLED, "cancelled");
    CHECK(none == NULL);
    HART_FREE(request, other_request);
    OK(hart_request_new(&other_request));
    FAILS(hart_encode(model, other_request, &none), HART_ERR_REQUEST, "prompt");

    HART_FREE(context, context);
    HART_FREE(image, expected);
    HART_FREE(request, other_request);
    HART_FREE(request, request);
}

struct worker {
    pthread_t thread;
    hart_model *model;
    const hart_image *expected;
    int runs, failures;
};

static void *work(void *argument) {
    struct worker *worker = argument;
    char message[64];
    for (int run = 0; run < worker->runs; run++) {
        hart_request *request = new_request("a rocket", 11);
        hart_image *image = image_of(worker->model, request);
        worker->failures += !same_pixels(image, worker->expected);
        /* Each thread has its own last error. */
        snprintf(message, sizeof message, "no such folder %p", (void *)worker);
        hart_model *none = NULL;
        worker->failures += hart_model_open(message, NULL, HART_ABI_VERSION, &none) != HART_ERR_CHECKPOINT;
        worker->failures += strstr(hart_last_error(), message) == NULL;
        HART_FREE(image, image);
        HART_FREE(request, request);
    }
    HART_FREE(model, worker->model);
    return NULL;
}

static void many_threads(const hart_model *model, int threads, int runs) {
    hart_request *request = new_request("a rocket", 11);
    hart_image *expected = image_of(model, request);
    struct worker workers[8];
    for (int i = 0; i < threads; i++) {
        workers[i] = (struct worker){.expected = expected, .runs = runs};
        OK(hart_model_share(model, &workers[i].model));
    }
    for (int i = 0; i < threads; i++) CHECK(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
    for (int i = 0; i < threads; i++) {
        CHECK(pthread_join(workers[i].thread, NULL) == 0);
        CHECK(workers[i].failures == 0);
    }
    HART_FREE(image, expected);
    HART_FREE(request, request);
}

static void panics(const char *path) {
    hart_model *model = open_model(path), *shared = NULL;
    hart_request *request = new_request("a house", 0);
    hart_result *result = NULL;
    hart_image *image = image_of(model, request);
    hart_tokens *tokens = NULL;
    hart_context *context = NULL;
    OK(hart_model_share(model, &shared));
    FAILS(hart_model_test_panic(model), HART_ERR_PANIC, "a test panic");
    FAILS(hart_generate(model, request, &result), HART_ERR_POISONED, "open it again");
    FAILS(hart_generate(shared, request, &result), HART_ERR_POISONED, "open it again");
    FAILS(hart_model_tokenize(model, image, &tokens), HART_ERR_POISONED, "open it again");
    FAILS(hart_encode(model, request, &context), HART_ERR_POISONED, "open it again");
    HART_FREE(model, model);
    HART_FREE(model, shared);
    /* The program continues with a new model. */
    model = open_model(path);
    hart_image *again = image_of(model, request);
    CHECK(same_pixels(image, again));
    HART_FREE(image, again);
    HART_FREE(image, image);
    HART_FREE(request, request);
    HART_FREE(model, model);
}

static void cancel_tokens(const hart_model *model) {
    hart_cancel *cancel = NULL;
    hart_request *request = new_request("a house", 0);
    hart_result *result = NULL;
    OK(hart_cancel_new(&cancel));
    OK(hart_request_set_cancel(request, cancel));
    CHECK(hart_cancel_is_requested(cancel) == 0);
    OK(hart_cancel_request(cancel));
    CHECK(hart_cancel_is_requested(cancel) == 1);
    FAILS(hart_generate(model, request, &result), HART_CANCELLED, "0 of 1 images");
    CHECK(result != NULL && hart_result_count(result) == 0);
    HART_FREE(result, result);
    /* The model and the request can be used again at once. */
    OK(hart_cancel_reset(cancel));
    OK(hart_generate(model, request, &result));
    HART_FREE(result, result);
    OK(hart_cancel_request(cancel));
    OK(hart_request_set_cancel(request, NULL));
    OK(hart_generate(model, request, &result));
    HART_FREE(result, result);
    HART_FREE(cancel, cancel);
    HART_FREE(request, request);
}

int main(int argc, char **argv) {
    brief = argc == 4 && strcmp(argv[3], "brief") == 0;
    if (argc != 3 && !brief) {
        fprintf(stderr, "usage: %s MODEL SCRATCH [brief]\n", argv[0]);
        return 2;
    }
    const char *path = argv[1], *scratch = argv[2];
    versions_and_statuses();
    devices();
    hart_model *model = open_model(path);
    structs_of_other_versions(model);
    nulls(model, path, scratch);
    wrong_arguments(model, path);
    hart_model *one_by_one = open_parallel(path, 1);
    events(one_by_one);
    HART_FREE(model, one_by_one);
    side_by_side(path);
    free_in_callback(path);
    settings(model);
    memory(path);
    files_in_memory(path);
    images(model, scratch);
    editing(model);
    contexts(model, path);
    cancel_tokens(model);
    many_threads(model, brief ? 2 : 8, brief ? 1 : 3);
    panics(path);
    HART_FREE(model, model);
    puts("every function: ok");
    return 0;
}
