/* Generates an image from a prompt, with progress, Ctrl-C and error messages: generate MODEL PROMPT OUT.png [SEED] */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include <hart.h>

static hart_cancel *cancel;

static void on_interrupt(int signal_number) {
    hart_cancel_request(cancel);     /* Safe in a signal handler: one atomic store. */
    signal(signal_number, SIG_DFL);  /* A second Ctrl-C ends the program at once. */
}

static int32_t show_progress(const hart_event *event, void *user_data) {
    static const char *const stages[] = {"text", "transformer", "sampling", "residual", "decode"};
    (void)user_data;
    /* Later versions may add stages. */
    const char *stage = event->stage >= 0 && event->stage <= HART_STAGE_DECODE ? stages[event->stage] : "";
    fprintf(stderr, "\r%3.0f %%  scale %2" PRIu32 "/%" PRIu32 "  %-12s", 100.0 * event->fraction, event->scale, event->scales, stage);
    return 0;
}

static int parse_seed(const char *text, uint64_t *seed) {
    char *end = NULL;
    errno = 0;
    *seed = strtoull(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' && text[0] != '-';
}

int main(int argc, char **argv) {
    hart_model *model = NULL;
    hart_request *request = NULL;
    hart_result *result = NULL;
    hart_image *image = NULL;
    uint64_t seed = 0, weights = 0, peak = 0;

    if (argc < 4 || argc > 5 || (argc == 5 && !parse_seed(argv[4], &seed))) {
        fprintf(stderr, "usage: %s MODEL PROMPT OUT.png [SEED]\n", argv[0]);
        return 2;
    }
    hart_status status = hart_model_open(argv[1], NULL, HART_ABI_VERSION, &model);
    if (status == HART_OK) status = hart_cancel_new(&cancel);
    if (status == HART_OK) status = hart_request_new(&request);
    if (status == HART_OK) status = hart_request_set_prompt(request, argv[2]);
    if (status == HART_OK) status = hart_request_set_seed(request, seed);
    if (status == HART_OK) status = hart_request_set_observer(request, show_progress, NULL, NULL);
    if (status == HART_OK) status = hart_request_set_cancel(request, cancel);
    if (status == HART_OK) status = hart_model_memory(model, request, &weights, &peak);
    if (status == HART_OK) {
        signal(SIGINT, on_interrupt);
        fprintf(stderr, "about %.1f MB of memory, of which %.1f MB for the weights\n", (double)peak / 1e6, (double)weights / 1e6);
        status = hart_generate(model, request, &result);
        fputc('\n', stderr);
    }
    if (status == HART_OK) status = hart_result_image(result, 0, &image);
    if (status == HART_OK) status = hart_image_save(image, argv[3]);

    /* The message stays valid until the next failed call on this thread. */
    if (status == HART_CANCELLED) {
        fprintf(stderr, "%s\n", hart_last_error());
    } else if (status != HART_OK) {
        fprintf(stderr, "error %" PRId32 " (%s): %s\n", status, hart_status_text(status), hart_last_error());
    }
    signal(SIGINT, SIG_DFL);
    hart_image_free(image);
    hart_result_free(result);
    hart_request_free(request);
    hart_model_free(model);
    hart_cancel_free(cancel);
    return status == HART_OK ? 0 : status == HART_CANCELLED ? 130 : 1;
}
