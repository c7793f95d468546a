/* Memory that all kernels on the CPU share. `cuda.c` allocates it and `kernel.h` uses it. */
#pragma once

enum { MAX_THREADS = 1024, STACK_BYTES = 256 << 10, SHARED_BYTES = 256 << 10 };

struct Machine {
  char *shared; /* Shared memory of the running block. */
  char *stacks; /* Stacks of its threads. */
  void *owner;  /* The `fibers` array of the kernel that used the stacks last. */
};
