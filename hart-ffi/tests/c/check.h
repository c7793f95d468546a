/* Shared code of the test programs. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hart.h"

/* Exits with a message if a condition is false. */
#define CHECK(condition)                                                                                  \
    do {                                                                                             \
        if (!(condition)) {                                                                               \
            fprintf(stderr, "%s:%d: failed: %s\nlast error: %s\n", __FILE__, __LINE__, #condition, hart_last_error()); \
            exit(1);                                                                                 \
        }                                                                                            \
    } while (0)

/* Checks that a call succeeds. */
#define OK(call) CHECK((call) == HART_OK)

/* Checks that a call fails with a status, and that the last error contains `part`. */
#define FAILS(call, status, part)                            \
    do {                                                     \
        CHECK((call) == (status));                           \
        CHECK(strstr(hart_last_error(), (part)) != NULL);    \
    } while (0)

static inline hart_model *open_model(const char *path) {
    hart_model *model = NULL;
    OK(hart_model_open(path, NULL, HART_ABI_VERSION, &model));
    CHECK(model != NULL);
    return model;
}

/* Opens a model that generates this many images at once, with as many threads. */
static inline hart_model *open_parallel(const char *path, uint32_t parallel) {
    hart_options *options = NULL;
    hart_model *model = NULL;
    OK(hart_options_new(&options));
    OK(hart_options_set_threads(options, parallel));
    OK(hart_options_set_parallel(options, parallel));
    OK(hart_model_open(path, options, HART_ABI_VERSION, &model));
    HART_FREE(options, options);
    return model;
}

static inline hart_request *new_request(const char *prompt, uint64_t seed) {
    hart_request *request = NULL;
    OK(hart_request_new(&request));
    OK(hart_request_set_prompt(request, prompt));
    OK(hart_request_set_seed(request, seed));
    return request;
}

static inline hart_image_view view_of(const hart_image *image) {
    hart_image_view view = {.struct_size = sizeof view};
    OK(hart_image_describe(image, &view));
    return view;
}

static inline int same_pixels(const hart_image *a, const hart_image *b) {
    hart_image_view x = view_of(a), y = view_of(b);
    return x.width == y.width && x.height == y.height && x.size == y.size && memcmp(x.pixels, y.pixels, x.size) == 0;
}

/* Returns the first image of a request. */
static inline hart_image *image_of(const hart_model *model, const hart_request *request) {
    hart_result *result = NULL;
    hart_image *image = NULL;
    OK(hart_generate(model, request, &result));
    OK(hart_result_image(result, 0, &image));
    hart_result_free(result);
    return image;
}

/* The files of a model. generation_config.json is optional. */
static const char *const FILES[] = {
    "llm/config.json",       "llm/model.safetensors",     "llm/generation_config.json", "tokenizer/config.json", "tokenizer/model.safetensors",
    "text/config.json",      "text/model.safetensors",    "text/tokenizer.json",        "text/tokenizer_config.json",
};

#endif
