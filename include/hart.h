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

/* ---- Objects --------------------------------------------------------------- */

/** A token that cancels the runs of all requests that hold it. */
typedef struct hart_cancel hart_cancel;

/** Encoded prompts of a request, for any number of further requests with the same prompts. */
typedef struct hart_context hart_context;

/** Devices that are compiled in and present, the best first. */
typedef struct hart_device_list hart_device_list;

/**
 * Files of a model in memory. Each has the path that it would have inside the model's folder, such as
 * "llm/config.json". Weights must be safetensors files: PyTorch .bin files can only be read from a folder.
 */
typedef struct hart_files hart_files;

/** An image with 8-bit RGB pixels. It never changes. */
typedef struct hart_image hart_image;

/** An open model. Its weights never change, so any number of threads may use it at once. */
typedef struct hart_model hart_model;

/**
 * Options for opening a model. Every option has a default. A function that takes options accepts NULL for the
 * defaults.
 */
typedef struct hart_options hart_options;

/**
 * A request: prompts, settings, an observer and a cancel token. It may be used for any number of runs, by one thread
 * at a time.
 */
typedef struct hart_request hart_request;

/** Result of a run. */
typedef struct hart_result hart_result;

/** An image encoded as tokens of a model: the codes of every scale, and the residual that the codes do not represent. */
typedef struct hart_tokens hart_tokens;

/* ---- Version --------------------------------------------------------------- */

/** Major version of this header. */
#define HART_VERSION_MAJOR 0

/** Minor version of this header. */
#define HART_VERSION_MINOR 1

/** Patch version of this header. */
#define HART_VERSION_PATCH 0

/** Version of this header as one number: major * 1000000 + minor * 1000 + patch. */
#define HART_VERSION 1000

/**
 * ABI number of this header. It grows when functions, constants or fields are added. A program that was compiled with
 * a lower number works with a library that has a higher one.
 */
#define HART_ABI_VERSION 1

/** Returns the version of the loaded library as one number, like `HART_VERSION`. */
HART_API uint32_t hart_version(void);

/** Returns the version of the loaded library as a string, such as "0.1.0". The string is static. */
HART_API const char *hart_version_text(void);

/** Returns the ABI number of the loaded library, like `HART_ABI_VERSION`. */
HART_API uint32_t hart_abi_version(void);

/**
 * Returns one line of JSON that describes the build of the loaded library: `version`, `abi`, `backends` (such as
 * ["cpu", "cuda"]), `target` and `commit` (or "unknown"). The string is static. `hart_device_list_new` lists the
 * devices that are present.
 */
HART_API const char *hart_build_info(void);

/* ---- Status ---------------------------------------------------------------- */

/**
 * Outcome of a call: `HART_OK` (0), `HART_CANCELLED` (1) or an error. The hundreds digit gives the cause: 1xx the
 * call, 2xx a file, 3xx the device, 9xx hart. A value never changes its meaning. Later versions may add values: treat
 * an unknown one as an error.
 */
typedef int32_t hart_status;

enum {
  /** The call succeeded. */
  HART_OK = 0,
  /**
   * The run, or opening the model, was cancelled. This is not an error: the result of a run holds the images that were
   * finished before.
   */
  HART_CANCELLED = 1,
  /** A pointer that must not be NULL is NULL. */
  HART_ERR_NULL = 100,
  /** A string is not UTF-8. */
  HART_ERR_UTF8 = 101,
  /**
   * An argument is invalid: an object of another type, an index out of range, an unknown name or value of an option, or
   * a `struct_size` that is not set.
   */
  HART_ERR_ARGUMENT = 102,
  /** The request can't be carried out: a setting, size or name is out of range, or does not fit the model or the device. */
  HART_ERR_REQUEST = 103,
  /**
   * The call is not allowed now: the request is running, no callback of an event with a preview is running, or the process
   * was forked during a call or after its parent used a GPU.
   */
  HART_ERR_STATE = 104,
  /** The program was compiled for a newer ABI than the library has. */
  HART_ERR_ABI = 105,
  /** The prompt filter refused the prompt. Prompt filters exist in Rust only, so C programs do not receive this status. */
  HART_ERR_REFUSED = 106,
  /** A file or folder can't be read or written. */
  HART_ERR_IO = 200,
  /** A file of the checkpoint is missing or malformed. */
  HART_ERR_CHECKPOINT = 201,
  /** A value in a configuration file is invalid. */
  HART_ERR_CONFIG = 202,
  /** The tensors of the checkpoint do not match its configuration. */
  HART_ERR_WEIGHTS = 203,
  /** A tensor of the checkpoint contains NaN or infinity. */
  HART_ERR_NOT_FINITE = 204,
  /** An image file is malformed. */
  HART_ERR_IMAGE = 205,
  /** The device is not compiled in, not present, or has failed. */
  HART_ERR_DEVICE = 300,
  /** More memory is needed than is available, or than `hart_options_set_max_memory` allows. */
  HART_ERR_MEMORY = 301,
  /** A run produced NaN or infinity. */
  HART_ERR_OVERFLOW = 302,
  /** The system does not start the threads that hart needs. The next call tries again. */
  HART_ERR_THREADS = 303,
  /** hart panicked because of a defect in hart. The program can continue; the model returns `HART_ERR_POISONED` from now on. */
  HART_ERR_PANIC = 900,
  /** The model has panicked before. Free it and open it again. */
  HART_ERR_POISONED = 901,
  /** An error that has no constant in this version of the C API. */
  HART_ERR_OTHER = 902
};

/** Returns a short English description of a status. Never NULL, even for unknown numbers. The string is static. */
HART_API const char *hart_status_text(hart_status status);

/* ---- Last error ------------------------------------------------------------ */

/**
 * Returns the message of the last call on this thread that failed: what was wrong, where, and what was expected. Never
 * NULL; "" before the first failure. The string is valid until the next call on this thread fails: copy it to keep it.
 */
HART_API const char *hart_last_error(void);

/**
 * Copies the message of `hart_last_error`, with its NUL, into a buffer of `capacity` bytes. A message that does not
 * fit is cut between characters. `needed`, if not NULL, receives the size of the whole message with its NUL. `buffer`
 * may be NULL if `capacity` is 0.
 */
HART_API hart_status hart_last_error_copy(char *buffer, size_t capacity, size_t *needed);

/* ---- User data ------------------------------------------------------------- */

/**
 * Callback that destroys the `user_data` that was passed with it. hart calls it exactly once, when it no longer needs
 * the data: when the last object that holds the data is freed or gets other data, when the last run that uses it has
 * ended, or before the call returns if that fails or does not keep the data. hart calls it on the thread that gave up
 * the data last, which may be one of hart's own. NULL does nothing. It must return normally: no C++ exception, no longjmp,
 * no thread exit.
 */
typedef void (*hart_destroy)(void *user_data);

/* ---- Log ------------------------------------------------------------------- */

/** Severity of a message. Later versions may add values. */
typedef int32_t hart_log_level;

enum {
  /** A panic: a failure inside hart or a library that it uses. The call in which it happened, if any, returns an error. */
  HART_LOG_ERROR = 1,
  /** A library that hart uses works differently than expected: it ignores a damaged cache, for example. */
  HART_LOG_WARNING = 2
};

/**
 * Callback that receives a message, which is valid during the call. hart calls it on any thread, also on several at the
 * same time. It must not call functions of hart, and must return normally: no C++ exception, no longjmp, no thread exit.
 */
typedef void (*hart_logger)(hart_log_level level, const char *message, void *user_data);

