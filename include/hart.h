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

/* ---- Objects --------------------------------------------------------------- */

/// Stops the runs of the requests that hold it.
typedef struct hart_cancel hart_cancel;

/// The devices that are compiled in and there, the best first.
typedef struct hart_device_list hart_device_list;

/// A model's files in memory, each under the name that it would have below the model's folder, such as "llm/config.json". Weights
/// must be safetensors: torch's .bin files are read from folders only.
typedef struct hart_files hart_files;

/// A picture of 8-bit RGB. It never changes.
typedef struct hart_image hart_image;

/// An opened model: weights that never change. Any number of threads may use it at once.
typedef struct hart_model hart_model;

/// How a model is opened. Whatever is not set has a sane default, and where a function takes options, NULL is all defaults.
typedef struct hart_options hart_options;

/// What to make: prompts and settings, who hears of it, what stops it. May be used again and again. One thread at a time.
typedef struct hart_request hart_request;

/// What a run made.
typedef struct hart_result hart_result;

/// A picture as the model's tokens: codes scale by scale, and the residual that they lose.
typedef struct hart_tokens hart_tokens;

/* ---- Version --------------------------------------------------------------- */

/// Version of the header, major part.
#define HART_VERSION_MAJOR 0

/// Version of the header, minor part.
#define HART_VERSION_MINOR 1

/// Version of the header, patch part.
#define HART_VERSION_PATCH 0

/// Version of the header in one number: major * 1000000 + minor * 1000 + patch.
#define HART_VERSION 1000

/// Number of the ABI: it grows when functions are added; programs compiled for a lower number go on working with a library of a higher
/// one.
#define HART_ABI_VERSION 1

/// Version of the library that runs, as HART_VERSION.
HART_API uint32_t hart_version(void);

/// Version of the library that runs, as text, such as "0.1.0". The text is constant.
HART_API const char *hart_version_text(void);

/// ABI number of the library that runs, as HART_ABI_VERSION.
HART_API uint32_t hart_abi_version(void);

/// What is built in, as one line of JSON: version, abi, backends (such as ["cpu", "cuda"]; `hart_device_list_new` says what there is of
/// them), target, commit (or "unknown"). The text is constant.
HART_API
const char *hart_build_info(void);

/* ---- Status and errors ----------------------------------------------------- */

/// What a call came to: `HART_OK` (0), `HART_CANCELLED` (1), or an error. Numbers are never given a second meaning; later versions may
/// add some, so treat a number that you don't know as an error. The hundreds say whose fault it is: 1xx the call, 2xx the files,
/// 3xx the device, 9xx hart.
typedef int32_t hart_status;

/// Done.
#define HART_OK 0

/// The run was cancelled, which is no error. What was finished before is in the result.
#define HART_CANCELLED 1

/// A pointer is NULL that must not be.
#define HART_ERR_NULL 100

/// A text is not UTF-8.
#define HART_ERR_UTF8 101

/// An argument won't do: an object of another kind, an index that isn't there, a name or number that an option doesn't know, or a
/// struct_size that is not set.
#define HART_ERR_ARGUMENT 102

/// What is asked for can't be made: a setting, size or name is out of range, or doesn't fit the model or the device.
#define HART_ERR_REQUEST 103

/// Not now: the request is running, or there is no callback that the call could belong to.
#define HART_ERR_STATE 104

/// The caller was compiled for a newer ABI than this library has.
#define HART_ERR_ABI 105

/// The prompt filter refuses the prompt.
#define HART_ERR_REFUSED 106

/// A file or folder can't be read or written.
#define HART_ERR_IO 200

/// A checkpoint's file is missing or is not what its name promises.
#define HART_ERR_CHECKPOINT 201

/// A value in a configuration file won't do.
#define HART_ERR_CONFIG 202

/// The tensors of a checkpoint are not those that its configuration asks for.
#define HART_ERR_WEIGHTS 203

/// A tensor of a checkpoint holds NaN or an infinity.
#define HART_ERR_NOT_FINITE 204

/// A picture file is not what its name promises.
#define HART_ERR_PICTURE 205

/// The device is not compiled in, not there, or has failed.
#define HART_ERR_DEVICE 300

/// More memory is needed than there is, or than `hart_options_set_max_memory` allows.
#define HART_ERR_MEMORY 301

