/* What kernels have in common that are run on the CPU: `cuda.c` has it, `kernel.h` uses it. */
#pragma once

enum { MOST_THREADS = 1024, STACK_BYTES = 256 << 10, SHARED_BYTES = 256 << 10 };

struct Machine {
  char *shared; /* of the one block that runs */
  char *stacks; /* of its threads */
  void *owner;  /* whose fibers are on them */
};