/**
 * Sets the callback that receives the messages of the whole library: the texts of panics, and warnings of the libraries
 * that hart uses. NULL, the default, removes it: hart then prints nothing, and a call in which a panic happens still
 * returns an error whose text is in `hart_last_error`. When the call returns, the former callback has returned and is no
 * longer called. `destroy` may be NULL; otherwise hart calls it once when it no longer needs `user_data`. Returns
 * `HART_ERR_STATE` inside the callback.
 */
HART_API hart_status hart_set_log(hart_logger logger, void *user_data, hart_destroy destroy);

/* ---- Devices --------------------------------------------------------------- */

/** One device. Set `struct_size` to `sizeof(hart_device_info)` before the call. */
typedef struct {
  /** `sizeof(hart_device_info)`. */
  uint32_t struct_size;
  /** Always 0. */
  uint32_t reserved;
  /** Name for `hart_options_set_device`. Valid until the list is freed. */
  const char *name;
  /** Human-readable description. Valid until the list is freed. */
  const char *description;
} hart_device_info;

/** Lists the devices. Free the list with `hart_device_list_free`. */
HART_API hart_status hart_device_list_new(hart_device_list **list);

/** Frees the list. Does nothing if `list` is NULL. */
HART_API void hart_device_list_free(hart_device_list *list);

/** Returns the number of devices. Returns 0 if `list` is NULL. */
HART_API size_t hart_device_list_count(const hart_device_list *list);

/** Describes device `index`, counted from 0. Returns `HART_ERR_ARGUMENT` if there is no such device. */
HART_API hart_status hart_device_list_get(const hart_device_list *list, size_t index, hart_device_info *info);

/* ---- Cancellation ---------------------------------------------------------- */

/** Creates a token that is not cancelled. Free it with `hart_cancel_free`; requests that hold it keep working. */
HART_API hart_status hart_cancel_new(hart_cancel **cancel);

/** Creates another handle of the same token, which is freed separately. */
HART_API hart_status hart_cancel_share(const hart_cancel *cancel, hart_cancel **shared);

/** Frees the token. Does nothing if `cancel` is NULL. */
HART_API void hart_cancel_free(hart_cancel *cancel);

/**
 * Cancels every run of a request that holds the token, including runs that start later. May be called from any thread
 * and in callbacks. It is the only function that may be called in a signal handler: it does one atomic store and
 * leaves the last error unchanged.
 */
HART_API hart_status hart_cancel_request(const hart_cancel *cancel);

/** Resets the token so that it can be used again. */
HART_API hart_status hart_cancel_reset(const hart_cancel *cancel);

/** Returns 1 if the token is cancelled, otherwise 0. Returns 0 if `cancel` is NULL. */
HART_API int32_t hart_cancel_is_requested(const hart_cancel *cancel);

/* ---- Events ---------------------------------------------------------------- */

/** Stage of a run in which an event occurs, or whose weights are loaded. Later versions may add stages. */
typedef int32_t hart_stage;

enum {
  /** The text encoder: prompt to context. */
  HART_STAGE_TEXT = 0,
  /** The transformer, scale by scale. */
  HART_STAGE_TRANSFORMER = 1,
  /** Sampling: logits to codes, codes to the latent. */
  HART_STAGE_SAMPLING = 2,
  /** The residual diffusion of the last scale. */
  HART_STAGE_RESIDUAL = 3,
  /** The visual decoder: latent to pixels. Encoding an image to start from also counts as this stage. */
  HART_STAGE_DECODE = 4,
  /** A stage that has no constant in this version of the C API. */
  HART_STAGE_OTHER = 99
};

/** Step that a run has completed or begun. Later versions may add steps. */
typedef int32_t hart_step;

enum {
  /** `index` of `count` layers of the text encoder are done. */
  HART_STEP_TEXT_LAYER = 0,
  /** Scale `index` of `count` begins. */
  HART_STEP_SCALE = 1,
  /** `index` of `count` transformer blocks of the scale are done. */
  HART_STEP_BLOCK = 2,
  /** Scale `index` of `count` is done. The event has a preview. */
  HART_STEP_SCALE_DONE = 3,
  /** `index` of `count` steps of the residual diffusion are done. */
  HART_STEP_DIFFUSION = 4,
  /** `index` of `count` blocks of the decoder are done. */
  HART_STEP_DECODER = 5,
  /** `index` of `count` images are finished. The preview is the latest of them. */
  HART_STEP_IMAGES = 6,
  /** `index` of `count` tensors of the model are loaded. Only events of opening a model have this step. */
  HART_STEP_TENSOR = 7,
  /** A step that has no constant in this version of the C API. */
  HART_STEP_OTHER = 99
};

/**
 * An event of a run, or of opening a model. hart owns it, and it is valid only during the callback. `struct_size` is the number of bytes
 * that the library has filled: check it before you read a field that a later version has added.
 */
typedef struct {
  /** Bytes that the library has filled. */
  uint32_t struct_size;
  /** The stage: `HART_STAGE_*`. */
  hart_stage stage;
  /** The step: `HART_STEP_*`. */
  hart_step step;
  /** Number of the step, from 1 to `count`; 0 for `HART_STEP_OTHER`. */
  uint32_t index;
  /** Total number of steps of this kind; 0 for `HART_STEP_OTHER`. */
  uint32_t count;
  /** The current scale k, from 1; 0 before the first scale of an image. */
  uint32_t scale;
  /** Number of scales S; 0 before the first scale of an image. */
  uint32_t scales;
  /** Side of the current scale in latent positions; 0 before the first scale of an image. */
  uint32_t side;
  /** Estimated fraction of the whole work that is done, 0 to 1. Never decreases. */
  float fraction;
  /** 1 if `hart_event_preview` returns an image, otherwise 0. */
  int32_t has_preview;
  /** Seconds since the work began. */
  double elapsed;
  /**
   * Index of the image that the event is about, from 0 in the order of the result. Events of images that are
   * generated at once alternate. A prompt is encoded for the first of its images; 0 when a model is opened.
   */
  uint32_t image_index;
  /** 0. */
  uint32_t reserved;
} hart_event;

/**
 * Callback that receives the events of a run, or of opening a model. Returns 0 to continue and any other value to
 * cancel. hart calls it often, one call at a time, on the thread that called `hart_generate`, `hart_encode` or
 * `hart_model_open`, so it should be fast. It may call any function of hart, but can't change or run the request that
 * is running. It must return normally: no C++ exception, no longjmp, no thread exit.
 */
typedef int32_t (*hart_observer)(const hart_event *event, void *user_data);

/**
 * Decodes the current state of the run to an image. Its sides have at most `max_side` pixels, but at least those of
 * one latent position (16 in published models); 0 stands for the full size. Small previews are cheap, and previews do
 * not change the final image. Free the image with `hart_image_free`, during the callback or later. Returns
 * `HART_ERR_STATE` if this thread is not in a callback whose event has a preview, and `HART_CANCELLED` if the run was
 * cancelled meanwhile.
 */
HART_API hart_status hart_event_preview(const hart_event *event, uint32_t max_side, hart_image **image);

/* ---- Options --------------------------------------------------------------- */

/** Creates options with the default values. Free them with `hart_options_free`; models opened with them keep working. */
HART_API hart_status hart_options_new(hart_options **options);

/** Frees the options. Does nothing if `options` is NULL. */
HART_API void hart_options_free(hart_options *options);