/// The numbers of a run are no longer finite.
#define HART_ERR_OVERFLOW 302

/// A defect in hart: it panicked. The program goes on; the model in question answers `HART_ERR_POISONED` from now on.
#define HART_ERR_PANIC 900

/// The model has panicked before: free it and open it again.
#define HART_ERR_POISONED 901

/// An error that this version of the border has no number for.
#define HART_ERR_OTHER 902

/// What a status means, in a few English words; never NULL, also for numbers that it doesn't know. The text is constant.
HART_API const char *hart_status_text(hart_status status);

/// Why the last call on this thread that failed did so: what was wrong, where, what was expected. UTF-8, never NULL, "" before the first
/// failure. Valid until the next hart call on this thread that fails: copy what you keep.
HART_API
const char *hart_last_error(void);

/// Copies the last error of this thread, with its NUL, into a buffer of `capacity` bytes; what doesn't fit is cut between characters.
/// `needed`, if not NULL, gets the bytes that the whole text takes with its NUL. `buffer` may be NULL if `capacity` is 0.
HART_API
hart_status hart_last_error_copy(char *buffer,
                                 size_t capacity,
                                 size_t *needed);

/* ---- Devices --------------------------------------------------------------- */

/// One device. Set `struct_size` to `sizeof(hart_device_info)` before the call.
typedef struct {
  /// `sizeof(hart_device_info)`.
  uint32_t struct_size;
  /// 0.
  uint32_t reserved;
  /// Name for `hart_options_set_device`; valid until the list is freed.
  const char *name;
  /// What it is, for people; valid until the list is freed.
  const char *description;
} hart_device_info;

/// Lists the devices. Free the list with `hart_device_list_free`.
HART_API hart_status hart_device_list_new(hart_device_list **list);

/// Frees the list; NULL is nothing.
HART_API void hart_device_list_free(hart_device_list *list);

/// How many devices the list has; 0 for NULL.
HART_API size_t hart_device_list_count(const hart_device_list *list);

/// Describes device `index` of the list, from 0.
HART_API hart_status hart_device_list_get(const hart_device_list *list, size_t index, hart_device_info *info);

/* ---- Options --------------------------------------------------------------- */

/// Options with their defaults. Free them with `hart_options_free`; models that were opened with them go on.
HART_API hart_status hart_options_new(hart_options **options);

/// Frees the options; NULL is nothing.
HART_API void hart_options_free(hart_options *options);

/// Where the model computes: "auto" (default, the best that there is), "cpu", "cuda:0", "wgpu:0" or another name from
/// `hart_device_list_get`. GPUs are there if the library was built with them.
HART_API hart_status hart_options_set_device(hart_options *options, const char *device);

/// The numbers that it computes with: "auto" (default: f32 on the CPU, f16 on a GPU, or those that a converted model is stored in),
/// "f32", or faster and a little less exact "bf16" or "int8" on the CPU, "f16" on a GPU.
HART_API hart_status hart_options_set_precision(hart_options *options, const char *precision);

/// Folder of the text model; default `text` in the model's folder, or `Qwen2-VL-1.5B-Instruct` there or beside it.
HART_API hart_status hart_options_set_text_model(hart_options *options, const char *path);

/// Which weights: "auto" (default: EMA weights if there are some, else the plain ones), "ema" or "plain".
HART_API hart_status hart_options_set_weights(hart_options *options, const char *weights);

/// Whether safetensors files are mapped (not 0; default) or read into memory (0). Mapped files must not change while the model is open.
HART_API
hart_status hart_options_set_memory_map(hart_options *options,
                                        int32_t memory_map);

/// Whether tensors that nothing uses are an error (not 0; default) or overlooked (0).
HART_API hart_status hart_options_set_strict(hart_options *options, int32_t strict);

/// How many threads of its own the model works on, 1 to 1024; 0 (default) shares one set of threads, as many as there are cores, with
/// all models of the program. The picture is the same with any number.
HART_API
hart_status hart_options_set_threads(hart_options *options,
                                     uint32_t threads);

/// Most bytes of memory that the model may be expected to take; 0 (default) is no limit. What is estimated to need more, opening it or
/// a run, answers `HART_ERR_MEMORY` before any work.
HART_API
hart_status hart_options_set_max_memory(hart_options *options,
                                        uint64_t bytes);

/* ---- Files in memory ------------------------------------------------------- */

