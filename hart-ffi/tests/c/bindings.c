/* Correct and incorrect uses of the functions for bindings of other languages: bindings MODEL SCRATCH [brief]. `brief` accepts
 * any model, for valgrind. */
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "check.h"

static int brief;

#define IS_NULL(call, name) FAILS(call, HART_ERR_NULL, "`" name "` is NULL")
/* Checks that a text is equal to another, or NULL. */
#define IS_TEXT(text, expected) CHECK((text) != NULL && strcmp((text), (expected)) == 0)

/* Strings with a size. */
static void texts(const char *path, const char *scratch) {
    const char *text = "a houseboat\0 and more";
    const char *value = NULL;
    hart_request *request = NULL;
    OK(hart_request_new(&request));
    OK(hart_request_set_prompt_n(request, text, 7));
    OK(hart_request_get_prompt(request, 0, &value));
    IS_TEXT(value, "a house");
    OK(hart_request_add_prompt_n(request, text, 11));
    OK(hart_request_get_prompt(request, 1, &value));
    IS_TEXT(value, "a houseboat");
    FAILS(hart_request_set_prompt_n(request, text, 15), HART_ERR_ARGUMENT, "`prompt` contains NUL at byte 11");
    FAILS(hart_request_add_prompt_n(request, "\0", 1), HART_ERR_ARGUMENT, "NUL at byte 0");
    FAILS(hart_request_set_prompt_n(request, "caf\xc3\xa9", 4), HART_ERR_UTF8, "from byte 3 on");
    FAILS(hart_request_set_prompt_n(request, NULL, 0), HART_ERR_REQUEST, "number 1 is empty");
    FAILS(hart_request_set_prompt_n(request, "", 0), HART_ERR_REQUEST, "number 1 is empty");
    IS_NULL(hart_request_set_prompt_n(request, NULL, 3), "prompt");
    IS_NULL(hart_request_add_prompt_n(request, NULL, 3), "prompt");
    IS_NULL(hart_request_set_prompt_n(NULL, "a", 1), "request");
    IS_NULL(hart_request_add_prompt_n(NULL, "a", 1), "request");
    FAILS(hart_request_set_prompt_n(request, text, SIZE_MAX), HART_ERR_ARGUMENT, "more than memory can hold");
    CHECK(hart_request_get_prompt_count(request) == 2);
    OK(hart_request_set_steps_n(request, "8,4 of them", 3));
    OK(hart_request_get_steps(request, &value));
    IS_TEXT(value, "8,4");
    IS_NULL(hart_request_set_steps_n(NULL, "8", 1), "request");
    IS_NULL(hart_request_set_steps_n(request, NULL, 1), "steps");
    OK(hart_request_set_marks_n(request, "prompt,source", 6));
    OK(hart_request_get_marks(request, &value));
    IS_TEXT(value, "prompt");
    OK(hart_request_set_marks_n(request, NULL, 0));
    OK(hart_request_get_marks(request, &value));
    CHECK(value == NULL);
    IS_NULL(hart_request_set_marks_n(NULL, "none", 4), "request");
    IS_NULL(hart_request_set_marks_n(request, NULL, 3), "names");
    OK(hart_request_set_prune_n(request, "0.5,0.75", 3));
    OK(hart_request_get_prune(request, &value));
    IS_TEXT(value, "0.5");
    OK(hart_request_set_prune_n(request, NULL, 0));
    OK(hart_request_get_prune(request, &value));
    CHECK(value == NULL);
    FAILS(hart_request_set_prune_n(request, "0.5", 0), HART_ERR_REQUEST, "pruning");
    IS_NULL(hart_request_set_prune_n(NULL, "0.5", 3), "request");
    IS_NULL(hart_request_set_prune_n(request, NULL, 3), "ratios");
    /* The system prompt: set, none, the model's own. */
    OK(hart_request_set_system_prompt_n(request, "Draw: it", 5));
    OK(hart_request_get_system_prompt(request, &value));
    IS_TEXT(value, "Draw:");
    OK(hart_request_set_system_prompt_n(request, "it", 0));
    OK(hart_request_get_system_prompt(request, &value));
    IS_TEXT(value, "");
    OK(hart_request_set_system_prompt_n(request, NULL, 0));
    OK(hart_request_get_system_prompt(request, &value));
    CHECK(value == NULL);
    IS_NULL(hart_request_set_system_prompt_n(request, NULL, 1), "prompt");
    IS_NULL(hart_request_set_system_prompt_n(NULL, "", 0), "request");
    HART_FREE(request, request);

    hart_options *options = NULL;
    OK(hart_options_new(&options));
    OK(hart_options_set_device_n(options, "cpuset", 3));
    OK(hart_options_set_precision_n(options, "f320", 3));
    OK(hart_options_set_weights_n(options, "plainly", 5));
    OK(hart_options_set_text_model_n(options, "a/text/b", 6));
    OK(hart_options_get_device(options, &value));
    IS_TEXT(value, "cpu");
    OK(hart_options_get_precision(options, &value));
    IS_TEXT(value, "f32");
    OK(hart_options_get_weights(options, &value));
    IS_TEXT(value, "plain");
    OK(hart_options_get_text_model(options, &value));
    IS_TEXT(value, "a/text");
    IS_NULL(hart_options_set_device_n(NULL, "cpu", 3), "options");
    IS_NULL(hart_options_set_device_n(options, NULL, 3), "device");
    IS_NULL(hart_options_set_precision_n(NULL, "f32", 3), "options");
    IS_NULL(hart_options_set_precision_n(options, NULL, 3), "precision");
    IS_NULL(hart_options_set_weights_n(NULL, "ema", 3), "options");
    IS_NULL(hart_options_set_weights_n(options, NULL, 3), "weights");
    IS_NULL(hart_options_set_text_model_n(NULL, "a", 1), "options");
    IS_NULL(hart_options_set_text_model_n(options, NULL, 1), "path");
    FAILS(hart_options_set_device_n(options, NULL, 0), HART_ERR_DEVICE, "unknown");
    HART_FREE(options, options);

    char name[4096];
    snprintf(name, sizeof name, "%s and more", path);
    hart_model *model = NULL;
    OK(hart_model_open_n(name, strlen(path), NULL, HART_ABI_VERSION, &model));
    HART_FREE(model, model);
    FAILS(hart_model_open_n(name, strlen(name), NULL, HART_ABI_VERSION, &model), HART_ERR_CHECKPOINT, "and more");
    FAILS(hart_model_open_n(name, strlen(path) + 4, NULL, 0, &model), HART_ERR_ARGUMENT, "`abi_version` is 0");
    FAILS(hart_model_open(path, NULL, 0, &model), HART_ERR_ARGUMENT, "pass HART_ABI_VERSION");
    IS_NULL(hart_model_open_n(NULL, 1, NULL, HART_ABI_VERSION, &model), "path");
    IS_NULL(hart_model_open_n(name, 1, NULL, HART_ABI_VERSION, NULL), "model");
    uint8_t pixel[3] = {1, 2, 3};
    hart_image *image = NULL, *read = NULL, *none = NULL;
    OK(hart_image_new(1, 1, 0, pixel, &image));
    int length = snprintf(name, sizeof name, "%s/sized.png", scratch);
    strcat(name, ".jpg");
    OK(hart_image_save_n(image, name, (size_t)length));
    OK(hart_image_open_n(name, (size_t)length, &read));
    CHECK(same_pixels(image, read));
    IS_NULL(hart_image_save_n(image, NULL, 1), "path");
    IS_NULL(hart_image_save_n(NULL, name, 1), "image");
    FAILS(hart_image_save_n(image, NULL, 0), HART_ERR_REQUEST, "");
    IS_NULL(hart_image_open_n(NULL, 1, &none), "path");
    IS_NULL(hart_image_open_n(name, 1, NULL), "image");
    FAILS(hart_image_open_n("a\0b", 3, &none), HART_ERR_ARGUMENT, "NUL at byte 1");
    HART_FREE(image, image);
    HART_FREE(image, read);
}

