/* What CUDA gives a kernel, on a CPU: the threads of a block are fibers that run one after the other, each until it waits for the
 * others of its warp or its block. `compile` puts this before a kernel's source. */
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
struct Three {
  unsigned x, y, z;
};
static Three threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;
static char *shared_memory;

/* Fibers. */

enum State { RUNS, WAITS_FOR_WARP, WAITS_FOR_BLOCK, IS_DONE };
struct Fiber {
  State state;
  bool began;
  jmp_buf place;
  ucontext_t start;
  void (*together)(Fiber *const *lanes); /* What the warp does when all of it is there, */
  void *what;                            /* and this thread's part of it. */
};
enum { WARP = 32 };
static Fiber fibers[MOST_THREADS];
static char *stacks;
static unsigned current;
static jmp_buf scheduler;
static void (*body)(void **);
static void **body_arguments;

static void fail(const char *why) {
  fprintf(stderr, "a kernel on the CPU: %s (block %u %u %u, thread %u)\n", why, blockIdx.x, blockIdx.y, blockIdx.z, current);
  abort();
}

static void wait(State state) {
  fibers[current].state = state;
  if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

/* A fiber lives on: it runs the next block's thread after this one's. */
static void begin() {
  for (;;) {
    body(body_arguments);
    wait(IS_DONE);
  }
}

static void resume(unsigned number) {
  current = number;
  threadIdx = {number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y};
  if (_setjmp(scheduler)) return;
  Fiber &fiber = fibers[number];
  if (fiber.began) _longjmp(fiber.place, 1);
  fiber.began = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stacks + (size_t)number * STACK_BYTES;
  fiber.start.uc_stack.ss_size = STACK_BYTES;
  makecontext(&fiber.start, begin, 0);
  setcontext(&fiber.start);
}

static void run_warp(unsigned first, unsigned end) {
  for (;;) {
    unsigned waiting = 0, at_block = 0;
    Fiber *lanes[WARP] = {};
    for (unsigned i = first; i < end; i++) {
      if (fibers[i].state == RUNS) resume(i);
      waiting += fibers[i].state == WAITS_FOR_WARP;
      at_block += fibers[i].state == WAITS_FOR_BLOCK;
      lanes[i - first] = &fibers[i];
    }
    if (!waiting) return;
    if (at_block || waiting != WARP) fail("some threads of a warp wait for it, others do not");
    for (unsigned i = 1; i < WARP; i++)
      if (lanes[i]->together != lanes[0]->together) fail("threads of a warp do different things together");
    if (lanes[0]->together) lanes[0]->together(lanes);
    for (Fiber *lane : lanes) lane->state = RUNS;
  }
}

/* Now the first warp begins and now the last one, so that a kernel which forgets to wait gives itself away. */
static void run_block() {
  static unsigned turn;
  unsigned count = blockDim.x * blockDim.y * blockDim.z, warps = (count + WARP - 1) / WARP;
  for (unsigned i = 0; i < count; i++) fibers[i].state = RUNS;
  for (;; turn++) {
    unsigned done = 0;
    for (unsigned i = 0; i < warps; i++) {
      unsigned first = (turn % 2 ? warps - 1 - i : i) * WARP;
      run_warp(first, first + WARP < count ? first + WARP : count);
    }
    for (unsigned i = 0; i < count; i++) done += fibers[i].state == IS_DONE;
    if (done == count) return;
    if (done) fail("some threads wait for the block, others have ended");
    for (unsigned i = 0; i < count; i++) fibers[i].state = RUNS;
  }
}

/* One launch. */
static void launch(void (*kernel)(void **), struct Machine *machine, const unsigned *grid, const unsigned *block, unsigned shared,
                   void **arguments) {
  body = kernel;
  body_arguments = arguments;
  shared_memory = machine->shared;
  /* Another kernel's fibers were on these stacks. */
  if (machine->owner != fibers) memset(fibers, 0, sizeof fibers);
  machine->owner = fibers;
  stacks = machine->stacks;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
        /* What a kernel reads before it writes is no number. */
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

/* Waiting for others. */

static void together(void (*does)(Fiber *const *lanes), void *what) {
  fibers[current].together = does;
  fibers[current].what = what;
  wait(WAITS_FOR_WARP);
}
static void __syncthreads() { wait(WAITS_FOR_BLOCK); }
static void __syncwarp() { together(NULL, NULL); }
static void __threadfence() {}
static unsigned __activemask() { return 0xFFFFFFFFu; }

/* Every thread offers a number and takes another thread's. */
template <class T> struct Shuffle {
  T offered, taken;
  unsigned from;
};
template <class T> static void shuffle(Fiber *const *lanes) {
  for (unsigned i = 0; i < WARP; i++) {
    auto *part = (Shuffle<T> *)lanes[i]->what;
    part->taken = part->from < WARP ? ((Shuffle<T> *)lanes[part->from]->what)->offered : part->offered;
  }
}
template <class T> static T take_from(T value, unsigned lane) {
  Shuffle<T> part = {value, value, lane};
  together(shuffle<T>, &part);
  return part.taken;
}
static unsigned lane_of_warp() { return current % WARP; }
template <class T> static T __shfl_sync(unsigned, T value, unsigned lane) { return take_from(value, lane % WARP); }
template <class T> static T __shfl_xor_sync(unsigned, T value, unsigned mask) { return take_from(value, lane_of_warp() ^ mask); }
template <class T> static T __shfl_up_sync(unsigned, T value, unsigned by) { return take_from(value, lane_of_warp() - by); }
template <class T> static T __shfl_down_sync(unsigned, T value, unsigned by) { return take_from(value, lane_of_warp() + by); }

/* What CUDA has besides C's mathematics. */

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
/* Instructions of PTX have its names. */
static void max_NaN_f32(float &result, float a, float b) { result = isnan(a) || isnan(b) ? NAN : fmaxf(a, b); }
static void min_NaN_f32(float &result, float a, float b) { result = isnan(a) || isnan(b) ? NAN : fminf(a, b); }
static void atom_relaxed_add_f32(float &before, const float *where, float value) {
  float *place = (float *)where;
  before = *place;
  *place += value;
}

/* Numbers of half precision. */

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

/* Matrix units. A register holds two numbers of half precision, the first one low. */

template <class H> static float number(uint32_t reg, unsigned which) { return H::kind::widen((uint16_t)(reg >> 16 * which)); }

/* d = a b + c, 16 rows, 8 columns, 16 deep; who holds what as PTX has it ("Matrix fragments for mma.m16n8k16"). */
struct Multiplication {
  uint32_t a[4], b[2];
  float c[4], d[4];
};
template <class H> static void multiply(Fiber *const *lanes) {
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < WARP; lane++) {
    auto *part = (Multiplication *)lanes[lane]->what;
    unsigned group = lane / 4, first = lane % 4 * 2;
    for (unsigned i = 0; i < 2; i++) {
      for (unsigned reg = 0; reg < 4; reg++) a[group + reg % 2 * 8][first + i + reg / 2 * 8] = number<H>(part->a[reg], i);
      for (unsigned reg = 0; reg < 2; reg++) b[first + i + reg * 8][group] = number<H>(part->b[reg], i);
    }
  }
  for (unsigned lane = 0; lane < WARP; lane++) {
    auto *part = (Multiplication *)lanes[lane]->what;
    for (unsigned i = 0; i < 4; i++) {
      unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = part->c[i];
      for (unsigned k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
      part->d[i] = sum;
    }
  }
}
template <class H>
static void mma(float &d0, float &d1, float &d2, float &d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                uint32_t b1, float c0, float c1, float c2, float c3) {
  Multiplication part = {{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}, {}};
  together(multiply<H>, &part);
  d0 = part.d[0], d1 = part.d[1], d2 = part.d[2], d3 = part.d[3];
}
#define mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32 mma<__half>
#define mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32 mma<__nv_bfloat16>

static uint32_t __cvta_generic_to_shared(const volatile void *place) { return (uint32_t)((const char *)place - shared_memory); }

/* Four matrices of eight by eight: each thread names a line of 16 bytes, and gets two numbers of each. */
struct Loading {
  const uint16_t *line;
  uint32_t got[4];
};
template <bool TURNED> static void load_lines(Fiber *const *lanes) {
  for (unsigned lane = 0; lane < WARP; lane++)
    for (unsigned matrix = 0; matrix < 4; matrix++) {
      uint32_t numbers[2];
      for (unsigned i = 0; i < 2; i++) {
        unsigned row = TURNED ? lane % 4 * 2 + i : lane / 4, column = TURNED ? lane / 4 : lane % 4 * 2 + i;
        numbers[i] = ((Loading *)lanes[matrix * 8 + row]->what)->line[column];
      }
      ((Loading *)lanes[lane]->what)->got[matrix] = numbers[0] | numbers[1] << 16;
    }
}
template <bool TURNED> static void ldmatrix(uint32_t &r0, uint32_t &r1, uint32_t &r2, uint32_t &r3, uint32_t address) {
  if (address % 16) fail("ldmatrix reads lines at multiples of 16 bytes");
  Loading part = {(const uint16_t *)(shared_memory + address), {}};
  together(load_lines<TURNED>, &part);
  r0 = part.got[0], r1 = part.got[1], r2 = part.got[2], r3 = part.got[3];
}
#define ldmatrix_sync_aligned_m8n8_x4_shared_cta_b16 ldmatrix<false>
#define ldmatrix_sync_aligned_m8n8_x4_trans_shared_cta_b16 ldmatrix<true>

/* The same by CUDA's own names. Who holds what of a fragment is its secret: here, a few numbers that follow each other in a row. */
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

/* f32 with ten bits behind the point, ties away from zero. */
static float __float_to_tf32(float value) {
  uint32_t bits = bits_of(value);
  return value != value ? value : float_of((bits + 0x1000) & ~0x1FFFu);
}

template <class Use, int M, int N, int K, class Kind, class Layout = void> struct fragment {
  typedef std::conditional_t<std::is_same_v<Kind, precision::tf32>, float, Kind> T;
  static const int rows = std::is_same_v<Use, matrix_b> ? K : M, columns = std::is_same_v<Use, matrix_a> ? K : N;
  static const int num_elements = rows * columns / WARP;
  static const bool by_rows = !std::is_same_v<Layout, col_major>;
  T x[num_elements];
  /* Where a number is in memory. */
  static unsigned place(int i, unsigned line, bool by_rows) {
    unsigned number = lane_of_warp() * num_elements + i, row = number / columns, column = number % columns;
    return by_rows ? row * line + column : column * line + row;
  }
};
template <class F, class T> static void fill_fragment(F &to, T value) {
  for (auto &x : to.x) x = value;
}
template <class F> static void load_matrix_sync(F &to, const typename F::T *from, unsigned line) {
  if ((uintptr_t)from % 32) fail("a fragment is read at multiples of 32 bytes");
  __syncwarp();
  for (int i = 0; i < F::num_elements; i++) to.x[i] = from[F::place(i, line, F::by_rows)];
}
template <class F> static void store_matrix_sync(float *to, const F &from, unsigned line, layout_t layout) {
  if ((uintptr_t)to % 32) fail("a fragment is written at multiples of 32 bytes");
  for (int i = 0; i < F::num_elements; i++) to[F::place(i, line, layout == mem_row_major)] = from.x[i];
  __syncwarp();
}
template <class A, class B, class C> struct Fragments {
  const A &a;
  const B &b;
  const C &c;
  C &d;
};
template <class A, class B, class C> static void multiply_fragments(Fiber *const *lanes) {
  auto part = [&](unsigned lane) { return (Fragments<A, B, C> *)lanes[lane]->what; };
  const unsigned rows = C::rows, columns = C::columns, depth = A::columns;
  float a[rows * depth], b[depth * columns];
  for (unsigned i = 0; i < rows * depth; i++) a[i] = (float)part(i / A::num_elements)->a.x[i % A::num_elements];
  for (unsigned i = 0; i < depth * columns; i++) b[i] = (float)part(i / B::num_elements)->b.x[i % B::num_elements];
  for (unsigned i = 0; i < rows * columns; i++) {
    auto *of = part(i / C::num_elements);
    float sum = of->c.x[i % C::num_elements];
    for (unsigned k = 0; k < depth; k++) sum += a[i / columns * depth + k] * b[k * columns + i % columns];
    of->d.x[i % C::num_elements] = sum;
  }
}
template <class A, class B, class C> static void mma_sync(C &d, const A &a, const B &b, const C &c) {
  Fragments<A, B, C> part = {a, b, c, d};
  together(multiply_fragments<A, B, C>, &part);
}
} // namespace nvcuda::wmma