/**
 * Creates an independent copy of options, with the same token and observer. Both pass the same `user_data` to the
 * observer; it is destroyed when neither needs it. Free the copy with `hart_options_free`.
 */
HART_API hart_status hart_options_clone(const hart_options *options, hart_options **clone);

/**
 * Sets the device: "auto" (default, the best device present), "cpu", "cuda:0", "wgpu:0" or another name from
 * `hart_device_list_get`. GPUs need a library that was built for them. Returns `HART_ERR_DEVICE` if the name is
 * unknown.
 */
HART_API hart_status hart_options_set_device(hart_options *options, const char *device);

/** Like `hart_options_set_device`, for a text of `device_size` bytes. */
HART_API hart_status hart_options_set_device_n(hart_options *options, const char *device, size_t device_size);

/**
 * Sets the numeric precision of the computation: "auto" (default), "f32", "f16" (GPU only), "bf16" or "int8" (CPU
 * only). "auto" is the precision in which a converted model is stored, otherwise f32 on the CPU and f16 on a GPU. The
 * others are faster than f32 and slightly less exact. Returns `HART_ERR_ARGUMENT` if the name is unknown.
 */
HART_API hart_status hart_options_set_precision(hart_options *options, const char *precision);

/** Like `hart_options_set_precision`, for a text of `precision_size` bytes. */
HART_API hart_status hart_options_set_precision_n(hart_options *options, const char *precision, size_t precision_size);

/**
 * Sets the folder of the text model. The default is `text` in the model's folder, or `Qwen2-VL-1.5B-Instruct` there or
 * next to it.
 */
HART_API hart_status hart_options_set_text_model(hart_options *options, const char *path);

/** Like `hart_options_set_text_model`, for a text of `path_size` bytes. */
HART_API hart_status hart_options_set_text_model_n(hart_options *options, const char *path, size_t path_size);

/**
 * Sets which weights are loaded: "auto" (default: EMA weights if present, otherwise the plain ones), "ema" or "plain".
 * Returns `HART_ERR_ARGUMENT` if the name is unknown.
 */
HART_API hart_status hart_options_set_weights(hart_options *options, const char *weights);

/** Like `hart_options_set_weights`, for a text of `weights_size` bytes. */
HART_API hart_status hart_options_set_weights_n(hart_options *options, const char *weights, size_t weights_size);

/**
 * Sets whether safetensors files are memory-mapped (nonzero, the default) or read into memory (0). Mapped files must
 * not change while the model is open.
 */
HART_API hart_status hart_options_set_memory_map(hart_options *options, int32_t memory_map);

/** Sets whether unused tensors are an error (nonzero, the default) or ignored (0). */
HART_API hart_status hart_options_set_strict(hart_options *options, int32_t strict);

/**
 * Sets the number of threads that belong to this model, 1 to 1024. With 0 (default), all models of the program share
 * one thread pool with a thread per core. The number does not change the image. Returns `HART_ERR_ARGUMENT` if the
 * number is too large.
 */
HART_API hart_status hart_options_set_threads(hart_options *options, uint32_t threads);

/**
 * Sets how many images are generated at once, each on its share of the threads: the images of a request, and those of
 * runs on several threads. At least 1, and at most the number of threads, or opening the model returns
 * `HART_ERR_REQUEST`. With 0 (default), hart chooses it: 1 for a large model and on a GPU, more for a small one.
 * `hart_model_parallel` returns it. The number does not change the images.
 */
HART_API hart_status hart_options_set_parallel(hart_options *options, uint32_t parallel);

/**
 * Sets a limit in bytes for the estimated memory; 0 (default) is no limit. Opening the model or generating with it
 * returns `HART_ERR_MEMORY` before any work if the estimate is higher. On the CPU, if an image would not fit
 * otherwise, the decoder uses less memory and takes longer.
 */
HART_API hart_status hart_options_set_max_memory(hart_options *options, uint64_t bytes);

/**
 * Sets whether the text model's weights stay in memory after prompts are encoded (nonzero) or are released (0, the
 * default). Mapped weights are then read again from the system's cache for the next prompt, and weights that were
 * converted on opening are converted again. A server that encodes all the time may keep them.
 */
HART_API hart_status hart_options_set_keep_text_model(hart_options *options, int32_t keep);

/**
 * Sets the callback that receives the progress of opening a model, with the `user_data` that it receives. NULL removes
 * it. Each event has the step `HART_STEP_TENSOR`; its stage is the one whose weights are loaded. The callback is called
 * on the thread that opens the model. If it returns a value other than 0, opening returns `HART_CANCELLED`. `destroy`
 * may be NULL; otherwise hart calls it once when it no longer needs `user_data`. Models do not keep the callback.
 */
HART_API
hart_status hart_options_set_observer(hart_options *options,
                                      hart_observer observer,
                                      void *user_data,
                                      hart_destroy destroy);

/**
 * Sets the token that cancels opening a model: it then returns `HART_CANCELLED`. NULL removes it. The token may be
 * freed before the options. Runs of the model do not use it; see `hart_request_set_cancel`.
 */
HART_API hart_status hart_options_set_cancel(hart_options *options, const hart_cancel *cancel);

/** Returns the device, or NULL if it is not set. The text is valid until the options are changed or freed. */
HART_API hart_status hart_options_get_device(const hart_options *options, const char **device);

/** Returns the precision, or NULL if it is not set. The text is valid until the options are changed or freed. */
HART_API hart_status hart_options_get_precision(const hart_options *options, const char **precision);

/**
 * Returns the folder of the text model, or NULL if it is not set. The text is valid until the options are changed or
 * freed.
 */
HART_API hart_status hart_options_get_text_model(const hart_options *options, const char **path);

/** Returns which weights are loaded, or NULL if it is not set. The text is valid until the options are changed or freed. */
HART_API hart_status hart_options_get_weights(const hart_options *options, const char **weights);

/**
 * Returns 1 if files are memory-mapped, otherwise 0; 1 if it is not set. `is_set`, if not NULL, receives 1 if the
 * program has set it, otherwise 0.
 */
HART_API hart_status hart_options_get_memory_map(const hart_options *options, int32_t *memory_map, int32_t *is_set);

/**
 * Returns 1 if unused tensors are an error, otherwise 0; 1 if it is not set. `is_set`, if not NULL, receives 1 if the
 * program has set it, otherwise 0.
 */
HART_API hart_status hart_options_get_strict(const hart_options *options, int32_t *strict, int32_t *is_set);

/**
 * Returns the number of threads that belong to the model; 0 if it is not set. `is_set`, if not NULL, receives 1 if the
 * program has set it, otherwise 0.
 */
HART_API hart_status hart_options_get_threads(const hart_options *options, uint32_t *threads, int32_t *is_set);

/**
 * Returns how many images are generated at once; 0 if it is not set. `is_set`, if not NULL, receives 1 if the program
 * has set it, otherwise 0.
 */
HART_API hart_status hart_options_get_parallel(const hart_options *options, uint32_t *parallel, int32_t *is_set);

/**
 * Returns the limit in bytes for the estimated memory; 0 if it is not set. `is_set`, if not NULL, receives 1 if the
 * program has set it, otherwise 0.
 */
HART_API hart_status hart_options_get_max_memory(const hart_options *options, uint64_t *bytes, int32_t *is_set);

/**
 * Returns 1 if the text model's weights stay in memory, otherwise 0; 0 if it is not set. `is_set`, if not NULL, receives
 * 1 if the program has set it, otherwise 0.
 */
HART_API hart_status hart_options_get_keep_text_model(const hart_options *options, int32_t *keep, int32_t *is_set);