static int32_t ignore(const hart_event *event, void *user_data) {
    (void)event, (void)user_data;
    return 0;
}

/* What is set on options, or nothing. */
static void options_values(void) {
    hart_options *options = NULL, *clone = NULL;
    hart_cancel *cancel = NULL, *found = NULL;
    hart_observer observer = ignore;
    void *user_data = &options;
    const char *text = "";
    int32_t number = 7, is_set = 7;
    uint32_t threads = 7;
    uint64_t bytes = 7;
    OK(hart_options_new(&options));
#define NOT_SET(call, value, expected)                  \
    do {                                                \
        OK(call);                                       \
        CHECK((value) == (expected) && is_set == 0);    \
    } while (0)
#define IS_SET(call, value, expected)                   \
    do {                                                \
        OK(call);                                       \
        CHECK((value) == (expected) && is_set == 1);    \
    } while (0)
#define NO_TEXT(call)          \
    do {                       \
        text = "";             \
        OK(call);              \
        CHECK(text == NULL);   \
    } while (0)
    NO_TEXT(hart_options_get_device(options, &text));
    NO_TEXT(hart_options_get_precision(options, &text));
    NO_TEXT(hart_options_get_text_model(options, &text));
    NO_TEXT(hart_options_get_weights(options, &text));
    NOT_SET(hart_options_get_memory_map(options, &number, &is_set), number, 1);
    NOT_SET(hart_options_get_strict(options, &number, &is_set), number, 1);
    NOT_SET(hart_options_get_threads(options, &threads, &is_set), threads, 0);
    NOT_SET(hart_options_get_parallel(options, &threads, &is_set), threads, 0);
    NOT_SET(hart_options_get_max_memory(options, &bytes, &is_set), bytes, 0);
    NOT_SET(hart_options_get_keep_text_model(options, &number, &is_set), number, 0);
    OK(hart_options_get_observer(options, &observer, &user_data));
    CHECK(observer == NULL && user_data == NULL);
    OK(hart_options_get_cancel(options, &found));
    CHECK(found == NULL);
    /* The defaults, set. */
    OK(hart_cancel_new(&cancel));
    OK(hart_options_set_device(options, "auto"));
    OK(hart_options_set_memory_map(options, 7));
    OK(hart_options_set_strict(options, 0));
    OK(hart_options_set_threads(options, 0));
    OK(hart_options_set_parallel(options, 3));
    OK(hart_options_set_max_memory(options, 5));
    OK(hart_options_set_keep_text_model(options, 0));
    OK(hart_options_set_observer(options, ignore, &cancel, NULL));
    OK(hart_options_set_cancel(options, cancel));
    OK(hart_options_clone(options, &clone));
    OK(hart_options_set_strict(options, 1));
    OK(hart_options_set_device(options, "cpu"));
    OK(hart_options_set_cancel(options, NULL));
    OK(hart_options_set_observer(options, NULL, NULL, NULL));
    HART_FREE(options, options);
    OK(hart_options_get_device(clone, &text));
    IS_TEXT(text, "auto");
    NO_TEXT(hart_options_get_precision(clone, &text));
    IS_SET(hart_options_get_memory_map(clone, &number, &is_set), number, 1);
    IS_SET(hart_options_get_strict(clone, &number, &is_set), number, 0);
    IS_SET(hart_options_get_threads(clone, &threads, &is_set), threads, 0);
    IS_SET(hart_options_get_parallel(clone, &threads, &is_set), threads, 3);
    IS_SET(hart_options_get_max_memory(clone, &bytes, &is_set), bytes, 5);
    IS_SET(hart_options_get_keep_text_model(clone, &number, &is_set), number, 0);
    OK(hart_options_get_strict(clone, &number, NULL));
    OK(hart_options_get_observer(clone, &observer, &user_data));
    CHECK(observer == ignore && user_data == &cancel);
    OK(hart_options_get_observer(clone, &observer, NULL));
    /* Another handle of the same token. */
    OK(hart_options_get_cancel(clone, &found));
    OK(hart_cancel_request(cancel));
    CHECK(found != cancel && hart_cancel_is_requested(found));
    HART_FREE(cancel, cancel);

    options = (hart_options *)(void *)&number;
    IS_NULL(hart_options_clone(NULL, &options), "options");
    CHECK(options == NULL);
    IS_NULL(hart_options_clone(clone, NULL), "clone");
    IS_NULL(hart_options_get_device(NULL, &text), "options");
    IS_NULL(hart_options_get_device(clone, NULL), "device");
    IS_NULL(hart_options_get_precision(NULL, &text), "options");
    IS_NULL(hart_options_get_precision(clone, NULL), "precision");
    IS_NULL(hart_options_get_text_model(NULL, &text), "options");
    IS_NULL(hart_options_get_text_model(clone, NULL), "path");
    IS_NULL(hart_options_get_weights(NULL, &text), "options");
    IS_NULL(hart_options_get_weights(clone, NULL), "weights");
    number = is_set = 7;
    IS_NULL(hart_options_get_memory_map(NULL, &number, &is_set), "options");
    CHECK(number == 0 && is_set == 0);
    IS_NULL(hart_options_get_memory_map(clone, NULL, &is_set), "memory_map");
    IS_NULL(hart_options_get_strict(NULL, &number, &is_set), "options");
    IS_NULL(hart_options_get_strict(clone, NULL, &is_set), "strict");
    IS_NULL(hart_options_get_threads(NULL, &threads, &is_set), "options");
    IS_NULL(hart_options_get_threads(clone, NULL, &is_set), "threads");
    IS_NULL(hart_options_get_parallel(NULL, &threads, &is_set), "options");
    IS_NULL(hart_options_get_parallel(clone, NULL, &is_set), "parallel");
    IS_NULL(hart_options_get_max_memory(NULL, &bytes, &is_set), "options");
    IS_NULL(hart_options_get_max_memory(clone, NULL, &is_set), "bytes");
    IS_NULL(hart_options_get_keep_text_model(NULL, &number, &is_set), "options");
    IS_NULL(hart_options_get_keep_text_model(clone, NULL, &is_set), "keep");
    IS_NULL(hart_options_get_observer(NULL, &observer, &user_data), "options");
    IS_NULL(hart_options_get_observer(clone, NULL, &user_data), "observer");
    IS_NULL(hart_options_set_observer(NULL, ignore, NULL, NULL), "options");
    IS_NULL(hart_options_get_cancel(NULL, &cancel), "options");
    IS_NULL(hart_options_get_cancel(clone, NULL), "cancel");
    IS_NULL(hart_options_set_cancel(NULL, found), "options");
    HART_FREE(cancel, found);
    HART_FREE(options, clone);
}