/// Reads `size` bytes at `offset` of a file into `buffer` and returns 0, or not 0 if it can't. Called on the thread that called
/// `hart_files_add_reader`. It must return: no C++ exception, no longjmp, no end of the thread.
typedef int32_t (*hart_reader)(void *user_data, uint64_t offset, uint8_t *buffer, size_t size);

/// No files yet. Free them with `hart_files_free`; models that were opened from them go on, and share their memory.
HART_API hart_status hart_files_new(hart_files **files);

/// Frees the files; NULL is nothing.
HART_API void hart_files_free(hart_files *files);

/// Adds a file whose contents are `size` bytes at `data`, which are copied.
HART_API hart_status hart_files_add(hart_files *files, const char *name, const uint8_t *data, size_t size);

/// Adds a file of `size` bytes, which are read through `reader` before this returns.
HART_API hart_status hart_files_add_reader(hart_files *files, const char *name, uint64_t size, hart_reader reader, void *user_data);

/* ---- Models ---------------------------------------------------------------- */

/// What a model is. Set `struct_size` to `sizeof(hart_model_info)` before the call.
typedef struct {
  /// `sizeof(hart_model_info)`.
  uint32_t struct_size;
  /// Pixels in a row of its pictures.
  uint32_t width;
  /// Rows of its pictures.
  uint32_t height;
  /// Scales of a picture, coarse to fine.
  uint32_t scales;
  /// Tokens of a prompt that it reads.
  uint32_t context_tokens;
  /// Codes that an image token is drawn from.
  uint32_t codes;
  /// Parameters, text encoder and visual tokenizer included.
  uint64_t parameters;
  /// Where it computes, such as "cpu" or "cuda:0"; valid until the model is freed.
  const char *device;
  /// The numbers that it computes with, such as "f32"; valid until the model is freed.
  const char *precision;
} hart_model_info;

/// Opens a model's folder, which holds `llm` and `tokenizer`. `options` may be NULL. Pass HART_ABI_VERSION as `abi_version`: a library
/// that is older than the program's header answers `HART_ERR_ABI`. Free the model with `hart_model_free`.
HART_API
hart_status hart_model_open(const char *path,
                            const hart_options *options,
                            uint32_t abi_version,
                            hart_model **model);

/// Opens a model whose files are in memory. As `hart_model_open`; `files` may be freed afterwards.
HART_API
hart_status hart_model_open_files(const hart_files *files,
                                  const hart_options *options,
                                  uint32_t abi_version,
                                  hart_model **model);

/// A second handle of the same model, for a part of the program that frees its own. The weights are shared and go with the last handle.
HART_API
hart_status hart_model_share(const hart_model *model,
                             hart_model **shared);

/// Frees the model; NULL is nothing. A run that is under way in a callback of which this is called goes on to its end.
HART_API void hart_model_free(hart_model *model);

/// Describes the model.
HART_API hart_status hart_model_describe(const hart_model *model, hart_model_info *info);

/// Makes a picture that nobody sees, so that the first one that counts doesn't wait: on a GPU kernels are compiled when they are first
/// needed, and kept on disk for the next program. On the CPU there is nothing to do.
HART_API
hart_status hart_model_warm_up(const hart_model *model);

/// Estimates memory in bytes before anything is made: `weights` is what the model holds, `peak` is that and what a run of the request
/// needs at its height. Every further run at the same time adds `peak - weights`. `request` may be NULL for one picture; `weights` and
/// `peak` may be NULL.
HART_API
hart_status hart_model_memory(const hart_model *model,
                              const hart_request *request,
                              uint64_t *weights,
                              uint64_t *peak);

/// Panics inside the model on purpose, so that a program can try how it recovers: answers `HART_ERR_PANIC`, and the model answers
/// `HART_ERR_POISONED` from now on.
HART_API hart_status hart_model_test_panic(const hart_model *model);

/* ---- Cancelling ------------------------------------------------------------ */

/// A token that has not been used. Free it with `hart_cancel_free`; requests that hold it go on holding what is behind it.
HART_API hart_status hart_cancel_new(hart_cancel **cancel);

/// Frees the token; NULL is nothing.
HART_API void hart_cancel_free(hart_cancel *cancel);

