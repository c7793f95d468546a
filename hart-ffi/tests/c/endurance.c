/* Memory growth over many cycles, and the latency of cancellation, on Linux and Windows: endurance MODEL */
#include <limits.h>
#include <pthread.h>
#include <time.h>
#ifdef _WIN32
#include <windows.h>
#include <psapi.h>
#else
#include <unistd.h>
#endif

#include "check.h"

enum { CYCLES = 200, WARM_UP = 10, WINDOW = 20, TRIALS = 11, MAX_GROWTH_KIB = 4096, MAX_LATENCY_MS = 50 };

static long resident_kib(void) {
#ifdef _WIN32
    PROCESS_MEMORY_COUNTERS counters;
    CHECK(GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters));
    return (long)(counters.WorkingSetSize / 1024);
#else
    long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%ld %ld", &pages, &resident) == 2);
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
#endif
}

static void open_generate_free(const char *path) {
    hart_model *model = open_model(path);
    hart_request *request = new_request("a butterfly", 1);
    hart_image *image = image_of(model, request);
    hart_image_free(image);
    hart_request_free(request);
    hart_model_free(model);
}

/* Returns the smallest resident size after any of some cycles. The free memory that the C library keeps varies by
 * megabytes from cycle to cycle. */
static long min_resident_kib(const char *path, int cycles) {
    long minimum = LONG_MAX;
    for (int cycle = 0; cycle < cycles; cycle++) {
        open_generate_free(path);
        long now = resident_kib();
        if (now < minimum) minimum = now;
    }
    return minimum;
}

static void memory_does_not_grow(const char *path) {
    for (int cycle = 0; cycle < WARM_UP; cycle++) open_generate_free(path);
    long warm = min_resident_kib(path, WINDOW);
    for (int cycle = 0; cycle < CYCLES - WARM_UP - 2 * WINDOW; cycle++) open_generate_free(path);
    long grown = min_resident_kib(path, WINDOW) - warm;
    printf("%d cycles of open, generate, free: %ld KiB resident after %d, %+ld KiB at the end\n", CYCLES, warm, WARM_UP, grown);
    CHECK(grown < MAX_GROWTH_KIB);
}

static double milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

struct trial {
    hart_cancel *cancel;
    double delay_ms, requested_at;
};

static void *cancel_later(void *argument) {
    struct trial *trial = argument;
    struct timespec delay = {0, (long)(trial->delay_ms * 1e6)};
    nanosleep(&delay, NULL);
    trial->requested_at = milliseconds();
    hart_cancel_request(trial->cancel);
    return NULL;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void cancel_is_quick(const char *path) {
    hart_model *model = open_model(path);
    double latencies[TRIALS];
    for (int i = 0; i < TRIALS; i++) {
        struct trial trial = {.delay_ms = 60 + 13 * i};
        pthread_t thread;
        hart_request *request = new_request("a butterfly", 1);
        hart_result *result = NULL;
        OK(hart_cancel_new(&trial.cancel));
        OK(hart_request_set_cancel(request, trial.cancel));
        OK(hart_request_set_images_per_prompt(request, 1000));
        CHECK(pthread_create(&thread, NULL, cancel_later, &trial) == 0);
        CHECK(hart_generate(model, request, &result) == HART_CANCELLED);
        double now = milliseconds();
        CHECK(pthread_join(thread, NULL) == 0);
        latencies[i] = now - trial.requested_at;
        CHECK(hart_result_count(result) < 1000);
        HART_FREE(result, result);
        HART_FREE(request, request);
        HART_FREE(cancel, trial.cancel);
    }
    qsort(latencies, TRIALS, sizeof *latencies, by_size);
    printf("cancelled from another thread, %d times: median %.1f ms, maximum %.1f ms\n", TRIALS, latencies[TRIALS / 2], latencies[TRIALS - 1]);
    /* The median, because the machine may be busy during a single trial. */
    CHECK(latencies[TRIALS / 2] < MAX_LATENCY_MS);
    HART_FREE(model, model);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL\n", argv[0]);
        return 2;
    }
    cancel_is_quick(argv[1]);
    memory_does_not_grow(argv[1]);
    return 0;
}
