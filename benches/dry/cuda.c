/* A driver and a compiler for CUDA, without a GPU. Linux only.
 *
 * It hands out memory and launches nothing, so that what a program asks of a GPU can be counted: launches, memory, copies. Numbers are
 * zeros. `benches/dry.sh` uses it so. DRY_KERNELS=1 also says how often each kernel was launched; DRY_SOURCES=FOLDER keeps their
 * sources there, for NVIDIA's compiler and disassembler, which need no GPU.
 *
 * With DRY_RUN set to a folder, kernels are compiled for the CPU into it, by `compile` and `kernel.h`, and run there: slow, but every
 * number is computed as the kernel's CUDA source says. `benches/emulate.sh` uses it so. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine.h"

typedef int Result;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t launches, copies_in, copies_out, now, peak;

/* Kernels, by the names under which they are loaded; and how one is launched on the CPU. */
typedef void Launch(struct Machine *machine, const unsigned *grid, const unsigned *block, unsigned shared, void **arguments);
typedef struct Kernel {
  char *name;
  size_t launches;
  Launch *launch;
  struct Kernel *next;
} Kernel;
static Kernel *kernels;

/* What is allocated. */
typedef struct Block {
  void *start;
  size_t bytes;
  struct Block *next;
} Block;
static Block *blocks[4096];

static Block **place_of(void *start) {
  Block **place = &blocks[((uintptr_t)start >> 12) % 4096];
  while (*place && (*place)->start != start) place = &(*place)->next;
  return place;
}

/* The folder for kernels, if they are run. */
static const char *runs(void) { return getenv("DRY_RUN"); }

/* Pages that nobody writes to take no memory. */
static Result take(void **start, size_t bytes) {
  bytes = bytes ? bytes : 1;
  void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return OUT_OF_MEMORY;
  pthread_mutex_lock(&lock);
  Block *block = malloc(sizeof *block), **place = place_of(pages);
  *block = (Block){pages, bytes, *place};
  *place = block;
  now += bytes;
  peak = now > peak ? now : peak;
  pthread_mutex_unlock(&lock);
  *start = pages;
  return SUCCESS;
}

static Result give_back(void *start) {
  pthread_mutex_lock(&lock);
  Block **place = place_of(start), *block = *place;
  if (block) {
    *place = block->next;
    now -= block->bytes;
    munmap(block->start, block->bytes);
    free(block);
  }
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

__attribute__((destructor)) static void report(void) {
  if (!launches) return; /* It was only looked at. */
  fprintf(stderr, "dry: %zu launches, %zu copies to and %zu from the device, %.2f GB of it at most\n", launches, copies_in, copies_out,
          peak / 1e9);
  for (Kernel *kernel = getenv("DRY_KERNELS") ? kernels : NULL; kernel; kernel = kernel->next)
    if (kernel->launches) fprintf(stderr, "dry: %8zu %s\n", kernel->launches, kernel->name);
}

/* The driver. */

Result cuInit(unsigned flags) { return SUCCESS; }
Result cuDriverGetVersion(int *version) { return *version = 12090, SUCCESS; }
Result cuDeviceGet(int *device, int number) { return *device = number, number == 0 ? SUCCESS : INVALID_DEVICE; }
Result cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
Result cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "no GPU, an H100's sizes"), SUCCESS; }
Result cuDeviceGetUuid(void *uuid, int device) { return memset(uuid, 0, 16), SUCCESS; }
Result cuDeviceGetUuid_v2(void *uuid, int device) { return memset(uuid, 0, 16), SUCCESS; }
Result cuDeviceGetPCIBusId(char *id, int length, int device) { return snprintf(id, length, "0000:00:00.0"), SUCCESS; }
Result cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = (size_t)80 << 30, SUCCESS; }
Result cuMemGetInfo_v2(size_t *unused, size_t *total) { return *unused = *total = (size_t)80 << 30, SUCCESS; }

