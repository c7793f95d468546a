/* CUDA's environment for a kernel that runs on a CPU. `compile` includes this file before the source of the kernel.
 *
 * The threads of a block are fibers. They run one after the other, each until it reaches a barrier of its warp or its block. */
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>
#include <ucontext.h>
#include <utility>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline

typedef unsigned int uint;
struct Dim3 {
  unsigned x, y, z;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;
static char *shared_memory;

/* Fibers. */

enum State { RUNNING, AT_WARP_BARRIER, AT_BLOCK_BARRIER, DONE };
struct Fiber {
  State state;
  bool started;
  jmp_buf resume_point;
  ucontext_t start;
  void (*operation)(Fiber *const *lanes); /* The warp's operation once all of its threads are at the barrier, */
  void *operand;                          /* and the operand of this thread. */
};
enum { WARP = 32 };
static Fiber fibers[MAX_THREADS];
static char *stacks;
static unsigned current_thread;
static jmp_buf scheduler;
static void (*current_kernel)(void **);
static void **current_arguments;

static void fail(const char *reason) {
  fprintf(stderr, "kernel on the CPU: %s (block %u %u %u, thread %u)\n", reason, blockIdx.x, blockIdx.y, blockIdx.z,
          current_thread);
  abort();
}

/* Returns to the scheduler until the fiber is resumed. */
static void suspend(State state) {
  fibers[current_thread].state = state;
  if (!_setjmp(fibers[current_thread].resume_point)) _longjmp(scheduler, 1);
}

/* A fiber is reused: after its thread is done, it runs the same thread of the next block. */
static void run_fiber() {
  for (;;) {
    current_kernel(current_arguments);
    suspend(DONE);
  }
}

static void resume(unsigned thread) {
  current_thread = thread;
  threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
  if (_setjmp(scheduler)) return;
  Fiber &fiber = fibers[thread];
  if (fiber.started) _longjmp(fiber.resume_point, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stacks + (size_t)thread * STACK_BYTES;
  fiber.start.uc_stack.ss_size = STACK_BYTES;
  makecontext(&fiber.start, run_fiber, 0);
  setcontext(&fiber.start);
}

/* Runs the threads of a warp until all of them are done or at a barrier of the block. */
static void run_warp(unsigned first, unsigned end) {
  for (;;) {
    unsigned waiting = 0, at_block = 0;
    Fiber *lanes[WARP] = {};
    for (unsigned i = first; i < end; i++) {
      if (fibers[i].state == RUNNING) resume(i);
      waiting += fibers[i].state == AT_WARP_BARRIER;
      at_block += fibers[i].state == AT_BLOCK_BARRIER;
      lanes[i - first] = &fibers[i];
    }
    if (!waiting) return;
    if (at_block || waiting != WARP) fail("only some threads of a warp reach a barrier of the warp");
    for (unsigned i = 1; i < WARP; i++)
      if (lanes[i]->operation != lanes[0]->operation) fail("threads of a warp reach different operations of the warp");
    if (lanes[0]->operation) lanes[0]->operation(lanes);
    for (Fiber *lane : lanes) lane->state = RUNNING;
  }
}

/* Runs a block. The first and the last warp take turns to start, which exposes kernels that lack a barrier. */
static void run_block() {
  static unsigned turn;
  unsigned count = blockDim.x * blockDim.y * blockDim.z, warps = (count + WARP - 1) / WARP;
  for (unsigned i = 0; i < count; i++) fibers[i].state = RUNNING;
  for (;; turn++) {
    unsigned done = 0;
    for (unsigned i = 0; i < warps; i++) {
      unsigned first = (turn % 2 ? warps - 1 - i : i) * WARP;
      run_warp(first, first + WARP < count ? first + WARP : count);
    }
    for (unsigned i = 0; i < count; i++) done += fibers[i].state == DONE;
    if (done == count) return;
    if (done) fail("some threads of a block are done while others are at a barrier");
    for (unsigned i = 0; i < count; i++) fibers[i].state = RUNNING;
  }
}

/* Runs all blocks of a launch. */
static void launch(void (*kernel)(void **), struct Machine *machine, const unsigned *grid, const unsigned *block, unsigned shared,
                   void **arguments) {
  current_kernel = kernel;
  current_arguments = arguments;
  shared_memory = machine->shared;
  /* Start over if another kernel's fibers have used the stacks. */
  if (machine->owner != fibers) memset(fibers, 0, sizeof fibers);
  machine->owner = fibers;
  stacks = machine->stacks;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
        /* Uninitialised shared memory reads as NaN. */
        memset(shared_memory, 0xFF, shared);
        run_block();
      }
}

template <class... A, size_t... I> static void call_with(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
  kernel(*(std::remove_const_t<std::remove_reference_t<A>> *)arguments[I]...);
}
template <class... A> static void call(void (*kernel)(A...), void **arguments) {
  call_with(kernel, arguments, std::index_sequence_for<A...>());
}

/* Barriers and operations of a warp. */

/* Waits for the other threads of the warp. Then the operation is called once, with the fibers of all lanes. */
static void warp_operation(void (*operation)(Fiber *const *lanes), void *operand) {
  fibers[current_thread].operation = operation;
  fibers[current_thread].operand = operand;
  suspend(AT_WARP_BARRIER);
}
static void __syncthreads() { suspend(AT_BLOCK_BARRIER); }
static void __syncwarp() { warp_operation(NULL, NULL); }
static void __threadfence() {}
static unsigned __activemask() { return 0xFFFFFFFFu; }

/* Shuffles: every thread receives the value of another lane. */
template <class T> struct Shuffle {
  T value, result;
  unsigned source;
};
template <class T> static void shuffle(Fiber *const *lanes) {
  for (unsigned i = 0; i < WARP; i++) {
    auto *operand = (Shuffle<T> *)lanes[i]->operand;
    operand->result = operand->source < WARP ? ((Shuffle<T> *)lanes[operand->source]->operand)->value : operand->value;
  }
}
template <class T> static T value_of_lane(T value, unsigned lane) {
  Shuffle<T> operand = {value, value, lane};
  warp_operation(shuffle<T>, &operand);
  return operand.result;
}
static unsigned current_lane() { return current_thread % WARP; }
template <class T> static T __shfl_sync(unsigned, T value, unsigned lane) { return value_of_lane(value, lane % WARP); }
template <class T> static T __shfl_xor_sync(unsigned, T value, unsigned mask) {
  return value_of_lane(value, current_lane() ^ mask);
}
template <class T> static T __shfl_up_sync(unsigned, T value, unsigned by) { return value_of_lane(value, current_lane() - by); }
template <class T> static T __shfl_down_sync(unsigned, T value, unsigned by) { return value_of_lane(value, current_lane() + by); }

/* CUDA's mathematical functions beyond those of C. */

static uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }
static int32_t __mulhi(int32_t a, int32_t b) { return (int32_t)((int64_t)a * b >> 32); }
static int __clz(uint32_t value) { return value ? __builtin_clz(value) : 32; }
static int __popc(uint32_t value) { return __builtin_popcount(value); }
static float rsqrt(float value) { return 1.0f / sqrtf(value); }
static float min(float a, float b) { return fminf(a, b); }
static float max(float a, float b) { return fmaxf(a, b); }
static uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
static uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }
static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t max(int32_t a, int32_t b) { return a > b ? a : b; }
/* PTX instructions, named as `compile` writes them. */
static void max_NaN_f32(float &result, float a, float b) { result = isnan(a) || isnan(b) ? NAN : fmaxf(a, b); }
static void min_NaN_f32(float &result, float a, float b) { result = isnan(a) || isnan(b) ? NAN : fminf(a, b); }
static void atom_relaxed_add_f32(float &before, const float *address, float value) {
  float *target = (float *)address;
  before = *target;
  *target += value;
}