/* What is set on a request, or nothing, and copies of requests. */
static void request_values(const hart_model *model) {
    hart_request *request = NULL, *clone = NULL;
    hart_context *context = NULL;
    hart_cancel *cancel = NULL, *token = NULL;
    hart_image *image = NULL, *mask = NULL, *source = NULL;
    hart_observer observer = ignore;
    hart_keep keep = 7;
    void *user_data = &request;
    const char *text = "";
    int32_t smoothing = 7, is_set = 7;
    uint32_t count = 7, left = 7, top = 7;
    uint64_t seed = 7;
    double number = 7;
    OK(hart_request_new(&request));
    CHECK(hart_request_get_prompt_count(request) == 0 && hart_request_get_prompt_count(NULL) == 0);
    FAILS(hart_request_get_prompt(request, 0, &text), HART_ERR_ARGUMENT, "`index` is 0, but the request has 0 prompts");
    CHECK(text == NULL);
    NOT_SET(hart_request_get_images_per_prompt(request, &count, &is_set), count, 1);
    NOT_SET(hart_request_get_seed(request, &seed, &is_set), seed, 0);
    NOT_SET(hart_request_get_guidance(request, &number, &is_set), number, 0);
    NOT_SET(hart_request_get_smoothing(request, &smoothing, &is_set), smoothing, 0);
    NOT_SET(hart_request_get_top_k(request, &count, &is_set), count, 0);
    NOT_SET(hart_request_get_top_p(request, &number, &is_set), number, 0);
    NO_TEXT(hart_request_get_steps(request, &text));
    NO_TEXT(hart_request_get_prune(request, &text));
    NO_TEXT(hart_request_get_system_prompt(request, &text));
    OK(hart_request_get_context(request, &context));
    CHECK(context == NULL);
    OK(hart_request_get_inpaint(request, &image, &mask, &count));
    CHECK(image == NULL && mask == NULL && count == 0);
    OK(hart_request_get_outpaint(request, &image, &left, &top));
    CHECK(image == NULL && left == 0 && top == 0);
    OK(hart_request_get_variation(request, &image, &count));
    CHECK(image == NULL && count == 0);
    NOT_SET(hart_request_get_keep(request, &keep, &is_set), keep, HART_KEEP_PIXELS);
    OK(hart_request_get_observer(request, &observer, &user_data));
    CHECK(observer == NULL && user_data == NULL);
    OK(hart_request_get_cancel(request, &cancel));
    CHECK(cancel == NULL);
    /* A setter that fails sets nothing. */
    CHECK(hart_request_set_guidance(request, 1e9) == HART_ERR_REQUEST);
    NOT_SET(hart_request_get_guidance(request, &number, &is_set), number, 0);

    OK(hart_cancel_new(&token));
    OK(hart_request_set_prompt(request, "a house"));
    OK(hart_request_add_prompt(request, "a key"));
    OK(hart_request_set_images_per_prompt(request, 1));
    OK(hart_request_set_seed(request, 0));
    OK(hart_request_set_guidance(request, 0));
    OK(hart_request_set_smoothing(request, 5));
    OK(hart_request_set_top_k(request, 30));
    OK(hart_request_set_top_p(request, 0.5));
    OK(hart_request_set_steps(request, "4"));
    OK(hart_request_set_prune(request, "0.25,0.5"));
    OK(hart_request_set_system_prompt(request, ""));
    OK(hart_request_set_keep(request, HART_KEEP_LATENT));
    OK(hart_request_set_observer(request, ignore, &token, NULL));
    OK(hart_request_set_cancel(request, token));
    OK(hart_request_clone(request, &clone));
    /* The copy is independent and complete. */
    OK(hart_request_set_prompt(request, "another"));
    OK(hart_request_set_seed(request, 4));
    OK(hart_request_set_cancel(request, NULL));
    OK(hart_request_set_observer(request, NULL, NULL, NULL));
    HART_FREE(request, request);
    CHECK(hart_request_get_prompt_count(clone) == 2);
    OK(hart_request_get_prompt(clone, 1, &text));
    IS_TEXT(text, "a key");
    FAILS(hart_request_get_prompt(clone, 2, &text), HART_ERR_ARGUMENT, "2 prompts");
    IS_SET(hart_request_get_images_per_prompt(clone, &count, &is_set), count, 1);
    IS_SET(hart_request_get_seed(clone, &seed, &is_set), seed, 0);
    IS_SET(hart_request_get_guidance(clone, &number, &is_set), number, 0);
    IS_SET(hart_request_get_smoothing(clone, &smoothing, &is_set), smoothing, 1);
    IS_SET(hart_request_get_top_k(clone, &count, &is_set), count, 30);
    IS_SET(hart_request_get_top_p(clone, &number, &is_set), number, 0.5);
    OK(hart_request_get_steps(clone, &text));
    IS_TEXT(text, "4");
    OK(hart_request_get_prune(clone, &text));
    IS_TEXT(text, "0.25,0.5");
    OK(hart_request_get_system_prompt(clone, &text));
    IS_TEXT(text, "");
    IS_SET(hart_request_get_keep(clone, &keep, &is_set), keep, HART_KEEP_LATENT);
    OK(hart_request_get_observer(clone, &observer, &user_data));
    CHECK(observer == ignore && user_data == &token);
    OK(hart_request_get_observer(clone, &observer, NULL));
    OK(hart_request_get_cancel(clone, &cancel));
    OK(hart_cancel_request(token));
    CHECK(cancel != token && hart_cancel_is_requested(cancel));
    OK(hart_cancel_reset(cancel));
    HART_FREE(cancel, token);
    HART_FREE(cancel, cancel);

    /* Images. */
    uint8_t white[2 * 3] = {255, 255, 255, 255, 255, 255};
    OK(hart_image_new(2, 1, 0, white, &source));
    OK(hart_request_set_inpaint(clone, source, source, 3));
    OK(hart_request_get_inpaint(clone, &image, &mask, &count));
    CHECK(same_pixels(image, source) && same_pixels(mask, source) && count == 3 && image != source && image != mask);
    HART_FREE(image, image);
    HART_FREE(image, mask);
    OK(hart_request_set_outpaint(clone, source, 5, 6));
    OK(hart_request_get_outpaint(clone, &image, &left, &top));
    CHECK(same_pixels(image, source) && left == 5 && top == 6);
    HART_FREE(image, image);
    OK(hart_request_get_inpaint(clone, &image, &mask, &count));
    CHECK(image == NULL && mask == NULL && count == 0);
    OK(hart_request_set_variation(clone, source, 2));
    OK(hart_request_clone(clone, &request));
    OK(hart_request_set_variation(clone, NULL, 0));
    HART_FREE(image, source);
    OK(hart_request_get_variation(request, &image, &count));
    CHECK(view_of(image).size == 6 && count == 2);
    HART_FREE(image, image);
    HART_FREE(request, request);

    /* A context sets the prompts and the system prompt. The copy of a request gives the same images. */
    OK(hart_request_set_system_prompt(clone, "Draw: "));
    OK(hart_encode(model, clone, &context));
    OK(hart_request_new(&request));
    OK(hart_request_set_context(request, context));
    HART_FREE(context, context);
    CHECK(hart_request_get_prompt_count(request) == 2);
    OK(hart_request_get_prompt(request, 0, &text));
    IS_TEXT(text, "a house");
    OK(hart_request_get_system_prompt(request, &text));
    IS_TEXT(text, "Draw: ");
    OK(hart_request_get_context(request, &context));
    CHECK(hart_context_count(context) == 2);
    HART_FREE(request, clone);
    OK(hart_request_clone(request, &clone));
    FAILS(hart_request_set_prompt(clone, "a key"), HART_ERR_REQUEST, "the context encodes 2");
    HART_FREE(request, clone);
    OK(hart_request_set_context(request, NULL));
    OK(hart_request_set_prompt(request, "a house"));
    OK(hart_request_set_seed(request, 5));
    OK(hart_request_set_guidance(request, 2));
    OK(hart_request_clone(request, &clone));
    hart_image *a = image_of(model, request), *b = image_of(model, clone);
    CHECK(same_pixels(a, b) && strcmp(view_of(a).settings, view_of(b).settings) == 0);
    HART_FREE(image, a);
    HART_FREE(image, b);
    HART_FREE(request, request);

    request = (hart_request *)(void *)&number;
    IS_NULL(hart_request_clone(NULL, &request), "request");
    CHECK(request == NULL);
    IS_NULL(hart_request_clone(clone, NULL), "clone");
    IS_NULL(hart_request_get_prompt(NULL, 0, &text), "request");
    IS_NULL(hart_request_get_prompt(clone, 0, NULL), "prompt");
    count = 7;
    IS_NULL(hart_request_get_images_per_prompt(NULL, &count, &is_set), "request");
    CHECK(count == 0 && is_set == 0);
    IS_NULL(hart_request_get_images_per_prompt(clone, NULL, &is_set), "count");
    IS_NULL(hart_request_get_seed(NULL, &seed, &is_set), "request");
    IS_NULL(hart_request_get_seed(clone, NULL, &is_set), "seed");
    IS_NULL(hart_request_get_guidance(NULL, &number, &is_set), "request");
    IS_NULL(hart_request_get_guidance(clone, NULL, &is_set), "guidance");
    IS_NULL(hart_request_get_smoothing(NULL, &smoothing, &is_set), "request");
    IS_NULL(hart_request_get_smoothing(clone, NULL, &is_set), "smoothing");
    IS_NULL(hart_request_get_top_k(NULL, &count, &is_set), "request");
    IS_NULL(hart_request_get_top_k(clone, NULL, &is_set), "top_k");
    IS_NULL(hart_request_get_top_p(NULL, &number, &is_set), "request");
    IS_NULL(hart_request_get_top_p(clone, NULL, &is_set), "top_p");
    IS_NULL(hart_request_get_steps(NULL, &text), "request");
    IS_NULL(hart_request_get_steps(clone, NULL), "steps");
    IS_NULL(hart_request_get_prune(NULL, &text), "request");
    IS_NULL(hart_request_get_prune(clone, NULL), "ratios");
    IS_NULL(hart_request_get_system_prompt(NULL, &text), "request");
    IS_NULL(hart_request_get_system_prompt(clone, NULL), "prompt");
    hart_context *none = context;
    IS_NULL(hart_request_get_context(NULL, &none), "request");
    CHECK(none == NULL);
    IS_NULL(hart_request_get_context(clone, NULL), "context");
    IS_NULL(hart_request_get_inpaint(NULL, &image, &mask, &count), "request");
    IS_NULL(hart_request_get_inpaint(clone, NULL, &mask, &count), "image");
    IS_NULL(hart_request_get_inpaint(clone, &image, NULL, &count), "mask");
    IS_NULL(hart_request_get_inpaint(clone, &image, &mask, NULL), "kept_scales");
    IS_NULL(hart_request_get_outpaint(NULL, &image, &left, &top), "request");
    IS_NULL(hart_request_get_outpaint(clone, NULL, &left, &top), "image");
    IS_NULL(hart_request_get_outpaint(clone, &image, NULL, &top), "left");
    IS_NULL(hart_request_get_outpaint(clone, &image, &left, NULL), "top");
    IS_NULL(hart_request_get_variation(NULL, &image, &count), "request");
    IS_NULL(hart_request_get_variation(clone, NULL, &count), "image");
    IS_NULL(hart_request_get_variation(clone, &image, NULL), "kept_scales");
    IS_NULL(hart_request_get_keep(NULL, &keep, &is_set), "request");
    IS_NULL(hart_request_get_keep(clone, NULL, &is_set), "keep");
    IS_NULL(hart_request_get_observer(NULL, &observer, &user_data), "request");
    IS_NULL(hart_request_get_observer(clone, NULL, &user_data), "observer");
    IS_NULL(hart_request_get_cancel(NULL, &cancel), "request");
    IS_NULL(hart_request_get_cancel(clone, NULL), "cancel");
    HART_FREE(context, context);
    HART_FREE(request, clone);
}