Result cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
  case 1: case 2: case 3: *value = 1024; break;        /* threads of a block */
  case 4: *value = 64; break;
  case 5: *value = 2147483647; break;                  /* blocks of a grid */
  case 6: case 7: *value = 65535; break;
  case 8: *value = 49152; break;                       /* shared memory of a block */
  case 10: *value = 32; break;                         /* threads of a warp */
  case 16: *value = 132; break;                        /* multiprocessors */
  case 75: *value = 9; break;                          /* compute capability */
  case 76: *value = 0; break;
  case 81: *value = 233472; break;                     /* shared memory of a multiprocessor */
  case 97: *value = 232448; break;                     /* of a block that asks for it */
  default: *value = 1;
  }
  return SUCCESS;
}

Result cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)1, SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
Result cuCtxSetCurrent(void *context) { return SUCCESS; }
Result cuCtxGetCurrent(void **context) { return *context = (void *)1, SUCCESS; }
Result cuCtxSynchronize(void) { return SUCCESS; }
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = *greatest = 0, SUCCESS; }
Result cuStreamCreate(void **stream, unsigned flags) { return *stream = (void *)2, SUCCESS; }
Result cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return *stream = (void *)2, SUCCESS; }
Result cuStreamDestroy_v2(void *stream) { return SUCCESS; }
Result cuStreamSynchronize(void *stream) { return SUCCESS; }
Result cuStreamQuery(void *stream) { return SUCCESS; }
Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
Result cuEventCreate(void **event, unsigned flags) { return *event = (void *)3, SUCCESS; }
Result cuEventDestroy_v2(void *event) { return SUCCESS; }
Result cuEventRecord(void *event, void *stream) { return SUCCESS; }
Result cuEventSynchronize(void *event) { return SUCCESS; }
Result cuEventQuery(void *event) { return SUCCESS; }
Result cuEventElapsedTime(float *milliseconds, void *from, void *to) { return *milliseconds = 1, SUCCESS; }
Result cuEventElapsedTime_v2(float *milliseconds, void *from, void *to) { return *milliseconds = 1, SUCCESS; }

Result cuMemAlloc_v2(void **start, size_t bytes) { return take(start, bytes); }
Result cuMemAllocAsync(void **start, size_t bytes, void *stream) { return take(start, bytes); }
Result cuMemFree_v2(void *start) { return give_back(start); }
Result cuMemFreeAsync(void *start, void *stream) { return give_back(start); }
Result cuMemAllocHost_v2(void **start, size_t bytes) { return (*start = malloc(bytes)) ? SUCCESS : OUT_OF_MEMORY; }
Result cuMemHostAlloc(void **start, size_t bytes, unsigned flags) { return cuMemAllocHost_v2(start, bytes); }
Result cuMemFreeHost(void *start) { return free(start), SUCCESS; }
Result cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
  copies_in++;
  if (runs()) memcpy(to, from, bytes);
  return SUCCESS;
}
Result cuMemcpyDtoDAsync_v2(void *to, void *from, size_t bytes, void *stream) {
  if (runs()) memmove(to, from, bytes);
  return SUCCESS;
}
Result cuMemsetD8Async(void *start, unsigned char value, size_t bytes, void *stream) {
  if (runs()) memset(start, value, bytes);
  return SUCCESS;
}

Result cuMemcpyDtoHAsync_v2(void *to, void *from, size_t bytes, void *stream) {
  if (runs()) return copies_out++, memcpy(to, from, bytes), SUCCESS;
  memset(to, 0, bytes);
  /* A device is tried with 1 + 1, twice. */
  if (copies_out++ == 0 && bytes >= 8) memcpy(to, (float[]){2, 2}, 8);
  return SUCCESS;
}

/* CUDA's description of a copy of rows; of it, where they go on the host, and how many there are. */
typedef struct {
  size_t from_x, from_y;
  int from_kind;
  const char *from_host;
  char *from_device, *from_array;
  size_t from_pitch, to_x, to_y;
  int to_kind;
  char *to_host;
  char *to_device, *to_array;
  size_t to_pitch, width, height;
} Copy2D;

Result cuMemcpy2DAsync_v2(const Copy2D *copy, void *stream) {
  int from_host = copy->from_kind == 1, to_host = copy->to_kind == 1;
  if (to_host) copies_out++;
  else copies_in++;
  const char *from = (from_host ? copy->from_host : copy->from_device) + copy->from_y * copy->from_pitch + copy->from_x;
  char *to = (to_host ? copy->to_host : copy->to_device) + copy->to_y * copy->to_pitch + copy->to_x;
  for (size_t row = 0; row < copy->height; row++)
    if (runs()) memcpy(to + row * copy->to_pitch, from + row * copy->from_pitch, copy->width);
    else if (to_host) memset(to + row * copy->to_pitch, 0, copy->width);
  return SUCCESS;
}

