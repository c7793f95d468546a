/* Tests hart in programs that are unlike the others: limits on threads, other floating-point states, forked processes, and
 * little stack. Linux only.
 * usage: host MODEL SCRATCH */
#define _GNU_SOURCE

#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"

/* Longest time for a forked child in seconds. */
static const unsigned limit = 300;

static const char *model_path, *scratch_path;

/* Runs `work` in a forked child, which is killed if it hangs. */
static void in_child(void (*work)(const hart_model *, const hart_image *), const hart_model *model, const hart_image *image) {
    fflush(NULL);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(limit);
        work(model, image);
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status)) fprintf(stderr, "the child ended by signal %d\n", WTERMSIG(status));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Generates the image with seed 3 and checks that it is the expected one. */
static void draws(const hart_model *model, const hart_image *expected) {
    hart_request *request = new_request("a red heart", 3);
    hart_image *image = image_of(model, request);
    CHECK(same_pixels(image, expected));
    hart_image_free(image);
    hart_request_free(request);
}

/* ---- Limits on threads ---- */

static void *nothing(void *argument) { return argument; }

static void starts_no_threads(const hart_model *model, const hart_image *image) {
    (void)model, (void)image;
    const uid_t nobody = 65534;
    /* The limit does not hold for root. */
    if (geteuid() == 0) CHECK(setresgid(nobody, nobody, nobody) == 0 && setresuid(nobody, nobody, nobody) == 0);
    struct rlimit threads;
    CHECK(getrlimit(RLIMIT_NPROC, &threads) == 0);
    threads.rlim_cur = 1;
    CHECK(setrlimit(RLIMIT_NPROC, &threads) == 0);
    pthread_t thread;
    if (pthread_create(&thread, NULL, nothing, NULL) == 0) {
        fputs("this system does not limit threads: nothing is tested\n", stderr);
        return;
    }
    hart_options *options = NULL;
    OK(hart_options_new(&options));
    OK(hart_options_set_threads(options, 2));
    hart_model *opened = NULL;
    for (int i = 0; i < 2; i++) {
        FAILS(hart_model_open(model_path, options, HART_ABI_VERSION, &opened), HART_ERR_THREADS, "no threads could be started");
        CHECK(opened == NULL);
    }
    hart_options_free(options);
}

/* ---- Floating-point states ---- */

static int32_t change_state(const hart_event *event, void *user_data) {
    CHECK(fegetround() == FE_TONEAREST && event->count > 0);
    fesetround(*(const int *)user_data);
    return 0;
}

static void floating_point_states(const char *path, const hart_model *model, const hart_image *expected) {
    const int modes[3] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    for (int i = 0; i < 3; i++) {
        CHECK(fesetround(modes[i]) == 0);
        draws(model, expected);
        hart_model *opened = open_model(path);
        hart_request *request = new_request("a red heart", 3);
        OK(hart_request_set_guidance(request, 4.25));
        OK(hart_request_set_steps(request, "8"));
        CHECK(fegetround() == modes[i]);
        CHECK(fesetround(FE_TONEAREST) == 0);
        draws(opened, expected);
        hart_model_free(opened);
        hart_request_free(request);
        /* A callback that changes the state does not change the image. */
        request = new_request("a red heart", 3);
        OK(hart_request_set_observer(request, change_state, (void *)&modes[i], NULL));
        hart_image *image = image_of(model, request);
        CHECK(same_pixels(image, expected) && fegetround() == FE_TONEAREST);
        hart_image_free(image);
        hart_request_free(request);
    }
    /* Every operation that is not exact traps. */
    feclearexcept(FE_ALL_EXCEPT);
    CHECK(feenableexcept(FE_ALL_EXCEPT) >= 0);
    draws(model, expected);
    hart_model *opened = open_model(path);
    CHECK(fegetexcept() == FE_ALL_EXCEPT && fetestexcept(FE_ALL_EXCEPT) == 0);
    fedisableexcept(FE_ALL_EXCEPT);
    draws(opened, expected);
    hart_model_free(opened);
}

/* ---- Forked processes ---- */

static void opens_and_draws(const hart_model *model, const hart_image *expected) {
    draws(model, expected);
    hart_options *options = NULL;
    OK(hart_options_new(&options));
    for (uint32_t threads = 0; threads <= 2; threads++) {
        OK(hart_options_set_threads(options, threads));
        hart_model *opened = NULL;
        OK(hart_model_open(model_path, options, HART_ABI_VERSION, &opened));
        draws(opened, expected);
        hart_model_free(opened);
    }
    hart_options_free(options);
}

static void frees(const hart_model *model, const hart_image *expected) {
    (void)expected;
    hart_model_free((hart_model *)(uintptr_t)model);
}

static void is_refused(const hart_model *model, const hart_image *expected) {
    (void)expected;
    hart_request *request = new_request("a red heart", 3);
    hart_result *result = NULL;
    hart_model *opened = NULL;
    FAILS(hart_generate(model, request, &result), HART_ERR_STATE, "forked while a call of hart was running");
    FAILS(hart_model_open(model_path, NULL, HART_ABI_VERSION, &opened), HART_ERR_STATE, "forked");
    hart_request_free(request);
}

struct forked {
    const hart_model *model;
    int done;
};