/* More handles of the same objects, freed in any order. */
static void shares(const hart_model *model) {
    hart_request *request = new_request("a house", 1);
    hart_result *result = NULL, *same_result = NULL;
    hart_image *image = NULL, *same_image = NULL;
    hart_context *context = NULL, *same_context = NULL;
    hart_tokens *tokens = NULL, *same_tokens = NULL;
    hart_cancel *cancel = NULL, *same_cancel = NULL;
    OK(hart_generate(model, request, &result));
    OK(hart_result_share(result, &same_result));
    HART_FREE(result, result);
    CHECK(hart_result_count(same_result) == 1);
    OK(hart_result_image(same_result, 0, &image));
    OK(hart_image_share(image, &same_image));
    CHECK(same_image != image && view_of(image).pixels == view_of(same_image).pixels);
    const uint8_t *png = NULL, *same_png = NULL;
    size_t size = 0;
    OK(hart_image_png(image, &png, &size));
    HART_FREE(image, image);
    HART_FREE(result, same_result);
    /* The file of the freed handle is that of the other one, and still valid. */
    OK(hart_image_png(same_image, &same_png, &size));
    CHECK(png == same_png && memcmp(png, "\x89PNG", 4) == 0 && view_of(same_image).seed == 1);
    OK(hart_encode(model, request, &context));
    OK(hart_context_share(context, &same_context));
    HART_FREE(context, context);
    OK(hart_request_set_context(request, same_context));
    CHECK(hart_context_count(same_context) == 1);
    OK(hart_model_tokenize(model, same_image, &tokens));
    OK(hart_tokens_share(tokens, &same_tokens));
    HART_FREE(tokens, tokens);
    OK(hart_model_reconstruct(model, same_tokens, 1, &image));
    OK(hart_cancel_new(&cancel));
    OK(hart_cancel_share(cancel, &same_cancel));
    OK(hart_cancel_request(cancel));
    HART_FREE(cancel, cancel);
    CHECK(hart_cancel_is_requested(same_cancel));

    HART_FREE(image, image);
    image = (hart_image *)(void *)&size;
    IS_NULL(hart_image_share(NULL, &image), "image");
    CHECK(image == NULL);
    IS_NULL(hart_image_share(same_image, NULL), "shared");
    IS_NULL(hart_context_share(NULL, &context), "context");
    IS_NULL(hart_context_share(same_context, NULL), "shared");
    IS_NULL(hart_result_share(NULL, &result), "result");
    IS_NULL(hart_result_share(NULL, NULL), "shared");
    IS_NULL(hart_tokens_share(NULL, &tokens), "tokens");
    IS_NULL(hart_tokens_share(same_tokens, NULL), "shared");
    IS_NULL(hart_cancel_share(NULL, &cancel), "cancel");
    IS_NULL(hart_cancel_share(same_cancel, NULL), "shared");
    FAILS(hart_image_share((const hart_image *)(const void *)request, &image), HART_ERR_ARGUMENT, "not a hart_image");
    HART_FREE(cancel, same_cancel);
    HART_FREE(tokens, same_tokens);
    HART_FREE(context, same_context);
    HART_FREE(image, same_image);
    HART_FREE(request, request);
}