/** Returns the observer and, if `user_data` is not NULL, its user data; NULL if there is no observer. */
HART_API hart_status hart_options_get_observer(const hart_options *options, hart_observer *observer, void **user_data);

/** Returns the token as another handle, or NULL if there is none. Free it with `hart_cancel_free`. */
HART_API hart_status hart_options_get_cancel(const hart_options *options, hart_cancel **cancel);

/* ---- Files in memory ------------------------------------------------------- */

/**
 * Callback that reads `size` bytes at `offset` of a file into `buffer`. Returns 0 on success and any other value on
 * failure. hart calls it on the thread that called `hart_files_add_reader`. It must return normally: no C++ exception,
 * no longjmp, no thread exit.
 */
typedef int32_t (*hart_reader)(void *user_data, uint64_t offset, uint8_t *buffer, size_t size);

/**
 * Creates an empty set of files. Free it with `hart_files_free`; models opened from it keep working and share its
 * memory.
 */
HART_API hart_status hart_files_new(hart_files **files);

/** Frees the files. Does nothing if `files` is NULL. */
HART_API void hart_files_free(hart_files *files);

/**
 * Adds a file with the `size` bytes at `data`, which are copied. Returns `HART_ERR_REQUEST` if the name
 * already exists or is not a path inside the model's folder.
 */
HART_API hart_status hart_files_add(hart_files *files, const char *name, const uint8_t *data, size_t size);

/** Like `hart_files_add`, for a name of `name_size` bytes. */
HART_API hart_status hart_files_add_n(hart_files *files, const char *name, size_t name_size, const uint8_t *data, size_t size);

/**
 * Adds a file with the `size` bytes at `data`, which are not copied. They must stay valid and unchanged until hart calls
 * `destroy` with `user_data`: when the files and all models that were opened from them are freed, or before the call
 * returns if it fails. `destroy` may be NULL, for data that outlives them. Weights in f32, and those in half precision
 * that are used as they are stored, are read in place if `data` is aligned to 8 bytes; otherwise they are copied when
 * the model is opened. Returns `HART_ERR_REQUEST` like `hart_files_add`.
 */
HART_API
hart_status hart_files_add_borrowed(hart_files *files,
                                    const char *name,
                                    const uint8_t *data,
                                    size_t size,
                                    void *user_data,
                                    hart_destroy destroy);

/** Like `hart_files_add_borrowed`, for a name of `name_size` bytes. */
HART_API
hart_status hart_files_add_borrowed_n(hart_files *files,
                                      const char *name,
                                      size_t name_size,
                                      const uint8_t *data,
                                      size_t size,
                                      void *user_data,
                                      hart_destroy destroy);

/**
 * Adds a file of `size` bytes, read through `reader` before the call returns. `destroy` may be NULL; otherwise hart
 * calls it with `user_data` before the call returns. Returns `HART_ERR_IO` if the reader fails, `HART_ERR_MEMORY` if
 * there is no memory for the file, and `HART_ERR_REQUEST` like `hart_files_add`.
 */
HART_API
hart_status hart_files_add_reader(hart_files *files,
                                  const char *name,
                                  uint64_t size,
                                  hart_reader reader,
                                  void *user_data,
                                  hart_destroy destroy);

/** Like `hart_files_add_reader`, for a name of `name_size` bytes. */
HART_API
hart_status hart_files_add_reader_n(hart_files *files,
                                    const char *name,
                                    size_t name_size,
                                    uint64_t size,
                                    hart_reader reader,
                                    void *user_data,
                                    hart_destroy destroy);

/* ---- Models ---------------------------------------------------------------- */

/** Properties of a model. Set `struct_size` to `sizeof(hart_model_info)` before the call. */
typedef struct {
  /** `sizeof(hart_model_info)`. */
  uint32_t struct_size;
  /** Width of its images in pixels. */
  uint32_t width;
  /** Height of its images in pixels. */
  uint32_t height;
  /** Number of scales of an image. */
  uint32_t scales;
  /** Maximum number of tokens of a prompt. Longer prompts are cut. */
  uint32_t context_tokens;
  /** Number of codes in its codebook. */
  uint32_t codes;
  /** Number of parameters, including the text encoder and the visual tokenizer. */
  uint64_t parameters;
  /** Device, such as "cpu" or "cuda:0". Valid until the model is freed. */
  const char *device;
  /** Numeric precision, such as "f32". Valid until the model is freed. */
  const char *precision;
  /**
   * Fingerprint of the model: 64 hexadecimal digits, the same for a folder and for its files in memory. It covers the
   * configuration, the names and shapes of all tensors, and a sample of their data. Valid until the model is freed.
   */
  const char *fingerprint;
} hart_model_info;

/**
 * Opens the model in a folder, which holds `llm` and `tokenizer`. `options` may be NULL. Pass `HART_ABI_VERSION` as
 * `abi_version`. Free the model with `hart_model_free`.
 *
 * Returns `HART_ERR_ABI` if the library is older than the header of the program, `HART_ERR_CHECKPOINT`,
 * `HART_ERR_CONFIG`, `HART_ERR_WEIGHTS` or `HART_ERR_NOT_FINITE` if the files are not a valid model, `HART_ERR_DEVICE`
 * if the device is not available, `HART_ERR_MEMORY` if the model needs more memory than the options allow, and
 * `HART_CANCELLED` if the options' observer or token has cancelled opening.
 */
HART_API hart_status hart_model_open(const char *path, const hart_options *options, uint32_t abi_version, hart_model **model);

/** Like `hart_model_open`, for a path of `path_size` bytes. */
HART_API
hart_status hart_model_open_n(const char *path,
                              size_t path_size,
                              const hart_options *options,
                              uint32_t abi_version,
                              hart_model **model);

/** Opens a model from files in memory, otherwise like `hart_model_open`. `files` may be freed afterwards. */
HART_API
hart_status hart_model_open_files(const hart_files *files,
                                  const hart_options *options,
                                  uint32_t abi_version,
                                  hart_model **model);

/**
 * Creates another handle of the same model, which is freed separately. The handles share the weights; freeing the last
 * one releases them.
 */
HART_API hart_status hart_model_share(const hart_model *model, hart_model **shared);

/**
 * Frees the model. Does nothing if `model` is NULL. If a callback frees the model of its own run, the run still
 * completes.
 */
HART_API void hart_model_free(hart_model *model);

/** Writes the properties of the model to `info`. */
HART_API hart_status hart_model_describe(const hart_model *model, hart_model_info *info);

/**
 * Compiles the kernels of a GPU by generating an image and discarding it, so that the first real image takes no longer
 * than the others. Compiled kernels are cached on disk. Does nothing on the CPU.
 */
HART_API hart_status hart_model_warm_up(const hart_model *model);

/**
 * Estimates the memory of a run in bytes, without running it. `weights` receives the size of the model, `peak` the
 * size of the model and the run at its peak, with all images that are generated at once. Every further run at the same time adds `peak - weights`. `request` may
 * be NULL for one image; `weights` and `peak` may be NULL.
 */
HART_API
hart_status hart_model_memory(const hart_model *model,
                              const hart_request *request,
                              uint64_t *weights,
                              uint64_t *peak);

/**
 * Returns the maximum number of images that the model generates at once, as `hart_options_set_parallel` has set or
 * hart has chosen it: the images of a request, and those of runs on several threads.
 */
HART_API hart_status hart_model_parallel(const hart_model *model, uint32_t *parallel);