/// Asks every run that holds the token to stop, also one that begins later. From any thread, in a callback, and, alone of all
/// functions, in a signal handler: it is one atomic store, and leaves the last error alone.
HART_API hart_status hart_cancel_request(const hart_cancel *cancel);

/// Makes the token usable again.
HART_API hart_status hart_cancel_reset(const hart_cancel *cancel);

/// 1 if the token was used, else 0; 0 for NULL.
HART_API int32_t hart_cancel_is_requested(const hart_cancel *cancel);

/* ---- Events ---------------------------------------------------------------- */

/// Stage of an event: prompt to context.
#define HART_STAGE_TEXT 0

/// Stage of an event: the transformer, scale by scale.
#define HART_STAGE_TRANSFORMER 1

/// Stage of an event: logits to codes, codes to the latent.
#define HART_STAGE_SAMPLING 2

/// Stage of an event: the residual diffusion of the last scale.
#define HART_STAGE_RESIDUAL 3

/// Stage of an event: latent to pixels.
#define HART_STAGE_DECODE 4

/// Step of an event: `index` of `count` layers of the text encoder are done.
#define HART_STEP_TEXT_LAYER 0

/// Step of an event: scale `index` of `count` begins.
#define HART_STEP_SCALE 1

/// Step of an event: `index` of `count` transformer blocks of the scale are done.
#define HART_STEP_BLOCK 2

/// Step of an event: scale `index` of `count` is done, and there is a preview.
#define HART_STEP_SCALE_DONE 3

/// Step of an event: `index` of `count` steps of the residual diffusion are done.
#define HART_STEP_DIFFUSION 4

/// Step of an event: `index` of `count` blocks of the decoder are done.
#define HART_STEP_DECODER 5

/// Step of an event: `index` of `count` pictures are finished; the preview is the last of them.
#define HART_STEP_IMAGES 6

/// Step of an event: one that this version of the header has no name for.
#define HART_STEP_OTHER 99

/// One report from a run. Made by hart; valid during the callback only. `struct_size` is how many bytes of it the library has filled:
/// a field is there if it ends within them.
typedef struct {
  /// Bytes that the library has filled.
  uint32_t struct_size;
  /// One of HART_STAGE_*.
  int32_t stage;
  /// One of HART_STEP_*: what has just been reached.
  int32_t step;
  /// Which one of the step's `count`, from 1.
  uint32_t index;
  /// How many there are.
  uint32_t count;
  /// The current scale k, from 1; 0 before the first of a picture.
  uint32_t scale;
  /// How many scales there are, S; 0 before the first of a picture.
  uint32_t scales;
  /// Side of the current scale in latent positions; 0 before the first of a picture.
  uint32_t side;
  /// Estimated share of the whole run that is done, 0 to 1; never falls.
  float fraction;
  /// 1 if `hart_event_preview` has something to show, else 0.
  int32_t has_preview;
  /// Seconds since the run began.
  double elapsed;
} hart_event;

/// Hears a run's events. Called on the thread that called `hart_generate`, one call at a time, often: be quick. Return 0 to go on, anything
/// else to cancel. It may call any hart function, but can't generate with the request that is running, nor change it. It must return: no
/// C++ exception, no longjmp, no end of the thread.
typedef int32_t (*hart_observer)(const hart_event *event, void *user_data);

/// The picture as it stands, decoded now: with sides of at most `max_side` pixels but at least those of one latent position (16 in
/// published models), 0 for the full size. A small one costs little. It never changes the final picture. Only in a callback whose
/// event has a preview, else `HART_ERR_STATE`; `HART_CANCELLED` if the run's token is used meanwhile. Free the image with `hart_image_free`; it may be kept.
HART_API
hart_status hart_event_preview(const hart_event *event,
                               uint32_t max_side,
                               hart_image **image);

/* ---- Requests -------------------------------------------------------------- */

/// A request without a prompt and with the model's own settings. Free it with `hart_request_free`.
HART_API hart_status hart_request_new(hart_request **request);

/// Frees the request; NULL is nothing.
HART_API void hart_request_free(hart_request *request);

/// One prompt, in place of those that were there.
HART_API hart_status hart_request_set_prompt(hart_request *request, const char *prompt);

/// One more prompt.
HART_API hart_status hart_request_add_prompt(hart_request *request, const char *prompt);

/// Pictures of each prompt; default 1. Picture i of a prompt, from 0, has the seed `seed + i`.
HART_API hart_status hart_request_set_images_per_prompt(hart_request *request, uint32_t count);