/* User data that counts how often it is destroyed. It lives on the heap, so that the sanitizers find later uses. */
struct data {
    int *destroyed;
    /* Used when the data is destroyed: nothing is locked then. */
    hart_request *request;
    hart_files *files;
    hart_options *options;
};

static struct data *new_data(int *destroyed) {
    struct data *data = calloc(1, sizeof *data);
    CHECK(data != NULL);
    data->destroyed = destroyed;
    return data;
}

static void destroy(void *user_data) {
    struct data *data = user_data;
    ++*data->destroyed;
    if (data->request != NULL) {
        int32_t is_set;
        uint64_t seed;
        OK(hart_request_get_seed(data->request, &seed, &is_set));
        OK(hart_request_set_seed(data->request, seed + 1));
    }
    if (data->files != NULL) OK(hart_files_add(data->files, "destroyed", NULL, 0));
    if (data->options != NULL) OK(hart_options_set_strict(data->options, 1));
    free(data);
}

static int32_t count_events(const hart_event *event, void *user_data) {
    struct data *data = user_data;
    (void)event;
    CHECK(*data->destroyed == 0);
    return 0;
}

static int32_t free_request(const hart_event *event, void *user_data) {
    struct data *data = user_data;
    (void)event;
    CHECK(*data->destroyed == 0);
    HART_FREE(request, data->request);
    return 0;
}

static int32_t fill_zeros(void *user_data, uint64_t offset, uint8_t *buffer, size_t size) {
    struct data *data = user_data;
    (void)offset;
    CHECK(*data->destroyed == 0);
    memset(buffer, 0, size);
    return 0;
}

static void user_data(const hart_model *model) {
    hart_request *request = new_request("a house", 0), *clone = NULL;
    hart_options *options = NULL, *options_clone = NULL;
    hart_result *result = NULL;
    int n = 0;
    /* Replaced, removed, freed. */
    struct data *data = new_data(&n);
    data->request = request;
    OK(hart_request_set_observer(request, count_events, data, destroy));
    OK(hart_request_set_seed(request, 3));
    CHECK(n == 0);
    OK(hart_request_set_observer(request, count_events, new_data(&n), destroy));
    CHECK(n == 1);
    n = 0;
    OK(hart_request_set_observer(request, NULL, NULL, NULL));
    CHECK(n == 1);
    n = 0;
    OK(hart_request_set_observer(request, count_events, new_data(&n), destroy));
    /* A copy shares the data. */
    OK(hart_request_clone(request, &clone));
    HART_FREE(request, request);
    CHECK(n == 0);
    OK(hart_generate(model, clone, &result));
    HART_FREE(result, result);
    HART_FREE(request, clone);
    CHECK(n == 1);
    /* Without an observer the data is not kept. */
    request = new_request("a house", 0);
    n = 0;
    OK(hart_request_set_observer(request, NULL, new_data(&n), destroy));
    CHECK(n == 1);
    /* Calls that fail. */
    n = 0;
    IS_NULL(hart_request_set_observer(NULL, count_events, new_data(&n), destroy), "request");
    CHECK(n == 1);
    FAILS(hart_request_set_observer((hart_request *)(void *)model, count_events, new_data(&n), destroy), HART_ERR_ARGUMENT, "not a");
    CHECK(n == 2);
    IS_NULL(hart_options_set_observer(NULL, count_events, new_data(&n), destroy), "options");
    CHECK(n == 3);
    IS_NULL(hart_files_add_reader(NULL, "x", 1, fill_zeros, new_data(&n), destroy), "files");
    IS_NULL(hart_files_add_reader_n(NULL, "x", 1, 1, fill_zeros, new_data(&n), destroy), "files");
    IS_NULL(hart_files_add_borrowed(NULL, "x", NULL, 0, new_data(&n), destroy), "files");
    IS_NULL(hart_files_add_borrowed_n(NULL, "x", 1, NULL, 0, new_data(&n), destroy), "files");
    CHECK(n == 7);
    /* An observer that frees its own request: the run still needs the data. */
    n = 0;
    data = new_data(&n);
    data->request = request;
    OK(hart_request_set_observer(request, free_request, data, destroy));
    OK(hart_generate(model, request, &result));
    CHECK(n == 1 && hart_result_count(result) == 1);
    HART_FREE(result, result);
    /* Options. */
    n = 0;
    OK(hart_options_new(&options));
    data = new_data(&n);
    data->options = options;
    OK(hart_options_set_observer(options, count_events, data, destroy));
    OK(hart_options_set_observer(options, count_events, new_data(&n), destroy));
    CHECK(n == 1);
    OK(hart_options_clone(options, &options_clone));
    HART_FREE(options, options);
    CHECK(n == 1);
    HART_FREE(options, options_clone);
    CHECK(n == 2);
    /* Files. */
    hart_files *files = NULL;
    OK(hart_files_new(&files));
    n = 0;
    data = new_data(&n);
    data->files = files;
    OK(hart_files_add_reader(files, "zeros", 5, fill_zeros, data, destroy));
    CHECK(n == 1);
    FAILS(hart_files_add(files, "destroyed", NULL, 0), HART_ERR_REQUEST, "already");
    n = 0;
    FAILS(hart_files_add_reader(files, "zeros", 5, fill_zeros, new_data(&n), destroy), HART_ERR_REQUEST, "already");
    CHECK(n == 1);
    n = 0;
    OK(hart_files_add_reader_n(files, "zeroes", 4, 5, fill_zeros, new_data(&n), destroy));
    IS_NULL(hart_files_add_reader_n(files, NULL, 4, 5, fill_zeros, new_data(&n), destroy), "name");
    IS_NULL(hart_files_add_reader_n(files, "x", 1, 5, NULL, new_data(&n), destroy), "reader");
    CHECK(n == 3);
    FAILS(hart_files_add_n(files, "zero", 4, NULL, 0), HART_ERR_REQUEST, "already");
    OK(hart_files_add_n(files, "zero", 3, NULL, 0));
    IS_NULL(hart_files_add_n(files, NULL, 3, NULL, 0), "name");
    IS_NULL(hart_files_add_n(files, "y", 1, NULL, 1), "data");
    IS_NULL(hart_files_add_n(NULL, "y", 1, NULL, 0), "files");
    HART_FREE(files, files);
}