/**
 * Panics inside the model on purpose, so that a program can test how it recovers. Returns `HART_ERR_PANIC`, and the log
 * receives the text of the panic; the model returns `HART_ERR_POISONED` from then on.
 */
HART_API hart_status hart_model_test_panic(const hart_model *model);

/* ---- Requests -------------------------------------------------------------- */

/** Creates a request without prompts and with the default settings of the model. Free it with `hart_request_free`. */
HART_API hart_status hart_request_new(hart_request **request);

/**
 * Creates the request that generated an image, from the settings in its file. The image is the same to the last bit with
 * the same model in the same precision on the same kind of device. The prompt is missing if it was left out of the file:
 * add it. Free the request with `hart_request_free`. Returns `HART_ERR_REQUEST` if the image has no settings or not all of
 * them, or is an edit of another image.
 */
HART_API hart_status hart_request_again(const hart_image *image, hart_request **request);

/** Frees the request. Does nothing if `request` is NULL. */
HART_API void hart_request_free(hart_request *request);

/**
 * Creates an independent copy of a request: with the same prompts, settings, context and images, and the same token and
 * observer. Both requests pass the same `user_data` to the observer; it is destroyed when neither needs it. Free the copy
 * with `hart_request_free`. The request may be running.
 */
HART_API hart_status hart_request_clone(const hart_request *request, hart_request **clone);

/**
 * Sets the only prompt and removes all others. Returns `HART_ERR_REQUEST` if the prompt is empty, too long, or
 * different from that of the request's context.
 */
HART_API hart_status hart_request_set_prompt(hart_request *request, const char *prompt);

/** Like `hart_request_set_prompt`, for a text of `prompt_size` bytes. */
HART_API hart_status hart_request_set_prompt_n(hart_request *request, const char *prompt, size_t prompt_size);

/** Adds a prompt. Returns `HART_ERR_REQUEST` if the prompt is empty or too long, or if the request has a context. */
HART_API hart_status hart_request_add_prompt(hart_request *request, const char *prompt);

/** Like `hart_request_add_prompt`, for a text of `prompt_size` bytes. */
HART_API hart_status hart_request_add_prompt_n(hart_request *request, const char *prompt, size_t prompt_size);

/**
 * Sets the number of images of each prompt; the default is 1. Image i of a prompt, counted from 0, has the seed `seed
 * + i`. Returns `HART_ERR_REQUEST` if the number is 0 or too large.
 */
HART_API hart_status hart_request_set_images_per_prompt(hart_request *request, uint32_t count);

/** Sets the seed of the first image of each prompt; the default is 0. */
HART_API hart_status hart_request_set_seed(hart_request *request, uint64_t seed);

/**
 * Sets the strength of classifier-free guidance, from -100 to 100. 0 is no guidance; the default is the model's,
 * usually 4.5. Returns `HART_ERR_REQUEST` if the value is out of range.
 */
HART_API hart_status hart_request_set_guidance(hart_request *request, double guidance);

/**
 * Sets Gumbel-softmax smoothing: whether the embedding of a token is a weighted mix of codes (nonzero) or a single
 * code (0). The default is the model's, usually 1.
 */
HART_API hart_status hart_request_set_smoothing(hart_request *request, int32_t smoothing);

/**
 * Sets how many of the most likely codes a token is sampled from, at least 1. The default is the model's, usually 600
 * on the first seven scales and 300 on the others. Returns `HART_ERR_REQUEST` if the number is 0.
 */
HART_API hart_status hart_request_set_top_k(hart_request *request, uint32_t top_k);

/**
 * Sets top-p sampling: a token is sampled from the most likely codes that together have this probability, from 0 to 1.
 * 0 turns it off; the default is the model's, usually 0. Returns `HART_ERR_REQUEST` if the value is out of range.
 */
HART_API hart_status hart_request_set_top_p(hart_request *request, double top_p);

/**
 * Sets the steps of the residual diffusion, such as "8", "10,5" or "ddim25". The default is the model's, usually "8".
 * Returns `HART_ERR_REQUEST` if the text is malformed.
 */
HART_API hart_status hart_request_set_steps(hart_request *request, const char *steps);

/** Like `hart_request_set_steps`, for a text of `steps_size` bytes. */
HART_API hart_status hart_request_set_steps_n(hart_request *request, const char *steps, size_t steps_size);

/**
 * Sets the shares of tokens that the transformer leaves out of its last scales, coarse to fine, each from 0 to less than
 * 1: "0.5,0.75" is the published plan. This is faster and needs less memory, but changes the images. NULL, the default,
 * computes all tokens. Returns `HART_ERR_REQUEST` if the text is malformed. A run returns it if the plan does not fit the
 * model.
 */
HART_API hart_status hart_request_set_prune(hart_request *request, const char *ratios);

/** Like `hart_request_set_prune`, for a text of `ratios_size` bytes. NULL with a size of 0 computes all tokens. */
HART_API hart_status hart_request_set_prune_n(hart_request *request, const char *ratios, size_t ratios_size);

/**
 * Sets the text before each prompt. "" is no text; NULL is the model's own text, the default. Returns
 * `HART_ERR_REQUEST` if the text is too long or different from that of the request's context.
 */
HART_API hart_status hart_request_set_system_prompt(hart_request *request, const char *prompt);

/**
 * Like `hart_request_set_system_prompt`, for a text of `prompt_size` bytes. NULL with a size of 0 is the model's own
 * text, any other pointer with a size of 0 is no text.
 */
HART_API hart_status hart_request_set_system_prompt_n(hart_request *request, const char *prompt, size_t prompt_size);

/**
 * Sets encoded prompts, so that runs skip the text encoder. The images are the same, to the last bit. This replaces
 * the prompts and the system prompt by those of the context. Setting other ones later returns `HART_ERR_REQUEST`; all
 * other settings are independent of the context. Only the model that encoded the context, and handles that share it,
 * can run the request. The context may be freed before the request. NULL removes the context and keeps the prompts and
 * the system prompt. Returns `HART_ERR_REQUEST` if the request would then have too many images.
 */
HART_API hart_status hart_request_set_context(hart_request *request, const hart_context *context);

/**
 * Sets the callback that receives the events of the runs, with the `user_data` that it receives. NULL removes it.
 * `destroy` may be NULL; otherwise hart calls it once when it no longer needs `user_data`.
 */
HART_API
hart_status hart_request_set_observer(hart_request *request,
                                      hart_observer observer,
                                      void *user_data,
                                      hart_destroy destroy);

/** Sets the token that cancels the runs. NULL removes it. The token may be freed before the request. */
HART_API hart_status hart_request_set_cancel(hart_request *request, const hart_cancel *cancel);

/**
 * Sets the marks that the files of the images get: names of "prompt", "parameters" (the text of A1111's web UI),
 * "settings" (those of hart, for `hart_request_again`) and "source" (XMP that says that AI generated the image) with
 * commas, "all" or "none". "parameters,settings,source" keeps the prompt out of the files. NULL, the default, is all.
 * Returns `HART_ERR_REQUEST` if a name is unknown.
 */
HART_API hart_status hart_request_set_marks(hart_request *request, const char *names);

/** Like `hart_request_set_marks`, for a text of `names_size` bytes. NULL with a size of 0 is all marks. */
HART_API hart_status hart_request_set_marks_n(hart_request *request, const char *names, size_t names_size);

/* ---- Images that requests start from --------------------------------------- */

/** The part of an image that an edit keeps outside the region it regenerates. Later versions may add values. */
typedef int32_t hart_keep;