/// Seed of each prompt's first picture; default 0.
HART_API hart_status hart_request_set_seed(hart_request *request, uint64_t seed);

/// Strength of classifier-free guidance, -100 to 100, 0 is none; default the model's own, usually 4.5.
HART_API hart_status hart_request_set_guidance(hart_request *request, double guidance);

/// Whether a token is a mix of codes (not 0) or one code (0); default the model's own, usually 1.
HART_API hart_status hart_request_set_soft_sampling(hart_request *request, int32_t soft);

/// Codes kept in drawing a token, at least 1; default the model's own, usually 600 on the first seven scales and 300 after.
HART_API hart_status hart_request_set_top_k(hart_request *request, uint32_t top_k);

/// Keeps the likeliest codes that together have this probability, 0 is off; default the model's own, usually 0.
HART_API hart_status hart_request_set_top_p(hart_request *request, double top_p);

/// Steps of the residual diffusion, such as "8", "10,5" or "ddim25"; default the model's own, usually "8".
HART_API hart_status hart_request_set_steps(hart_request *request, const char *steps);

/// Text that goes before the prompts; "" for none, NULL for the model's own, which is the default.
HART_API hart_status hart_request_set_system_prompt(hart_request *request, const char *prompt);

/// Draws a part of a picture anew: what is white in `mask`. Both have the model's width and height. The latent of the rest stays
/// exactly as the picture's own. The coarsest `kept_scales` scales are kept everywhere, so that what was there shines through; 0 is none.
/// The request holds the images; NULL for both starts from nothing again, and so does a NULL `image` in the two functions below.
HART_API
hart_status hart_request_set_inpaint(hart_request *request,
                                     const hart_image *image,
                                     const hart_image *mask,
                                     uint32_t kept_scales);

/// Draws around a picture that is smaller than the model's, with its left top corner at (`left`, `top`) of the canvas.
HART_API hart_status hart_request_set_outpaint(hart_request *request, const hart_image *image, uint32_t left, uint32_t top);

/// Keeps a picture's coarsest `kept_scales` scales, 1 to all but the last, and draws the finer ones anew.
HART_API hart_status hart_request_set_variation(hart_request *request, const hart_image *image, uint32_t kept_scales);

/// Who hears the events of its runs, with the pointer that it gets; NULL is nobody.
HART_API hart_status hart_request_set_observer(hart_request *request, hart_observer observer, void *user_data);

/// The token that stops its runs; NULL is none. The token may be freed before the request.
HART_API hart_status hart_request_set_cancel(hart_request *request, const hart_cancel *cancel);

/* ---- Generating ------------------------------------------------------------ */

/// Seconds that a run spent in each stage. Set `struct_size` to `sizeof(hart_timings)` before the call.
typedef struct {
  /// `sizeof(hart_timings)`.
  uint32_t struct_size;
  /// 0.
  uint32_t reserved;
  /// Prompt to context.
  double text;
  /// The transformer.
  double transformer;
  /// Logits to codes, codes to the latent.
  double sampling;
  /// The residual diffusion.
  double residual;
  /// Latent to pixels.
  double decode;
  /// The whole run.
  double total;
} hart_timings;

/// A prompt that was longer than the model reads. Set `struct_size` to `sizeof(hart_truncation)` before the call.
typedef struct {
  /// `sizeof(hart_truncation)`.
  uint32_t struct_size;
  /// Which prompt of the request, from 0; -1 is the system prompt.
  int32_t prompt;
  /// Tokens of the whole text.
  uint32_t tokens;
  /// Tokens that were read.
  uint32_t kept;
  /// The text that was not read; valid until the result is freed.
  const char *cut;
} hart_truncation;

/// Makes the request's pictures and returns when they are finished. Free the result with `hart_result_free`. After `HART_CANCELLED` there is a
/// result too, with the pictures that were finished before; after an error it is NULL. Any number of threads may generate with one
/// model at once, each with a request of its own.
HART_API
hart_status hart_generate(const hart_model *model,
                          const hart_request *request,
                          hart_result **result);

/// Frees the result; NULL is nothing. Images that were taken from it stay.
HART_API void hart_result_free(hart_result *result);

/// How many pictures were finished: all of the first prompt, then all of the second, and so on; 0 for NULL.
HART_API size_t hart_result_count(const hart_result *result);