static int32_t forks_once(const hart_event *event, void *user_data) {
    struct forked *forked = user_data;
    if (event->step == HART_STEP_SCALE_DONE && !forked->done) {
        forked->done = 1;
        in_child(is_refused, forked->model, NULL);
    }
    return 0;
}

static void forks(const char *path, const hart_model *model, const hart_image *expected) {
    in_child(opens_and_draws, model, expected);
    hart_options *options = NULL;
    OK(hart_options_new(&options));
    OK(hart_options_set_threads(options, 1));
    hart_model *own = NULL;
    OK(hart_model_open(path, options, HART_ABI_VERSION, &own));
    in_child(opens_and_draws, own, expected);
    in_child(frees, own, expected);
    hart_options_free(options);
    hart_model_free(own);
    /* In a callback, a call is running. */
    struct forked forked = {model, 0};
    hart_request *request = new_request("a red heart", 3);
    OK(hart_request_set_observer(request, forks_once, &forked, NULL));
    hart_image *image = image_of(model, request);
    CHECK(forked.done && same_pixels(image, expected));
    hart_image_free(image);
    hart_request_free(request);
    draws(model, expected);
}

/* ---- Threads and coroutines with little stack ---- */

enum { SMALL_STACK = 64 * 1024 };

static int32_t previews(const hart_event *event, void *user_data) {
    if (event->has_preview) {
        hart_image *preview = NULL;
        OK(hart_event_preview(event, 8, &preview));
        hart_image_free(preview);
        ++*(int *)user_data;
    }
    return 0;
}

static void uses_everything(const hart_image *expected) {
    hart_options *options = NULL;
    OK(hart_options_new(&options));
    for (uint32_t threads = 0; threads <= 1; threads++) {
        OK(hart_options_set_threads(options, threads));
        hart_model *model = NULL;
        OK(hart_model_open(model_path, options, HART_ABI_VERSION, &model));
        hart_request *request = new_request("a red heart", 3);
        int count = 0;
        OK(hart_request_set_observer(request, previews, &count, NULL));
        uint64_t weights = 0, peak = 0;
        OK(hart_model_memory(model, request, &weights, &peak));
        hart_context *context = NULL;
        OK(hart_encode(model, request, &context));
        const float *hidden = NULL;
        size_t tokens = 0, channels = 0;
        OK(hart_context_hidden(context, 0, &hidden, &tokens, &channels));
        OK(hart_request_set_context(request, context));
        hart_image *image = image_of(model, request);
        CHECK(same_pixels(image, expected) && count > 1 && weights > 0);
        hart_tokens *codes = NULL;
        OK(hart_model_tokenize(model, image, &codes));
        hart_image *again = NULL;
        OK(hart_model_reconstruct(model, codes, 1, &again));
        hart_image_free(again);
        for (hart_image_format format = HART_FORMAT_PNG; format <= HART_FORMAT_WEBP; format++) {
            const char *const endings[3] = {"png", "jpg", "webp"};
            char name[1024];
            snprintf(name, sizeof name, "%s/small-stack.%s", scratch_path, endings[format]);
            const uint8_t *data = NULL;
            size_t size = 0;
            OK(hart_image_encode(image, format, 0, &data, &size));
            OK(hart_image_save(image, name));
            OK(hart_image_open(name, &again));
            hart_image_free(again);
        }
        OK(hart_request_set_inpaint(request, image, image, 1));
        hart_image_free(image_of(model, request));
        hart_device_list *list = NULL;
        OK(hart_device_list_new(&list));
        hart_device_list_free(list);
        hart_tokens_free(codes);
        hart_image_free(image);
        hart_context_free(context);
        hart_request_free(request);
        hart_model_free(model);
    }
    hart_options_free(options);
}

static void *on_thread(void *expected) {
    uses_everything(expected);
    return NULL;
}

static ucontext_t before, inside;
static const hart_image *coroutine_image;

static void on_coroutine(void) { uses_everything(coroutine_image); }

static void small_stacks(const hart_image *expected) {
    pthread_attr_t attributes;
    pthread_t thread;
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstacksize(&attributes, SMALL_STACK) == 0);
    CHECK(pthread_create(&thread, &attributes, on_thread, (void *)(uintptr_t)expected) == 0);
    CHECK(pthread_join(thread, NULL) == 0 && pthread_attr_destroy(&attributes) == 0);

    coroutine_image = expected;
    void *stack = malloc(SMALL_STACK);
    CHECK(stack != NULL && getcontext(&inside) == 0);
    inside.uc_stack.ss_sp = stack;
    inside.uc_stack.ss_size = SMALL_STACK;
    inside.uc_link = &before;
    makecontext(&inside, on_coroutine, 0);
    CHECK(swapcontext(&before, &inside) == 0);
    free(stack);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL SCRATCH\n", argv[0]);
        return 2;
    }
    model_path = argv[1];
    scratch_path = argv[2];
    in_child(starts_no_threads, NULL, NULL);
    hart_model *model = open_model(argv[1]);
    hart_request *request = new_request("a red heart", 3);
    hart_image *expected = image_of(model, request);
    hart_request_free(request);
    floating_point_states(argv[1], model, expected);
    forks(argv[1], model, expected);
    small_stacks(expected);
    hart_image_free(expected);
    hart_model_free(model);
    puts("other hosts: ok");
    return 0;
}