/* A file of a model in memory that its user data owns. */
struct borrowed {
    uint8_t *bytes;
    int *destroyed;
    hart_files *files; /* Gets another file when this one is destroyed: nothing is locked then. */
};

static void destroy_borrowed(void *user_data) {
    struct borrowed *borrowed = user_data;
    ++*borrowed->destroyed;
    if (borrowed->files != NULL) OK(hart_files_add(borrowed->files, "other", NULL, 0));
    free(borrowed->bytes);
    free(borrowed);
}

static struct borrowed *read_borrowed(const char *path, const char *name, size_t *size, int *destroyed) {
    char whole[4096];
    snprintf(whole, sizeof whole, "%s/%s", path, name);
    FILE *file = fopen(whole, "rb");
    if (file == NULL && strstr(name, "generation_config") != NULL) return NULL;
    struct borrowed *borrowed = calloc(1, sizeof *borrowed);
    CHECK(borrowed != NULL && file != NULL && fseek(file, 0, SEEK_END) == 0);
    *size = (size_t)ftell(file);
    rewind(file);
    borrowed->bytes = calloc(*size + 1, 1); /* With a NUL for strstr. */
    borrowed->destroyed = destroyed;
    CHECK(borrowed->bytes != NULL && fread(borrowed->bytes, 1, *size, file) == *size);
    fclose(file);
    return borrowed;
}

struct message {
    int level, messages, destroyed;
    char text[4096];
};

static pthread_mutex_t message_lock = PTHREAD_MUTEX_INITIALIZER;

static void keep_message(hart_log_level level, const char *message, void *user_data) {
    struct message *kept = user_data;
    CHECK(hart_set_log(NULL, NULL, NULL) == HART_ERR_STATE);
    pthread_mutex_lock(&message_lock);
    CHECK(kept->destroyed == 0);
    kept->level = level;
    kept->messages++;
    snprintf(kept->text, sizeof kept->text, "%s", message);
    pthread_mutex_unlock(&message_lock);
}

static void destroy_message(void *user_data) {
    struct message *kept = user_data;
    pthread_mutex_lock(&message_lock);
    kept->destroyed++;
    pthread_mutex_unlock(&message_lock);
}

/* Returns the number of files. */
static int add_all_borrowed(hart_files *files, const char *path, int *destroyed) {
    int count = 0;
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        size_t size = 0;
        struct borrowed *file = read_borrowed(path, FILES[i], &size, destroyed);
        if (file == NULL) continue;
        count++;
        /* With another id than the vocabulary has: the tokenizer's library warns. */
        char *id = strstr(FILES[i], "tokenizer.json") ? strstr((char *)file->bytes, "{\"id\":0,") : NULL;
        if (id != NULL) id[strlen("{\"id\":")] = '9';
        char name[100];
        snprintf(name, sizeof name, "%sx", FILES[i]);
        OK(hart_files_add_borrowed_n(files, name, strlen(FILES[i]), file->bytes, size, file, destroy_borrowed));
    }
    return count;
}

static void borrowed_files(const hart_model *expected, const char *path) {
    hart_files *files = NULL;
    hart_options *options = NULL;
    hart_model *model = NULL, *shared = NULL;
    struct message kept = {0};
    int destroyed = 0, failed = 0;
    OK(hart_files_new(&files));
    int count = add_all_borrowed(files, path, &destroyed);
    /* Calls that fail. */
    size_t size = 0;
    struct borrowed *file = read_borrowed(path, FILES[0], &size, &failed);
    file->files = files;
    FAILS(hart_files_add_borrowed(files, FILES[0], file->bytes, size, file, destroy_borrowed), HART_ERR_REQUEST, "already");
    CHECK(failed == 1);
    file = read_borrowed(path, FILES[0], &size, &failed);
    FAILS(hart_files_add_borrowed(files, "../x", file->bytes, size, file, destroy_borrowed), HART_ERR_REQUEST, "below");
    IS_NULL(hart_files_add_borrowed(files, "x", NULL, 1, NULL, NULL), "data");
    IS_NULL(hart_files_add_borrowed(files, NULL, NULL, 0, NULL, NULL), "name");
    IS_NULL(hart_files_add_borrowed_n(files, NULL, 1, NULL, 0, NULL, NULL), "name");
    CHECK(failed == 2);
    OK(hart_options_new(&options));
    OK(hart_options_set_weights(options, "plain"));
    OK(hart_set_log(keep_message, &kept, destroy_message));
    OK(hart_model_open_files(files, options, HART_ABI_VERSION, &model));
    OK(hart_set_log(NULL, NULL, NULL));
    CHECK(brief || (kept.messages == 1 && kept.level == HART_LOG_WARNING && strstr(kept.text, "given ID '0'") != NULL));
    CHECK(kept.destroyed == 1);
    HART_FREE(files, files);
    OK(hart_model_share(model, &shared));
    HART_FREE(model, model);
    hart_request *request = new_request("a guitar", 5);
    hart_image *b = image_of(shared, request);
    if (!brief) { /* Other weights are the default of a model that has them. */
        hart_image *a = image_of(expected, request);
        CHECK(same_pixels(a, b));
        HART_FREE(image, a);
    }
    HART_FREE(image, b);
    HART_FREE(request, request);
    HART_FREE(model, shared);
    CHECK(destroyed == count);
    /* A model that can't be opened. */
    destroyed = 0;
    OK(hart_files_new(&files));
    count = add_all_borrowed(files, path, &destroyed);
    OK(hart_options_set_weights(options, "ema"));
    OK(hart_options_set_text_model(options, "elsewhere"));
    CHECK(hart_model_open_files(files, options, HART_ABI_VERSION, &model) == HART_ERR_CHECKPOINT);
    CHECK(destroyed == 0);
    HART_FREE(files, files);
    CHECK(destroyed == count);
    HART_FREE(options, options);
}