/* Half-precision types. */

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
struct F16 {
  static float widen(uint16_t bits) {
    _Float16 half;
    memcpy(&half, &bits, 2);
    return (float)half;
  }
  static uint16_t narrow(float value) {
    _Float16 half = (_Float16)value;
    uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
  }
};
struct Bf16 {
  static float widen(uint16_t bits) { return float_of((uint32_t)bits << 16); }
  static uint16_t narrow(float value) {
    uint32_t bits = bits_of(value);
    if (value != value) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
};
template <class Kind> struct Half {
  typedef Kind kind;
  uint16_t bits;
  Half() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>> Half(T value) : bits(Kind::narrow((float)value)) {}
  template <class Other> explicit Half(Half<Other> other) : bits(Kind::narrow((float)other)) {}
  operator float() const { return Kind::widen(bits); }
  Half operator-() const { return Half(-(float)*this); }
  Half operator+(Half other) const { return Half((float)*this + (float)other); }
  Half operator-(Half other) const { return Half((float)*this - (float)other); }
  Half operator*(Half other) const { return Half((float)*this * (float)other); }
  Half operator/(Half other) const { return Half((float)*this / (float)other); }
  bool operator<(Half other) const { return (float)*this < (float)other; }
  bool operator>(Half other) const { return (float)*this > (float)other; }
  bool operator<=(Half other) const { return (float)*this <= (float)other; }
  bool operator>=(Half other) const { return (float)*this >= (float)other; }
  bool operator==(Half other) const { return (float)*this == (float)other; }
  bool operator!=(Half other) const { return (float)*this != (float)other; }
};
typedef Half<F16> __half;
typedef Half<Bf16> __nv_bfloat16;
template <class H> struct alignas(4) Pair {
  H x, y;
  Pair operator+(Pair o) const { return {x + o.x, y + o.y}; }
  Pair operator-(Pair o) const { return {x - o.x, y - o.y}; }
  Pair operator*(Pair o) const { return {x * o.x, y * o.y}; }
  Pair operator/(Pair o) const { return {x / o.x, y / o.y}; }
  Pair operator-() const { return {-x, -y}; }
};
typedef Pair<__half> __half2;
typedef Pair<__nv_bfloat16> __nv_bfloat162;

/* Tensor cores. A register holds two half-precision values, the first one in the low half. */

template <class H> static float half_at(uint32_t reg, unsigned index) { return H::kind::widen((uint16_t)(reg >> 16 * index)); }

/* mma.m16n8k16: d = a b + c, where d has 16 rows and 8 columns and the inner dimension is 16. The layout of the registers is
 * that of the PTX manual, "Matrix Fragments for mma.m16n8k16". */
struct MmaOperand {
  uint32_t a[4], b[2];
  float c[4], d[4];
};
template <class H> static void mma_of_warp(Fiber *const *lanes) {
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < WARP; lane++) {
    auto *operand = (MmaOperand *)lanes[lane]->operand;
    unsigned group = lane / 4, first = lane % 4 * 2;
    for (unsigned i = 0; i < 2; i++) {
      for (unsigned reg = 0; reg < 4; reg++) a[group + reg % 2 * 8][first + i + reg / 2 * 8] = half_at<H>(operand->a[reg], i);
      for (unsigned reg = 0; reg < 2; reg++) b[first + i + reg * 8][group] = half_at<H>(operand->b[reg], i);
    }
  }
  for (unsigned lane = 0; lane < WARP; lane++) {
    auto *operand = (MmaOperand *)lanes[lane]->operand;
    for (unsigned i = 0; i < 4; i++) {
      unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = operand->c[i];
      for (unsigned k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
      operand->d[i] = sum;
    }
  }
}
template <class H>
static void mma(float &d0, float &d1, float &d2, float &d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                uint32_t b1, float c0, float c1, float c2, float c3) {
  MmaOperand operand = {{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}, {}};
  warp_operation(mma_of_warp<H>, &operand);
  d0 = operand.d[0], d1 = operand.d[1], d2 = operand.d[2], d3 = operand.d[3];
}
#define mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32 mma<__half>
#define mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32 mma<__nv_bfloat16>

static uint32_t __cvta_generic_to_shared(const volatile void *pointer) {
  return (uint32_t)((const char *)pointer - shared_memory);
}

/* ldmatrix: four matrices of 8 by 8. Each thread passes the address of a row of 16 bytes and receives two values of every
 * matrix. */
struct LdmatrixOperand {
  const uint16_t *row;
  uint32_t result[4];
};
template <bool TRANSPOSED> static void ldmatrix_of_warp(Fiber *const *lanes) {
  for (unsigned lane = 0; lane < WARP; lane++)
    for (unsigned matrix = 0; matrix < 4; matrix++) {
      uint32_t values[2];
      for (unsigned i = 0; i < 2; i++) {
        unsigned row = TRANSPOSED ? lane % 4 * 2 + i : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + i;
        values[i] = ((LdmatrixOperand *)lanes[matrix * 8 + row]->operand)->row[column];
      }
      ((LdmatrixOperand *)lanes[lane]->operand)->result[matrix] = values[0] | values[1] << 16;
    }
}
template <bool TRANSPOSED> static void ldmatrix(uint32_t &r0, uint32_t &r1, uint32_t &r2, uint32_t &r3, uint32_t address) {
  if (address % 16) fail("ldmatrix reads a row that is not aligned to 16 bytes");
  LdmatrixOperand operand = {(const uint16_t *)(shared_memory + address), {}};
  warp_operation(ldmatrix_of_warp<TRANSPOSED>, &operand);
  r0 = operand.result[0], r1 = operand.result[1], r2 = operand.result[2], r3 = operand.result[3];
}
#define ldmatrix_sync_aligned_m8n8_x4_shared_cta_b16 ldmatrix<false>
#define ldmatrix_sync_aligned_m8n8_x4_trans_shared_cta_b16 ldmatrix<true>

/* CUDA's WMMA API. CUDA does not specify the layout of a fragment. Here, every lane holds consecutive values in row-major order. */
namespace nvcuda::wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
namespace precision {
struct tf32 {};
} // namespace precision
enum layout_t { mem_row_major, mem_col_major };

/* Rounds to a mantissa of 10 bits, ties away from zero. */
static float __float_to_tf32(float value) {
  uint32_t bits = bits_of(value);
  return value != value ? value : float_of((bits + 0x1000) & ~0x1FFFu);
}

template <class Use, int M, int N, int K, class Kind, class Layout = void> struct fragment {
  typedef std::conditional_t<std::is_same_v<Kind, precision::tf32>, float, Kind> T;
  static const int rows = std::is_same_v<Use, matrix_b> ? K : M, columns = std::is_same_v<Use, matrix_a> ? K : N;
  static const int num_elements = rows * columns / WARP;
  static const bool is_row_major = !std::is_same_v<Layout, col_major>;
  T x[num_elements];
  /* Offset of element i of the current lane in a matrix in memory, whose rows (or columns) are `stride` elements apart. */
  static unsigned offset(int i, unsigned stride, bool row_major) {
    unsigned index = current_lane() * num_elements + i, row = index / columns, column = index % columns;
    return row_major ? row * stride + column : column * stride + row;
  }
};
template <class F, class T> static void fill_fragment(F &to, T value) {
  for (auto &x : to.x) x = value;
}
template <class F> static void load_matrix_sync(F &to, const typename F::T *from, unsigned stride) {
  if ((uintptr_t)from % 32) fail("a fragment is loaded from an address that is not aligned to 32 bytes");
  __syncwarp();
  for (int i = 0; i < F::num_elements; i++) to.x[i] = from[F::offset(i, stride, F::is_row_major)];
}
template <class F> static void store_matrix_sync(float *to, const F &from, unsigned stride, layout_t layout) {
  if ((uintptr_t)to % 32) fail("a fragment is stored to an address that is not aligned to 32 bytes");
  for (int i = 0; i < F::num_elements; i++) to[F::offset(i, stride, layout == mem_row_major)] = from.x[i];
  __syncwarp();
}
template <class A, class B, class C> struct WmmaOperand {
  const A &a;
  const B &b;
  const C &c;
  C &d;
};
template <class A, class B, class C> static void wmma_of_warp(Fiber *const *lanes) {
  auto operand = [&](unsigned lane) { return (WmmaOperand<A, B, C> *)lanes[lane]->operand; };
  const unsigned rows = C::rows, columns = C::columns, depth = A::columns;
  float a[rows * depth], b[depth * columns];
  for (unsigned i = 0; i < rows * depth; i++) a[i] = (float)operand(i / A::num_elements)->a.x[i % A::num_elements];
  for (unsigned i = 0; i < depth * columns; i++) b[i] = (float)operand(i / B::num_elements)->b.x[i % B::num_elements];
  for (unsigned i = 0; i < rows * columns; i++) {
    auto *target = operand(i / C::num_elements);
    float sum = target->c.x[i % C::num_elements];
    for (unsigned k = 0; k < depth; k++) sum += a[i / columns * depth + k] * b[k * columns + i % columns];
    target->d.x[i % C::num_elements] = sum;
  }
}
template <class A, class B, class C> static void mma_sync(C &d, const A &a, const B &b, const C &c) {
  WmmaOperand<A, B, C> operand = {a, b, c, d};
  warp_operation(wmma_of_warp<A, B, C>, &operand);
}
} // namespace nvcuda::wmma