/* A module is a library's path, where kernels are run. */
Result cuModuleLoadData(void **module, const void *image) {
  *module = (void *)4;
  if (!runs()) return SUCCESS;
  *module = dlopen(image, RTLD_NOW | RTLD_LOCAL);
  if (!*module) fprintf(stderr, "dry: %s\n", dlerror());
  return *module ? SUCCESS : INVALID_IMAGE;
}
Result cuModuleUnload(void *module) { return SUCCESS; }
Result cuModuleGetFunction(void **function, void *module, const char *name) {
  pthread_mutex_lock(&lock);
  Kernel *kernel = kernels;
  while (kernel && strcmp(kernel->name, name)) kernel = kernel->next;
  if (!kernel) {
    kernel = malloc(sizeof *kernel);
    *kernel = (Kernel){strdup(name), 0, NULL, kernels};
    kernels = kernel;
  }
  if (runs()) kernel->launch = (Launch *)dlsym(module, "launch_kernel");
  pthread_mutex_unlock(&lock);
  return *function = kernel, SUCCESS;
}
Result cuFuncSetAttribute(void *function, int attribute, int value) { return SUCCESS; }
Result cuFuncGetAttribute(int *value, int attribute, void *function) { return *value = 0, SUCCESS; }
Result cuLaunchKernel(Kernel *kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned shared, void *stream, void **arguments, void **extra) {
  pthread_mutex_lock(&lock);
  kernel->launches++;
  launches++;
  /* One at a time: what they do to memory happens in their order. */
  static struct Machine machine;
  Result result = SUCCESS;
  if (kernel->launch && !machine.stacks) {
    machine.shared = aligned_alloc(4096, SHARED_BYTES);
    machine.stacks = mmap(NULL, (size_t)MOST_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (block_x * block_y * block_z > MOST_THREADS || shared > SHARED_BYTES) result = INVALID_VALUE;
  else if (kernel->launch)
    kernel->launch(&machine, (unsigned[]){grid_x, grid_y, grid_z}, (unsigned[]){block_x, block_y, block_z}, shared, arguments);
  pthread_mutex_unlock(&lock);
  return result;
}
Result cuGetErrorString(Result result, const char **text) { return *text = "there is no GPU", SUCCESS; }
Result cuGetErrorName(Result result, const char **name) { return *name = "DRY", SUCCESS; }

/* The compiler: a program is its source's path, and what it is compiled to is a library's path, where kernels are run. */

int nvrtcVersion(int *major, int *minor) { return *major = 12, *minor = 9, 0; }
const char *nvrtcGetErrorString(int result) { return result ? "the kernel's source was not compiled" : "no error"; }

int nvrtcCreateProgram(char **program, const char *source, const char *name, int headers, const char **texts, const char **names) {
  static size_t count;
  const char *folder = runs() ? runs() : getenv("DRY_SOURCES");
  *program = calloc(1, 4096);
  if (!folder) return 0;
  size_t number = __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
  snprintf(*program, 4000, "%s/%d-%zu.cu", folder, (int)getpid(), number);
  FILE *file = fopen(*program, "w");
  if (!file) return 1;
  int written = fputs(source, file) >= 0;
  return fclose(file) || !written;
}
int nvrtcDestroyProgram(char **program) { return free(*program), 0; }

int nvrtcCompileProgram(char *program, int count, const char **options) {
  if (!runs()) return 0;
  char command[9000];
  snprintf(command, sizeof command, "'%s' '%s' '%s.so'", getenv("DRY_COMPILE"), program, program);
  return system(command) != 0;
}
int nvrtcGetProgramLogSize(char *program, size_t *size) { return *size = 1, 0; }
int nvrtcGetProgramLog(char *program, char *log) { return *log = 0, 0; }
int nvrtcGetPTXSize(char *program, size_t *size) { return *size = strlen(program) + sizeof ".so", 0; }
int nvrtcGetPTX(char *program, char *ptx) { return sprintf(ptx, "%s.so", program), 0; }
