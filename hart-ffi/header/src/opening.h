/* hart: text-to-image generation as a C library, with HART, the hybrid autoregressive transformer (arXiv 2410.10812).
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
 *         if (status == HART_OK) status = hart_request_set_observer(request, progress, NULL, NULL);
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
 * Rules for every function:
 *
 * Status    A function that can fail returns a hart_status. HART_OK is 0. After a failure, hart_last_error() returns
 *           a message with the cause and the remedy.
 * Ownership You own an object that a function returns through a pointer to a pointer. Free it once, with the _free
 *           function of its type. Every _free function accepts NULL. HART_FREE(kind, pointer) also sets the pointer to
 *           NULL. Never use free(). hart owns the strings and data that it returns as const pointers: each function
 *           says how long they are valid.
 * Outputs   are the last parameters. An object pointer is set to NULL first, and to the object only on success.
 * Strings   are UTF-8 and end in NUL, paths too, on every system. hart copies them before a call returns. Every function
 *           that takes one has a twin with _n at the end of its name, in which the size of the string in bytes follows the
 *           string, without a NUL at its end. It returns HART_ERR_ARGUMENT if the string contains NUL, and accepts NULL
 *           with a size of 0 as an empty string.
 * Settings  of requests and options can be read: for every _set_ function there is a _get_ function. One that returns a
 *           number also returns whether the program has set it; one that returns a string or an object returns NULL if it
 *           has not.
 * Structs   begin with struct_size, which you set to sizeof the struct. Later versions append fields and fill only as
 *           many bytes as struct_size says.
 * Pointers  must be NULL or valid. A function returns HART_ERR_NULL for NULL where it needs an object, and
 *           HART_ERR_ARGUMENT for an object of another type. An object must not be used after it is freed.
 * Booleans  are int32_t: 0 is false, everything else is true.
 * Callbacks receive the user_data that was set with them. A hart_destroy that is set with it is called exactly once, when
 *           hart no longer needs the user_data.
 *
 * Threads   hart_model                        any number of threads at once
 *           hart_cancel                       any number of threads at once, also in callbacks;
 *                                             hart_cancel_request also in signal handlers
 *           hart_set_log                      any number of threads at once
 *           hart_image, hart_tokens,
 *           hart_context, hart_result,
 *           hart_device_list                  any number of threads at once; the objects are immutable
 *           hart_options, hart_files,
 *           hart_request                      one thread at a time; may move between threads
 *           hart_last_error                   each thread has its own message
 *           Free an object only when no other thread uses it.
 * fork()    A child may use the models of its parent and open new ones. Calls return HART_ERR_STATE if a call of hart
 *           was running at the fork, in any thread, and if a GPU would be used that the parent has used: call exec then.
 *
 * Concurrent runs share the cores, so each takes longer. hart installs no signal handler and prints nothing.
 * hart_set_log sets a callback for what hart would print: warnings, and the texts of panics inside hart. A failing GPU, a
 * malformed tokenizer.json and a defect in hart (HART_ERR_PANIC) can cause a panic; the call returns an error.
 *
 * Generated by hart-ffi/header from the comments in hart-ffi/src: do not edit. docs/c-abi.md describes linking and the
 * stability of the ABI.
 */

#ifndef HART_H
#define HART_H

#include <stddef.h>
#include <stdint.h>

/* Define HART_STATIC before you include this header if you link the static library. */
#if defined(HART_STATIC)
#define HART_API
#elif defined(_WIN32)
#define HART_API __declspec(dllimport)
#elif defined(__GNUC__)
#define HART_API __attribute__((visibility("default")))
#else
#define HART_API
#endif

/* Marks functions that have been replaced by better ones. */
#if defined(HART_NO_DEPRECATION)
#define HART_DEPRECATED(advice)
#elif defined(__GNUC__)
#define HART_DEPRECATED(advice) __attribute__((deprecated(advice)))
#elif defined(_MSC_VER)
#define HART_DEPRECATED(advice) __declspec(deprecated(advice))
#else
#define HART_DEPRECATED(advice)
#endif

/* Frees an object and sets the pointer to NULL: HART_FREE(model, m) calls hart_model_free(m) and sets m to NULL. */
#define HART_FREE(kind, pointer) (hart_##kind##_free(pointer), (void)((pointer) = NULL))

#ifdef __cplusplus
extern "C" {
#endif