/* Pixels in the formats of other programs. */
static void pixels(void) {
    /* A red and a grey pixel over a half transparent and a transparent one, with padding. */
    static const uint8_t bgra[2][12] = {{0, 0, 255, 255, 80, 80, 80, 255, 9, 9, 9, 9}, {0, 0, 0, 128, 1, 2, 3, 0, 9, 9, 9, 9}};
    static const uint8_t rgb[12] = {255, 0, 0, 80, 80, 80, 127, 127, 127, 255, 255, 255};
    static const uint8_t grey[4] = {76, 80, 127, 255};
    static const uint8_t rgba[16] = {255, 0, 0, 255, 80, 80, 80, 255, 127, 127, 127, 255, 255, 255, 255, 255};
    hart_image *image = NULL, *again = NULL;
    uint8_t buffer[64];
    OK(hart_image_new_from_pixels(HART_PIXEL_BGRA, 2, 2, 12, bgra[0], 20, &image));
    CHECK(memcmp(view_of(image).pixels, rgb, sizeof rgb) == 0);
    memset(buffer, 7, sizeof buffer);
    OK(hart_image_copy_pixels(image, HART_PIXEL_GREY, 0, buffer, 4));
    CHECK(memcmp(buffer, grey, 4) == 0 && buffer[4] == 7);
    OK(hart_image_copy_pixels(image, HART_PIXEL_RGBA, 0, buffer, 16));
    CHECK(memcmp(buffer, rgba, 16) == 0 && buffer[16] == 7);
    memset(buffer, 7, sizeof buffer);
    OK(hart_image_copy_pixels(image, HART_PIXEL_BGR, 9, buffer, sizeof buffer));
    CHECK(buffer[0] == 0 && buffer[2] == 255 && buffer[5] == 80 && buffer[6] == 7 && buffer[8] == 7 && buffer[9] == 127);
    CHECK(buffer[15] == 7);
    OK(hart_image_copy_pixels(image, HART_PIXEL_RGB, 0, buffer, 12));
    CHECK(memcmp(buffer, rgb, 12) == 0);
    OK(hart_image_copy_pixels(image, HART_PIXEL_BGRA, 0, buffer, 16));
    OK(hart_image_new_from_pixels(HART_PIXEL_BGRA, 2, 2, 0, buffer, 16, &again));
    CHECK(same_pixels(image, again));
    HART_FREE(image, again);
    OK(hart_image_new_from_pixels(HART_PIXEL_GREY, 4, 1, 0, grey, 4, &again));
    CHECK(view_of(again).pixels[3] == 80 && view_of(again).pixels[5] == 80);
    /* The alpha stays known. */
    HART_FREE(image, again);
    OK(hart_image_transparency(image, &again));
    CHECK(view_of(again).pixels[0] == 0 && view_of(again).pixels[6] == 127 && view_of(again).pixels[9] == 255);
    HART_FREE(image, again);

    FAILS(hart_image_new_from_pixels(5, 2, 2, 0, rgba, 16, &again), HART_ERR_ARGUMENT, "`format` is 5");
    FAILS(hart_image_new_from_pixels(-1, 2, 2, 0, rgba, 16, &again), HART_ERR_ARGUMENT, "`format` is -1");
    FAILS(hart_image_new_from_pixels(HART_PIXEL_RGB, 2, 2, 0, rgba, 16, &again), HART_ERR_ARGUMENT, "expected 12");
    FAILS(hart_image_new_from_pixels(HART_PIXEL_RGBA, 2, 2, 0, rgba, 15, &again), HART_ERR_ARGUMENT, "expected 16");
    FAILS(hart_image_new_from_pixels(HART_PIXEL_RGBA, 2, 2, 7, rgba, 16, &again), HART_ERR_ARGUMENT, "stride");
    FAILS(hart_image_new_from_pixels(HART_PIXEL_RGBA, 2, 2, 10, rgba, 16, &again), HART_ERR_ARGUMENT, "expected at least 18");
    FAILS(hart_image_new_from_pixels(HART_PIXEL_RGBA, 0, 2, 0, rgba, 16, &again), HART_ERR_ARGUMENT, "at least one pixel");
    FAILS(hart_image_new_from_pixels(HART_PIXEL_RGBA, UINT32_MAX, UINT32_MAX, SIZE_MAX, rgba, 16, &again), HART_ERR_ARGUMENT, "pixel");
    IS_NULL(hart_image_new_from_pixels(HART_PIXEL_RGBA, 2, 2, 0, NULL, 16, &again), "pixels");
    IS_NULL(hart_image_new_from_pixels(HART_PIXEL_RGBA, 2, 2, 0, rgba, 16, NULL), "image");
    FAILS(hart_image_copy_pixels(image, 5, 0, buffer, 16), HART_ERR_ARGUMENT, "`format` is 5");
    FAILS(hart_image_copy_pixels(image, HART_PIXEL_RGBA, 0, buffer, 17), HART_ERR_ARGUMENT, "expected 16");
    FAILS(hart_image_copy_pixels(image, HART_PIXEL_RGBA, 9, buffer, 16), HART_ERR_ARGUMENT, "expected at least 17");
    FAILS(hart_image_copy_pixels(image, HART_PIXEL_RGBA, 3, buffer, 16), HART_ERR_ARGUMENT, "stride");
    IS_NULL(hart_image_copy_pixels(image, HART_PIXEL_RGBA, 0, NULL, 16), "buffer");
    IS_NULL(hart_image_copy_pixels(NULL, HART_PIXEL_RGBA, 0, buffer, 16), "image");
    HART_FREE(image, image);
}

struct opening {
    hart_options *options;
    hart_cancel *cancel;
    hart_event last;
    int events, cancel_after, destroyed;
    pthread_t thread;
};