enum {
  /**
   * The pixels are exactly those of the image. A soft edge within the regenerated region, 1/64 of the model's width,
   * blends into the generated pixels. The default.
   */
  HART_KEEP_PIXELS = 0,
  /**
   * The latent of patches without a regenerated pixel is exactly that of the image. The decoder computes every pixel
   * from the whole latent, so pixels outside the region change too, especially near it.
   */
  HART_KEEP_LATENT = 1
};

/**
 * Sets inpainting: regenerates the region of `image` where `mask` is white. A pixel of the mask is white if the mean
 * of its channels times its alpha is at least half of the maximum, so white on a transparent layer works as a mask.
 * For a mask whose transparent part is regenerated, use `hart_image_transparency`. The image must have the width and
 * height of the model. The mask must have the same proportions, at any resolution. All other pixels stay exactly the
 * same, unless `hart_request_set_keep` says otherwise. The coarsest `kept_scales` scales are kept everywhere, so that
 * the new content follows the layout of the old one; 0 keeps none. The request keeps references to the images. NULL
 * for `image` and `mask` removes the image from the request.
 */
HART_API
hart_status hart_request_set_inpaint(hart_request *request,
                                     const hart_image *image,
                                     const hart_image *mask,
                                     uint32_t kept_scales);

/**
 * Sets outpainting: generates the surroundings of an image that is smaller than the model's images. Its top left
 * corner is at (`left`, `top`) of the new image, in pixels. The pixels of the given image stay exactly the same,
 * unless `hart_request_set_keep` says otherwise. NULL for `image` removes the image from the request.
 */
HART_API hart_status hart_request_set_outpaint(hart_request *request, const hart_image *image, uint32_t left, uint32_t top);

/**
 * Sets a variation: keeps the coarsest `kept_scales` scales of an image, from 1 to all but the last, and regenerates
 * the finer ones. NULL for `image` removes the image from the request.
 */
HART_API hart_status hart_request_set_variation(hart_request *request, const hart_image *image, uint32_t kept_scales);

/**
 * Sets what inpainting and outpainting keep outside the region that they regenerate: `HART_KEEP_PIXELS`, the default,
 * or `HART_KEEP_LATENT`. It can be set before or after the image. Returns `HART_ERR_ARGUMENT` for other values.
 */
HART_API hart_status hart_request_set_keep(hart_request *request, hart_keep keep);

/* ---- Values of requests ---------------------------------------------------- */

/** Returns the number of prompts that are set, or come from a context. Returns 0 if `request` is NULL. */
HART_API size_t hart_request_get_prompt_count(const hart_request *request);

/**
 * Returns prompt `index`, counted from 0. It is valid until the request is changed or freed. Returns
 * `HART_ERR_ARGUMENT` if there is no such prompt.
 */
HART_API hart_status hart_request_get_prompt(const hart_request *request, size_t index, const char **prompt);

/**
 * Returns the number of images of each prompt; 1 if it is not set. `is_set`, if not NULL, receives 1 if the program has
 * set it, otherwise 0.
 */
HART_API hart_status hart_request_get_images_per_prompt(const hart_request *request, uint32_t *count, int32_t *is_set);

/** Returns the seed; 0 if it is not set. `is_set`, if not NULL, receives 1 if the program has set it, otherwise 0. */
HART_API hart_status hart_request_get_seed(const hart_request *request, uint64_t *seed, int32_t *is_set);

/**
 * Returns the strength of guidance; 0 if it is not set, so that the model decides. `is_set`, if not NULL, receives 1 if
 * the program has set it, otherwise 0.
 */
HART_API hart_status hart_request_get_guidance(const hart_request *request, double *guidance, int32_t *is_set);

/**
 * Returns 1 for smoothing, otherwise 0; 0 if it is not set, so that the model decides. `is_set`, if not NULL, receives 1
 * if the program has set it, otherwise 0.
 */
HART_API hart_status hart_request_get_smoothing(const hart_request *request, int32_t *smoothing, int32_t *is_set);

/**
 * Returns how many codes a token is sampled from; 0 if it is not set, so that the model decides. `is_set`, if not NULL,
 * receives 1 if the program has set it, otherwise 0.
 */
HART_API hart_status hart_request_get_top_k(const hart_request *request, uint32_t *top_k, int32_t *is_set);

/**
 * Returns the probability of top-p sampling; 0 if it is not set, so that the model decides. `is_set`, if not NULL,
 * receives 1 if the program has set it, otherwise 0.
 */
HART_API hart_status hart_request_get_top_p(const hart_request *request, double *top_p, int32_t *is_set);

/**
 * Returns the steps of the residual diffusion, or NULL if they are not set. The text is valid until the request is
 * changed or freed.
 */
HART_API hart_status hart_request_get_steps(const hart_request *request, const char **steps);

/**
 * Returns the shares of tokens that the last scales leave out, or NULL if all tokens are computed. The text is valid until
 * the request is changed or freed.
 */
HART_API hart_status hart_request_get_prune(const hart_request *request, const char **ratios);

/**
 * Returns the marks that the files of the images get, or NULL if they are not set, which is all. The text is valid until
 * the request is changed or freed.
 */
HART_API hart_status hart_request_get_marks(const hart_request *request, const char **names);

/**
 * Returns the text before each prompt: "" for no text, NULL if it is not set or is the model's own. The text is valid
 * until the request is changed or freed.
 */
HART_API hart_status hart_request_get_system_prompt(const hart_request *request, const char **prompt);

/** Returns the context as another handle, or NULL if there is none. Free it with `hart_context_free`. */
HART_API hart_status hart_request_get_context(const hart_request *request, hart_context **context);

/**
 * Returns the image, the mask and the kept scales that `hart_request_set_inpaint` has set, or NULL and 0. The images are
 * other handles: free both with `hart_image_free`.
 */
HART_API
hart_status hart_request_get_inpaint(const hart_request *request,
                                     hart_image **image,
                                     hart_image **mask,
                                     uint32_t *kept_scales);

/**
 * Returns the image and its place that `hart_request_set_outpaint` has set, or NULL and 0. The image is another handle:
 * free it with `hart_image_free`.
 */
HART_API hart_status hart_request_get_outpaint(const hart_request *request, hart_image **image, uint32_t *left, uint32_t *top);

/**
 * Returns the image and the kept scales that `hart_request_set_variation` has set, or NULL and 0. The image is another
 * handle: free it with `hart_image_free`.
 */
HART_API hart_status hart_request_get_variation(const hart_request *request, hart_image **image, uint32_t *kept_scales);

/**
 * Returns what inpainting and outpainting keep; `HART_KEEP_PIXELS` if it is not set. `is_set`, if not NULL, receives 1
 * if the program has set it, otherwise 0.
 */
HART_API hart_status hart_request_get_keep(const hart_request *request, hart_keep *keep, int32_t *is_set);

/** Returns the observer and, if `user_data` is not NULL, its user data; NULL if there is no observer. */
HART_API hart_status hart_request_get_observer(const hart_request *request, hart_observer *observer, void **user_data);

/** Returns the token as another handle, or NULL if there is none. Free it with `hart_cancel_free`. */
HART_API hart_status hart_request_get_cancel(const hart_request *request, hart_cancel **cancel);

/* ---- Contexts -------------------------------------------------------------- */

