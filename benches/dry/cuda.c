/* A replacement for the CUDA driver and for NVRTC that needs no GPU. Linux only.
 *
 * By default it allocates memory but launches no kernels, and every result reads as zero. At exit it reports the number of
 * launches and copies and the peak memory. `benches/dry.sh` uses this mode. DRY_KERNELS=1 also reports the launches of every
 * kernel. DRY_SOURCES=FOLDER writes the source of every kernel to the folder, for NVIDIA's compiler and disassembler, which need
 * no GPU.
 *
 * DRY_RUN=FOLDER compiles every kernel for the CPU into the folder, using `compile` and `kernel.h`, and runs it. This is slow, but
 * every value is computed as in the CUDA source of the kernel. `benches/emulate.sh` uses this mode. */
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
static size_t launches, copies_in, copies_out, allocated, peak;

/* Launches a kernel on the CPU. */
typedef void Launch(struct Machine *machine, const unsigned *grid, const unsigned *block, unsigned shared, void **arguments);
/* A list of the loaded kernels by name. */
typedef struct Kernel {
  char *name;
  size_t launches;
  Launch *launch;
  struct Kernel *next;
} Kernel;
static Kernel *kernels;

/* A hash table of the allocations by address. */
typedef struct Allocation {
  void *start;
  size_t bytes;
  struct Allocation *next;
} Allocation;
static Allocation *allocations[4096];

/* Returns the link to the allocation at `start`, or the link at the end of its list. */
static Allocation **find(void *start) {
  Allocation **link = &allocations[((uintptr_t)start >> 12) % 4096];
  while (*link && (*link)->start != start) link = &(*link)->next;
  return link;
}

/* Returns the folder for compiled kernels, or NULL if kernels are not run. */
static const char *run_folder(void) { return getenv("DRY_RUN"); }

/* Allocates device memory. Pages that are never written take no memory of the host. */
static Result allocate(void **start, size_t bytes) {
  bytes = bytes ? bytes : 1;
  void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return OUT_OF_MEMORY;
  pthread_mutex_lock(&lock);
  Allocation *allocation = malloc(sizeof *allocation), **link = find(pages);
  *allocation = (Allocation){pages, bytes, *link};
  *link = allocation;
  allocated += bytes;
  peak = allocated > peak ? allocated : peak;
  pthread_mutex_unlock(&lock);
  *start = pages;
  return SUCCESS;
}

static Result release(void *start) {
  pthread_mutex_lock(&lock);
  Allocation **link = find(start), *allocation = *link;
  if (allocation) {
    *link = allocation->next;
    allocated -= allocation->bytes;
    munmap(allocation->start, allocation->bytes);
    free(allocation);
  }
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

__attribute__((destructor)) static void report(void) {
  if (!launches) return; /* The program only listed the devices. */
  fprintf(stderr, "dry: %zu launches, %zu copies to and %zu from the device, %.2f GB of it at most\n", launches, copies_in, copies_out,
          peak / 1e9);
  for (Kernel *kernel = getenv("DRY_KERNELS") ? kernels : NULL; kernel; kernel = kernel->next)
    if (kernel->launches) fprintf(stderr, "dry: %8zu %s\n", kernel->launches, kernel->name);
}

/* The driver. The attributes are those of an H100. */

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
  case 1: case 2: case 3: *value = 1024; break;        /* threads per block */
  case 4: *value = 64; break;
  case 5: *value = 2147483647; break;                  /* blocks per grid */
  case 6: case 7: *value = 65535; break;
  case 8: *value = 49152; break;                       /* shared memory per block */
  case 10: *value = 32; break;                         /* threads per warp */
  case 16: *value = 132; break;                        /* multiprocessors */
  case 75: *value = 9; break;                          /* compute capability */
  case 76: *value = 0; break;
  case 81: *value = 233472; break;                     /* shared memory per multiprocessor */
  case 97: *value = 232448; break;                     /* shared memory per block, opt-in */
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

Result cuMemAlloc_v2(void **start, size_t bytes) { return allocate(start, bytes); }
Result cuMemAllocAsync(void **start, size_t bytes, void *stream) { return allocate(start, bytes); }
Result cuMemFree_v2(void *start) { return release(start); }
Result cuMemFreeAsync(void *start, void *stream) { return release(start); }
Result cuMemAllocHost_v2(void **start, size_t bytes) { return (*start = malloc(bytes)) ? SUCCESS : OUT_OF_MEMORY; }
Result cuMemHostAlloc(void **start, size_t bytes, unsigned flags) { return cuMemAllocHost_v2(start, bytes); }
Result cuMemFreeHost(void *start) { return free(start), SUCCESS; }
Result cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
  copies_in++;
  if (run_folder()) memcpy(to, from, bytes);
  return SUCCESS;
}
Result cuMemcpyDtoDAsync_v2(void *to, void *from, size_t bytes, void *stream) {
  if (run_folder()) memmove(to, from, bytes);
  return SUCCESS;
}
Result cuMemsetD8Async(void *start, unsigned char value, size_t bytes, void *stream) {
  if (run_folder()) memset(start, value, bytes);
  return SUCCESS;
}