/// Picture `index`, from 0, as an image of its own, which shares the pixels. Free it with `hart_image_free`.
HART_API hart_status hart_result_image(const hart_result *result, size_t index, hart_image **image);

/// Where the time went; zeros after a cancelled run.
HART_API hart_status hart_result_timings(const hart_result *result, hart_timings *timings);

/// How many prompts, the system prompt included, were cut because the model reads no more; 0 for NULL.
HART_API size_t hart_result_truncation_count(const hart_result *result);

/// What was cut, `index` from 0.
HART_API hart_status hart_result_truncation(const hart_result *result, size_t index, hart_truncation *truncation);

/* ---- Images ---------------------------------------------------------------- */

/// A picture's pixels, and how it was made. Set `struct_size` to `sizeof(hart_image_view)` before the call. Pointers are valid until the
/// image is freed.
typedef struct {
  /// `sizeof(hart_image_view)`.
  uint32_t struct_size;
  /// Pixels in a row.
  uint32_t width;
  /// Rows.
  uint32_t height;
  /// Bytes of a pixel: 3, for red, green, blue.
  uint32_t channels;
  /// Bytes from one row to the next.
  size_t stride;
  /// Bytes in all.
  size_t size;
  /// The first row's first pixel, at the top left.
  const uint8_t *pixels;
  /// The seed that it was made with, if it was.
  uint64_t seed;
  /// The prompt that it was made from, or NULL.
  const char *prompt;
  /// The other settings in one line, or NULL.
  const char *settings;
} hart_image_view;

/// A picture from pixels of your own, which are copied: `height` rows of `width` pixels of 3 bytes each, red, green, blue, from the top left;
/// `stride` is the bytes from one row to the next, 0 for 3 * width. Free it with `hart_image_free`.
HART_API
hart_status hart_image_new(uint32_t width,
                           uint32_t height,
                           size_t stride,
                           const uint8_t *pixels,
                           hart_image **image);

/// Reads a PNG file of any colour type; transparency is laid over white. Prompt, seed and settings are read too, if hart wrote them.
HART_API
hart_status hart_image_open(const char *path,
                            hart_image **image);

/// Reads a PNG file of `size` bytes that is in memory, as `hart_image_open` does.
HART_API hart_status hart_image_open_memory(const uint8_t *data, size_t size, hart_image **image);

/// Frees the image; NULL is nothing.
HART_API void hart_image_free(hart_image *image);

/// The image's pixels and how it was made.
HART_API hart_status hart_image_describe(const hart_image *image, hart_image_view *view);

/// Writes a PNG file, whole or not at all; prompt, seed and settings stand in its text chunks.
HART_API hart_status hart_image_save(const hart_image *image, const char *path);

/// The PNG file's bytes, as `hart_image_save` writes them; valid until the image is freed.
HART_API hart_status hart_image_png(const hart_image *image, const uint8_t **data, size_t *size);

/// `count` images of one size side by side, in rows of `columns`. Free the grid with `hart_image_free`.
HART_API hart_status hart_image_grid(const hart_image *const *images, size_t count, size_t columns, hart_image **grid);

/* ---- Tokens ---------------------------------------------------------------- */

/// A picture to tokens. It must have the model's width and height. Free the tokens with `hart_tokens_free`; they keep the model's
/// weights in memory.
HART_API hart_status hart_model_tokenize(const hart_model *model, const hart_image *image, hart_tokens **tokens);

/// Frees the tokens; NULL is nothing.
HART_API void hart_tokens_free(hart_tokens *tokens);

/// How many scales the tokens have, coarse to fine; 0 for NULL.
HART_API size_t hart_tokens_scales(const hart_tokens *tokens);

/// The codes of scale `scale`, from 0: side * side numbers, row by row; valid until the tokens are freed.
HART_API hart_status hart_tokens_codes(const hart_tokens *tokens, size_t scale, const uint32_t **codes, size_t *count);

/// Tokens to a picture: with the residual (not 0), which is all that the autoencoder can do, or from the codes alone (0). Free the
/// image with `hart_image_free`.
HART_API
hart_status hart_model_reconstruct(const hart_model *model,
                                   const hart_tokens *tokens,
                                   int32_t with_residual,
                                   hart_image **image);

#ifdef __cplusplus
}
#endif

#endif