/**
 * Encodes the prompts of a request with its system prompt and returns when all are encoded. Pass the context to
 * `hart_request_set_context`. Of the other settings, only the observer and the cancel token have an effect. The
 * context does not keep the model in memory. Free it with `hart_context_free`.
 *
 * Returns `HART_CANCELLED` if the observer or the token has cancelled the work. Returns `HART_ERR_REQUEST` if the
 * request has no prompt, `HART_ERR_STATE` if it is already running, `HART_ERR_MEMORY` if encoding needs more memory
 * than allowed, and `HART_ERR_DEVICE` if a GPU fails.
 */
HART_API hart_status hart_encode(const hart_model *model, const hart_request *request, hart_context **context);

/**
 * Creates another handle of the same context, which is freed separately. Pointers into the context are valid until the
 * last handle is freed.
 */
HART_API hart_status hart_context_share(const hart_context *context, hart_context **shared);

/** Frees the context. Does nothing if `context` is NULL. Requests that use the context keep what they need of it. */
HART_API void hart_context_free(hart_context *context);

/** Returns the number of prompts. Returns 0 if `context` is NULL. */
HART_API size_t hart_context_count(const hart_context *context);

/**
 * Returns the number of bytes that the context takes in the memory of the program and of the device, without the
 * copies of `hart_context_hidden` and `hart_context_mask`. Returns 0 if `context` is NULL.
 */
HART_API uint64_t hart_context_bytes(const hart_context *context);

/**
 * Returns the hidden states of prompt `index`, counted from 0: those of the text encoder after its final norm, without
 * those of the system prompt. They are tokens * channels values, token by token. Padding has hidden states too. The
 * values are copied at the first call and valid until the context is freed. Returns `HART_ERR_ARGUMENT` if there is no
 * such prompt, and `HART_ERR_DEVICE` if a GPU fails.
 */
HART_API
hart_status hart_context_hidden(const hart_context *context,
                                size_t index,
                                const float **hidden,
                                size_t *tokens,
                                size_t *channels);

/**
 * Returns the mask of prompt `index`, counted from 0: 1 for a token of the text, 0 for padding. It is valid until the
 * context is freed. Returns `HART_ERR_ARGUMENT` if there is no such prompt.
 */
HART_API hart_status hart_context_mask(const hart_context *context, size_t index, const uint8_t **mask, size_t *tokens);

/* ---- Generation ------------------------------------------------------------ */

/** Time that a run spent in each stage, in seconds. Set `struct_size` to `sizeof(hart_timings)` before the call. */
typedef struct {
  /** `sizeof(hart_timings)`. */
  uint32_t struct_size;
  /** Always 0. */
  uint32_t reserved;
  /** The text encoder: prompt to context. */
  double text;
  /** The transformer. */
  double transformer;
  /** Sampling: logits to codes, codes to the latent. */
  double sampling;
  /** The residual diffusion. */
  double residual;
  /** The visual decoder: latent to pixels. */
  double decode;
  /** The whole run. */
  double total;
} hart_timings;

/**
 * A prompt that was cut because it has more tokens than the model reads. Set `struct_size` to
 * `sizeof(hart_truncation)` before the call.
 */
typedef struct {
  /** `sizeof(hart_truncation)`. */
  uint32_t struct_size;
  /** Index of the prompt in the request, from 0; -1 for the system prompt. */
  int32_t prompt;
  /** Number of tokens of the whole prompt. */
  uint32_t tokens;
  /** Number of tokens that were read. */
  uint32_t kept;
  /** The part of the prompt that was not read. Valid until the result is freed. */
  const char *cut;
} hart_truncation;

/**
 * Generates the images of a request and returns when all are finished. Free the result with `hart_result_free`. Any
 * number of threads may generate with one model at the same time, each with its own request.
 *
 * Returns `HART_CANCELLED` if the run was cancelled; the result then holds the images that were finished before. After
 * an error the result is NULL. Returns `HART_ERR_REQUEST` if the request has no prompt or does not fit the model,
 * `HART_ERR_STATE` if the request is already running, `HART_ERR_MEMORY` if the run needs more memory than allowed,
 * `HART_ERR_OVERFLOW` if it produces NaN or infinity, and `HART_ERR_DEVICE` if a GPU fails.
 */
HART_API hart_status hart_generate(const hart_model *model, const hart_request *request, hart_result **result);

/** Creates another handle of the same result, which is freed separately. */
HART_API hart_status hart_result_share(const hart_result *result, hart_result **shared);

/** Frees the result. Does nothing if `result` is NULL. Images returned by `hart_result_image` stay valid. */
HART_API void hart_result_free(hart_result *result);

/** Returns the number of finished images. Returns 0 if `result` is NULL. */
HART_API size_t hart_result_count(const hart_result *result);

/**
 * Returns image `index`, counted from 0: all images of the first prompt, then all of the second, and so on. Free it
 * with `hart_image_free`; it stays valid when the result is freed. Returns `HART_ERR_ARGUMENT` if there is no such
 * image.
 */
HART_API hart_status hart_result_image(const hart_result *result, size_t index, hart_image **image);

/** Writes the timings of the run to `timings`. They are 0 after a cancelled run. */
HART_API hart_status hart_result_timings(const hart_result *result, hart_timings *timings);

/** Returns the number of prompts that were cut, including the system prompt. Returns 0 if `result` is NULL. */
HART_API size_t hart_result_truncation_count(const hart_result *result);

/** Describes cut prompt `index`, counted from 0. Returns `HART_ERR_ARGUMENT` if there is no such prompt. */
HART_API hart_status hart_result_truncation(const hart_result *result, size_t index, hart_truncation *truncation);

/* ---- Images ---------------------------------------------------------------- */

/** Bytes of a pixel, 8 bits for each channel, in the order of memory. Later versions may add values. */
typedef int32_t hart_pixel_format;

enum {
  /** Red, green, blue: the format of `hart_image_view` and `hart_image_new`. */
  HART_PIXEL_RGB = 0,
  /** Blue, green, red. */
  HART_PIXEL_BGR = 1,
  /** Red, green, blue, alpha. The colours are not multiplied by alpha. */
  HART_PIXEL_RGBA = 2,
  /** Blue, green, red, alpha. The colours are not multiplied by alpha. */
  HART_PIXEL_BGRA = 3,
  /** Grey, one byte: the luma of ITU-R BT.601, as in JPEG. */
  HART_PIXEL_GREY = 4
};

/**
 * Pixels of an image, and how it was generated. Set `struct_size` to `sizeof(hart_image_view)` before the call. The
 * pointers are valid until the image is freed.
 */
typedef struct {
  /** `sizeof(hart_image_view)`. */
  uint32_t struct_size;
  /** Width in pixels. */
  uint32_t width;
  /** Height in pixels. */
  uint32_t height;
  /** Bytes per pixel: 3, in the order red, green, blue. */
  uint32_t channels;
  /** Bytes from the start of one row to the start of the next. */
  size_t stride;
  /** Size of all pixels in bytes. */
  size_t size;
  /** Pixels, row by row from the top left. */
  const uint8_t *pixels;
  /** Seed of the image, or 0 if it was not generated. */
  uint64_t seed;
  /** Prompt of the image, or NULL if it was not generated. */
  const char *prompt;
  /** The other settings in one line, or NULL if it was not generated. */
  const char *settings;
  /**
   * Fingerprint of the model that generated the image, as `hart_model_info` has it, or NULL if it is not known. Compare
   * the two before `hart_request_again`: another model generates another image.
   */
  const char *model_fingerprint;
} hart_image_view;

/** Format of an image file. Later versions may add formats. */
typedef int32_t hart_image_format;