Result cuMemcpyDtoHAsync_v2(void *to, void *from, size_t bytes, void *stream) {
  if (run_folder()) return copies_out++, memcpy(to, from, bytes), SUCCESS;
  memset(to, 0, bytes);
  /* hart checks that a device computes by adding 1 + 1, twice. */
  if (copies_out++ == 0 && bytes >= 8) memcpy(to, (float[]){2, 2}, 8);
  return SUCCESS;
}

/* CUDA_MEMCPY2D: a copy of `height` rows of `width` bytes. */
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
    if (run_folder()) memcpy(to + row * copy->to_pitch, from + row * copy->from_pitch, copy->width);
    else if (to_host) memset(to + row * copy->to_pitch, 0, copy->width);
  return SUCCESS;
}

/* If kernels are run, the image of a module is the path of a shared library. */
Result cuModuleLoadData(void **module, const void *image) {
  *module = (void *)4;
  if (!run_folder()) return SUCCESS;
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
  if (run_folder()) kernel->launch = (Launch *)dlsym(module, "launch_kernel");
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
  /* Under the lock, kernels run one at a time and write to memory in their order. */
  static struct Machine machine;
  Result result = SUCCESS;
  if (kernel->launch && !machine.stacks) {
    machine.shared = aligned_alloc(4096, SHARED_BYTES);
    machine.stacks = mmap(NULL, (size_t)MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (block_x * block_y * block_z > MAX_THREADS || shared > SHARED_BYTES) result = INVALID_VALUE;
  else if (kernel->launch)
    kernel->launch(&machine, (unsigned[]){grid_x, grid_y, grid_z}, (unsigned[]){block_x, block_y, block_z}, shared, arguments);
  pthread_mutex_unlock(&lock);
  return result;
}
Result cuGetErrorString(Result result, const char **text) { return *text = "there is no GPU", SUCCESS; }
Result cuGetErrorName(Result result, const char **name) { return *name = "DRY", SUCCESS; }

/* The compiler. A program is the path of its source. If kernels are run, its PTX is the path of a shared library. */

int nvrtcVersion(int *major, int *minor) { return *major = 12, *minor = 9, 0; }
const char *nvrtcGetErrorString(int result) { return result ? "the kernel could not be compiled" : "no error"; }

int nvrtcCreateProgram(char **program, const char *source, const char *name, int headers, const char **texts, const char **names) {
  static size_t count;
  const char *folder = run_folder() ? run_folder() : getenv("DRY_SOURCES");
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
  if (!run_folder()) return 0;
  char command[9000];
  snprintf(command, sizeof command, "'%s' '%s' '%s.so'", getenv("DRY_COMPILE"), program, program);
  return system(command) != 0;
}
int nvrtcGetProgramLogSize(char *program, size_t *size) { return *size = 1, 0; }
int nvrtcGetProgramLog(char *program, char *log) { return *log = 0, 0; }
int nvrtcGetPTXSize(char *program, size_t *size) { return *size = strlen(program) + sizeof ".so", 0; }
int nvrtcGetPTX(char *program, char *ptx) { return sprintf(ptx, "%s.so", program), 0; }
