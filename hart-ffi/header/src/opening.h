/* hart: text to image in any program. HART, the hybrid autoregressive transformer (arXiv 2410.10812), as a C library.
 *
 * A complete program:
 *
 *     #include <stdio.h>
 *     #include <hart.h>
 *
 *     static int32_t progress(const hart_event *event, void *user_data) {
 *         (void)user_data;
 *         fprintf(stderr, "\r%3.0f %%", 100.0 * event->fraction);
 *         return 0; // anything else cancels
 *     }
 *
 *     int main(int argc, char **argv) {
 *         hart_model *model = NULL;
 *         hart_request *request = NULL;
 *         hart_result *result = NULL;
 *         hart_image *image = NULL;
 *         hart_status status;
 *         if (argc != 4) {
 *             fprintf(stderr, "usage: %s MODEL PROMPT OUT.png\n", argv[0]);
 *             return 2;
 *         }
 *         status = hart_model_open(argv[1], NULL, HART_ABI_VERSION, &model);
 *         if (status == HART_OK) status = hart_request_new(&request);
 *         if (status == HART_OK) status = hart_request_set_prompt(request, argv[2]);
 *         if (status == HART_OK) status = hart_request_set_observer(request, progress, NULL);
 *         if (status == HART_OK) status = hart_generate(model, request, &result);
 *         if (status == HART_OK) status = hart_result_image(result, 0, &image);
 *         if (status == HART_OK) status = hart_image_save(image, argv[3]);
 *         if (status != HART_OK) fprintf(stderr, "\n%s\n", hart_last_error());
 *         hart_image_free(image);
 *         hart_result_free(result);
 *         hart_request_free(request);
 *         hart_model_free(model);
 *         return status == HART_OK ? 0 : 1;
 *     }
 *
 * Rules, for every function:
 *
 * Status    What can fail returns a hart_status; HART_OK is 0. hart_last_error() then says what was wrong and what to do.
 * Ownership What a function gives through a pointer to a pointer is yours, and is given back to the _free function of its type, once.
 *           Every _free takes NULL. HART_FREE(kind, pointer) frees and sets the pointer to NULL. Never use free().
 *           const char * and data pointers that hart gives are borrowed: each function says for how long.
 * Outputs   come last. A pointer to an object is set to NULL first and to the object only on success.
 * Texts     are UTF-8 and end in NUL, paths too, on every system. They are copied before a call returns.
 * Structs   begin with struct_size, which you set to sizeof the struct. Later versions append fields and fill only what you have room for.
 * Pointers  must be NULL, or lead to what the function says. NULL where something is needed answers HART_ERR_NULL, an object of another
 *           type HART_ERR_ARGUMENT. An object must not be used after it is freed.
 * Numbers   that say yes or no are int32_t: 0 is no.
 *
 * Threads   hart_model                        any number of threads at once
 *           hart_cancel                       any number of threads at once, and callbacks; hart_cancel_request in signal handlers too
 *           hart_image, hart_tokens,
 *           hart_result, hart_device_list     any number of threads at once; nothing changes in them
 *           hart_options, hart_files,
 *           hart_request                      may move between threads; one at a time
 *           hart_last_error                   each thread has its own
 *           Freeing counts as a use that nothing else may overlap. In a child after fork(), hart's threads are gone: exec first.
 *
 * Stack     Functions that open a model or make a picture want half a megabyte of the calling thread's stack, as threads usually have.
 *
 * Runs at the same time share the processor's cores; each takes longer. hart installs no signal handler, no logger and no panic hook,
 * and prints nothing, with one exception: where something below it panics, Rust's runtime writes that to standard error before the call
 * answers with an error. A GPU that fails does so, a damaged tokenizer.json can, and so does a defect of hart (HART_ERR_PANIC).
 *
 * Signals   Where the processor has AMX, hart asks Linux for its registers. Stacks that are given to sigaltstack() later must be as large
 *           as getauxval(AT_MINSIGSTKSZ) says, some 11 KB and not 2, and where a smaller one is in use, hart does without AMX.
 *
 * Made by hart-ffi/header from the comments in hart-ffi/src: don't edit. docs/c-abi.md says how to link, and what the ABI promises.
 */

#ifndef HART_H
#define HART_H

#include <stddef.h>
#include <stdint.h>

/* Define HART_STATIC before this header when you link the static library. */
#if defined(HART_STATIC)
#define HART_API
#elif defined(_WIN32)
#define HART_API __declspec(dllimport)
#elif defined(__GNUC__)
#define HART_API __attribute__((visibility("default")))
#else
#define HART_API
#endif

/* Marks functions that have a better successor. */
#if defined(HART_NO_DEPRECATION)
#define HART_DEPRECATED(advice)
#elif defined(__GNUC__)
#define HART_DEPRECATED(advice) __attribute__((deprecated(advice)))
#elif defined(_MSC_VER)
#define HART_DEPRECATED(advice) __declspec(deprecated(advice))
#else
#define HART_DEPRECATED(advice)
#endif

/* Frees an object and forgets it, so that it can't be freed twice: HART_FREE(model, m) calls hart_model_free(m) and sets m to NULL. */
#define HART_FREE(kind, pointer) (hart_##kind##_free(pointer), (void)((pointer) = NULL))

#ifdef __cplusplus
extern "C" {
#endif