enum {
  /** PNG, without loss. */
  HART_FORMAT_PNG = 0,
  /** JPEG, with loss. */
  HART_FORMAT_JPEG = 1,
  /** WebP, without loss. */
  HART_FORMAT_WEBP = 2
};

/**
 * Creates an image from pixels, which are copied: `height` rows from the top, each of `width` pixels with 3 bytes for
 * red, green and blue. `stride` is the distance between the starts of two rows in bytes; 0 stands for 3 * width. Free
 * the image with `hart_image_free`. Returns `HART_ERR_ARGUMENT` if a side is 0 or the stride is too small.
 */
HART_API hart_status hart_image_new(uint32_t width, uint32_t height, size_t stride, const uint8_t *pixels, hart_image **image);

/**
 * Creates an image from pixels in any format, which are copied: `height` rows from the top, each of `width` pixels.
 * `stride` is the distance between the starts of two rows in bytes; 0 stands for rows without padding. `size` is the
 * number of bytes at `pixels`. With a stride of 0 it must match exactly, so that another format is noticed; otherwise the
 * last row must end within it. Transparent pixels are composited over white, as `hart_image_open` does. Free the image
 * with `hart_image_free`. Returns `HART_ERR_ARGUMENT` if the format is unknown, a side is 0, or the stride or the size is
 * wrong.
 */
HART_API
hart_status hart_image_new_from_pixels(hart_pixel_format format,
                                       uint32_t width,
                                       uint32_t height,
                                       size_t stride,
                                       const uint8_t *pixels,
                                       size_t size,
                                       hart_image **image);

/**
 * Writes the pixels of an image in any format to a buffer of `size` bytes. `stride` and `size` are like those of
 * `hart_image_new_from_pixels`; a `stride` that is not 0 leaves the bytes between the rows unchanged. Alpha is 255, since
 * transparent pixels have been composited over white; `hart_image_transparency` returns where they were. Returns
 * `HART_ERR_ARGUMENT` if the format is unknown, or the stride or the size is wrong.
 */
HART_API
hart_status hart_image_copy_pixels(const hart_image *image,
                                   hart_pixel_format format,
                                   size_t stride,
                                   uint8_t *buffer,
                                   size_t size);

/**
 * Reads a PNG, JPEG or WebP file of any colour type, whatever its name. Turns the image upright according to its EXIF
 * orientation and composites transparent pixels over white. In a mask, transparent pixels count as black. Also reads
 * prompt, seed and settings from a file that hart wrote. Free the image with `hart_image_free`. Returns `HART_ERR_IO` if
 * the file can't be read and `HART_ERR_IMAGE` if it is malformed or truncated.
 */
HART_API hart_status hart_image_open(const char *path, hart_image **image);

/** Like `hart_image_open`, for a path of `path_size` bytes. */
HART_API hart_status hart_image_open_n(const char *path, size_t path_size, hart_image **image);

/** Reads an image file of `size` bytes in memory, like `hart_image_open`. */
HART_API hart_status hart_image_open_memory(const uint8_t *data, size_t size, hart_image **image);

/**
 * Creates another handle of the same image, which is freed separately. Pointers into the image are valid until the
 * last handle is freed.
 */
HART_API hart_status hart_image_share(const hart_image *image, hart_image **shared);

/** Frees the image. Does nothing if `image` is NULL. */
HART_API void hart_image_free(hart_image *image);

/** Writes the pixels of the image and how it was generated to `view`. */
HART_API hart_status hart_image_describe(const hart_image *image, hart_image_view *view);

/**
 * Writes an image file in the format that its ending stands for, in upper or lower case: `.png`, `.jpg` or `.jpeg` with a
 * quality of 90, or `.webp` without loss. The file is marked with prompt, seed and settings, and as generated by AI, unless
 * `hart_request_set_marks` has left a mark out. The file is written completely or not at all. One that exists keeps its mode and, if possible,
 * its owner; a symbolic link is followed. Returns `HART_ERR_REQUEST` if the ending is another one or missing, or a side is
 * too long for the format, and `HART_ERR_IO` if the file can't be written.
 */
HART_API
hart_status hart_image_save(const hart_image *image,
                            const char *path);

/** Like `hart_image_save`, for a path of `path_size` bytes. */
HART_API hart_status hart_image_save_n(const hart_image *image, const char *path, size_t path_size);

/**
 * Returns the bytes of the image as a file. `quality` is that of JPEG files, 1 to 100, or 0 for 90; it has no effect on
 * other formats. The bytes are valid until the image is freed, and the same call returns the same bytes. Returns
 * `HART_ERR_ARGUMENT` if format or quality are unknown, and `HART_ERR_REQUEST` if a side is too long: 65,535 pixels in
 * JPEG, 16,384 in WebP.
 */
HART_API
hart_status hart_image_encode(const hart_image *image,
                              hart_image_format format,
                              uint32_t quality,
                              const uint8_t **data,
                              size_t *size);

/** Returns the bytes of the PNG file that `hart_image_save` writes. They are valid until the image is freed. */
HART_API hart_status hart_image_png(const hart_image *image, const uint8_t **data, size_t *size);

/**
 * Returns an image of the same size that is white where `image` is transparent and black where it is opaque. Pass it to
 * `hart_request_set_inpaint` if the transparent part is to be regenerated, as in OpenAI's image API. Only images of PNG
 * and WebP files have transparent pixels. Free it with `hart_image_free`.
 */
HART_API hart_status hart_image_transparency(const hart_image *image, hart_image **mask);

/**
 * Arranges `count` images of equal size in a grid with `columns` columns. Free the grid with `hart_image_free`.
 * Returns `HART_ERR_REQUEST` if there are no images, their sizes differ, or `columns` is 0.
 */
HART_API hart_status hart_image_grid(const hart_image *const *images, size_t count, size_t columns, hart_image **grid);

/* ---- Tokens ---------------------------------------------------------------- */

/**
 * Encodes an image as tokens. Free the tokens with `hart_tokens_free`; they keep the model's weights in memory.
 * Returns `HART_ERR_REQUEST` if the image does not have the width and height of the model.
 */
HART_API hart_status hart_model_tokenize(const hart_model *model, const hart_image *image, hart_tokens **tokens);

/**
 * Creates another handle of the same tokens, which is freed separately. Pointers into the tokens are valid until the
 * last handle is freed.
 */
HART_API hart_status hart_tokens_share(const hart_tokens *tokens, hart_tokens **shared);

/** Frees the tokens. Does nothing if `tokens` is NULL. */
HART_API void hart_tokens_free(hart_tokens *tokens);

/** Returns the number of scales. Returns 0 if `tokens` is NULL. */
HART_API size_t hart_tokens_scales(const hart_tokens *tokens);

/**
 * Returns the codes of one scale, counted from 0, coarse to fine: side * side codes, row by row. They are valid until
 * the tokens are freed. Returns `HART_ERR_ARGUMENT` if there is no such scale.
 */
HART_API hart_status hart_tokens_codes(const hart_tokens *tokens, size_t scale, const uint32_t **codes, size_t *count);

/**
 * Decodes tokens to an image, with the residual (nonzero) or from the codes alone (0). With the residual, the image is
 * the best reconstruction of the autoencoder. Free the image with `hart_image_free`. Returns `HART_ERR_ARGUMENT` if
 * the tokens belong to another model.
 */
HART_API
hart_status hart_model_reconstruct(const hart_model *model,
                                   const hart_tokens *tokens,
                                   int32_t with_residual,
                                   hart_image **image);

#ifdef __cplusplus
}
#endif

#endif