static int32_t watch_opening(const hart_event *event, void *user_data) {
    struct opening *opening = user_data;
    hart_image *image = NULL;
    CHECK(pthread_equal(opening->thread, pthread_self()) && opening->destroyed == 0);
    CHECK(event->step == HART_STEP_TENSOR && event->struct_size == sizeof *event && event->has_preview == 0);
    CHECK(event->stage >= HART_STAGE_TEXT && event->stage <= HART_STAGE_DECODE && event->stage != HART_STAGE_SAMPLING);
    CHECK(event->index == (uint32_t)++opening->events && event->count >= event->index);
    CHECK(event->fraction >= opening->last.fraction && event->elapsed >= opening->last.elapsed);
    CHECK(event->scale == 0 && event->scales == 0 && event->side == 0);
    FAILS(hart_event_preview(event, 0, &image), HART_ERR_STATE, "no preview");
    opening->last = *event;
    HART_FREE(options, opening->options);
    if (opening->cancel != NULL && opening->events == 2) OK(hart_cancel_request(opening->cancel));
    return opening->cancel_after != 0 && opening->events == opening->cancel_after;
}

static void count_destroyed(void *user_data) {
    struct opening *opening = user_data;
    opening->destroyed++;
}

static hart_options *watched(struct opening *opening, uint32_t threads) {
    hart_options *options = NULL;
    OK(hart_options_new(&options));
    OK(hart_options_set_weights(options, "plain"));
    OK(hart_options_set_threads(options, threads));
    opening->thread = pthread_self();
    OK(hart_options_set_observer(options, watch_opening, opening, count_destroyed));
    return options;
}

/* Progress and cancellation of opening. */
static void openings(const char *path) {
    hart_model *model = NULL;
    for (uint32_t threads = 0; threads <= 1; threads++) {
        struct opening opening = {0};
        hart_options *options = watched(&opening, threads);
        OK(hart_model_open(path, options, HART_ABI_VERSION, &model));
        CHECK(opening.last.index == opening.last.count && opening.last.count > 20 && opening.last.fraction == 1.0f);
        HART_FREE(model, model);
        /* The observer frees the options; opening goes on. */
        int events = opening.events;
        opening = (struct opening){.options = options, .thread = pthread_self()};
        OK(hart_model_open(path, options, HART_ABI_VERSION, &model));
        CHECK(opening.events == events && opening.options == NULL && opening.destroyed == 1);
        HART_FREE(model, model);
        /* Cancelled by the observer. */
        opening = (struct opening){.cancel_after = 3};
        options = watched(&opening, threads);
        FAILS(hart_model_open(path, options, HART_ABI_VERSION, &model), HART_CANCELLED, "cancelled");
        CHECK(model == NULL && opening.events == 3);
        HART_FREE(options, options);
        CHECK(opening.destroyed == 1);
        /* By the token, during the work and before. */
        opening = (struct opening){0};
        OK(hart_cancel_new(&opening.cancel));
        options = watched(&opening, threads);
        OK(hart_options_set_cancel(options, opening.cancel));
        FAILS(hart_model_open(path, options, HART_ABI_VERSION, &model), HART_CANCELLED, "cancelled");
        CHECK(model == NULL && opening.events == 2);
        FAILS(hart_model_open(path, options, HART_ABI_VERSION, &model), HART_CANCELLED, "cancelled");
        CHECK(model == NULL && opening.events == 2);
        /* Reset, the same options open the model. */
        hart_cancel *cancel = opening.cancel;
        OK(hart_cancel_reset(cancel));
        opening = (struct opening){.thread = pthread_self()};
        OK(hart_model_open(path, options, HART_ABI_VERSION, &model));
        HART_FREE(options, options);
        /* The model does not keep the token. */
        OK(hart_cancel_request(cancel));
        HART_FREE(cancel, cancel);
        hart_request *request = new_request("a house", 0);
        hart_image *image = image_of(model, request);
        HART_FREE(image, image);
        HART_FREE(request, request);
        HART_FREE(model, model);
    }
}

static void *set_logs(void *argument) {
    struct message *kept = argument;
    for (int i = 0; i < 100; i++) {
        OK(hart_set_log(keep_message, kept, destroy_message));
        if (i % 2 == 0) OK(hart_set_log(NULL, NULL, NULL));
    }
    return NULL;
}

/* The log receives panics; without it, nothing is printed. */
static void logs(const char *path, const char *scratch) {
    struct message kept = {0};
    hart_model *model = open_model(path);
    OK(hart_set_log(keep_message, &kept, destroy_message));
    FAILS(hart_model_test_panic(model), HART_ERR_PANIC, "a test panic");
    CHECK(kept.messages == 1 && kept.level == HART_LOG_ERROR);
    CHECK(strncmp(kept.text, "panic at ", 9) == 0 && strstr(kept.text, ": a test panic") != NULL);
    FAILS(hart_model_test_panic(model), HART_ERR_POISONED, "panicked before");
    CHECK(kept.messages == 1 && kept.destroyed == 0);
    OK(hart_set_log(NULL, NULL, NULL));
    CHECK(kept.destroyed == 1);
    HART_FREE(model, model);
    /* Removing it without one destroys what was passed. */
    OK(hart_set_log(NULL, &kept, destroy_message));
    CHECK(kept.destroyed == 2);

    model = open_model(path);
    char name[4096];
    snprintf(name, sizeof name, "%s/stderr", scratch);
    int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600), stderr_before = dup(2);
    CHECK(file >= 0 && stderr_before >= 0 && dup2(file, 2) != -1);
    hart_status status = hart_model_test_panic(model);
    CHECK(dup2(stderr_before, 2) != -1 && close(stderr_before) == 0);
    CHECK(status == HART_ERR_PANIC && strstr(hart_last_error(), "a test panic") != NULL);
    CHECK(lseek(file, 0, SEEK_END) == 0 && close(file) == 0);
    HART_FREE(model, model);

    struct message all[4] = {{0}};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, set_logs, &all[i]) == 0);
    for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    OK(hart_set_log(NULL, NULL, NULL));
    for (int i = 0; i < 4; i++) CHECK(all[i].destroyed == 100);
}

int main(int argc, char **argv) {
    brief = argc == 4 && strcmp(argv[3], "brief") == 0;
    if (argc != 3 && !brief) {
        fprintf(stderr, "usage: %s MODEL SCRATCH [brief]\n", argv[0]);
        return 2;
    }
    const char *path = argv[1], *scratch = argv[2];
    hart_model *model = open_model(path);
    texts(path, scratch);
    options_values();
    request_values(model);
    shares(model);
    user_data(model);
    borrowed_files(model, path);
    pixels();
    openings(path);
    logs(path, scratch);
    HART_FREE(model, model);
    puts("functions for bindings: ok");
    return 0;
}
