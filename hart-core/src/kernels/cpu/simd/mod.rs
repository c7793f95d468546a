//! Vectors of f32 lanes, and the choice of the best instruction set that the processor has.

use super::amx::AmxToken;

/// A vector of f32 lanes.
///
/// # Safety
///
/// Every function requires the processor to have the vector's instructions. Call them only inside [`SimdKernel::run`], whose caller
/// guarantees that. Functions that take a pointer also require [`Self::LANES`] values behind it, at any alignment.
pub(super) trait SimdF32: Copy {
    /// Number of lanes.
    const LANES: usize;
    /// `true` if there are 32 vector registers, `false` if there are 16.
    const HAS_32_REGISTERS: bool;
    /// `true` if the processor has AVX512_BF16 or ARM's FEAT_BF16, which the functions marked "only with `HAS_BF16`" need.
    const HAS_BF16: bool = false;
    /// Returns zeros.
    unsafe fn zero() -> Self;
    /// Returns `value` in every lane.
    unsafe fn splat(value: f32) -> Self;
    /// Loads `LANES` values.
    unsafe fn load(from: *const f32) -> Self;
    /// Loads the first `count < LANES` values; the other lanes are zero.
    unsafe fn load_partial(from: *const f32, count: usize) -> Self;
    /// Loads `LANES` pairs of bf16 and widens them: the lower halves of the dwords, and the upper halves.
    unsafe fn load_bf16_pairs(from: *const u32) -> [Self; 2];
    /// Loads `LANES` integers and converts them.
    unsafe fn load_int8(from: *const i8) -> Self;
    /// Stores `LANES` values.
    unsafe fn store(self, to: *mut f32);
    /// Returns `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// Returns the larger value of each lane. If `other` is NaN, so is the result; if only `self` is, the result may be `other`.
    unsafe fn max(self, other: Self) -> Self;
    /// Returns `self + a * b`, fused where the processor has FMA.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// Returns `self + a * b`, with `a` in every lane of a vector.
    #[inline(always)]
    unsafe fn add_scaled(self, a: f32, b: Self) -> Self {
        // SAFETY: the caller upholds the contract of this function.
        unsafe { self.add_product(Self::splat(a), b) }
    }
    /// Returns `self` plus the dot products of the two bf16 in `a` and those in each lane of `b` (`vdpbf16ps`, `bfdot`). Only with
    /// `HAS_BF16`.
    unsafe fn add_bf16_dot(self, _a: f32, _b: Self) -> Self {
        unreachable!("only with HAS_BF16")
    }
    /// Rounds two vectors to bf16 and interleaves them: lane i holds `low[i]` in its lower half and `high[i]` in its upper half. Ties
    /// round away from zero. Only with `HAS_BF16`.
    unsafe fn interleave_bf16(_low: Self, _high: Self) -> Self {
        unreachable!("only with HAS_BF16")
    }
    /// Rounds two vectors to bf16 and concatenates them, all of `low` first (`vcvtne2ps2bf16`). Only with AMX.
    unsafe fn concat_bf16(_low: Self, _high: Self) -> Self {
        unreachable!("only with AMX")
    }
    /// Returns the largest lane. Only with AMX.
    unsafe fn reduce_max(self) -> f32 {
        unreachable!("only with AMX")
    }
    /// Returns `self * 2^n`, where n is the integer in the lowest 9 bits of each lane of `n` (see [`MAGIC_BIAS`]).
    unsafe fn ldexp(self, n: Self) -> Self;
    /// Returns the sum of all lanes: the upper half is added to the lower one until one lane is left.
    unsafe fn reduce_sum(self) -> f32;
    /// Transposes a matrix of `LANES` by `LANES` values. Its rows are `stride` apart, those of the result `to_stride`.
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize);
}

/// A kernel in explicit vectors, written once for all instruction sets.
pub(super) trait SimdKernel {
    /// Runs the kernel. Implementations need `#[inline(always)]`, which compiles them for the instruction set of `S`.
    ///
    /// # Safety
    ///
    /// The processor has the instructions of `S`.
    unsafe fn run<S: SimdF32>(self);
}

/// A kernel in plain loops over slices, which the compiler vectorises for each instruction set.
pub(super) trait LoopKernel {
    /// Runs the kernel. Implementations need `#[inline(always)]`, which compiles them for each instruction set.
    fn run(self);
}

/// Rounds a float whose absolute value is below 2^22: adding it leaves the nearest integer in the lowest bits of the sum, and
/// subtracting it again leaves that integer as a float. 1.5 * 2^23.
pub(super) const MAGIC_BIAS: f32 = 12_582_912.0;

/// Runs a [`LoopKernel`] as a [`SimdKernel`]: the instruction set applies, the vector type is unused.
struct Autovectorized<T>(T);

impl<T: LoopKernel> SimdKernel for Autovectorized<T> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        self.0.run();
    }
}

/// An instruction set for kernels. A value proves that the processor has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SimdLevel(Variant);

#[derive(Clone, Copy, Debug)]
enum Variant {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// The vectors of [`Self::Avx512Bf16`], and AMX tiles of bf16.
    #[cfg(target_arch = "x86_64")]
    Amx(AmxToken),
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonBf16,
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Simd128,
}

impl SimdLevel {
    /// Returns all levels that the processor has, the best one last.
    pub(super) fn all() -> impl DoubleEndedIterator<Item = Self> {
        #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(unused_mut))]
        let mut all = [Some(Self(Variant::Plain)), None, None, None, None];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all[1] = Some(Self(Variant::Avx2));
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                all[2] = Some(Self(Variant::Avx512));
                all[3] = is_x86_feature_detected!("avx512bf16").then_some(Self(Variant::Avx512Bf16));
                all[4] = all[3].and(AmxToken::bf16()).map(|token| Self(Variant::Amx(token)));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            all[1] = Some(Self(Variant::Neon));
            all[2] = std::arch::is_aarch64_feature_detected!("bf16").then_some(Self(Variant::NeonBf16));
        }
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        {
            all[1] = Some(Self(Variant::Simd128));
        }
        all.into_iter().flatten()
    }

    /// Returns the best level that the processor has.
    pub(super) fn best() -> Self {
        Self::all().next_back().unwrap_or(Self(Variant::Plain))
    }

    /// Returns [`SimdF32::HAS_32_REGISTERS`] of the level's vectors.
    pub(super) fn has_32_registers(self) -> bool {
        match self.0 {
            Variant::Plain => Plain::HAS_32_REGISTERS,
            #[cfg(target_arch = "x86_64")]
            Variant::Avx2 => false,
            #[cfg(target_arch = "x86_64")]
            Variant::Avx512 | Variant::Avx512Bf16 | Variant::Amx(_) => true,
            #[cfg(target_arch = "aarch64")]
            Variant::Neon | Variant::NeonBf16 => false,
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Variant::Simd128 => false,
        }
    }

    /// Returns [`SimdF32::HAS_BF16`] of the level's vectors.
    pub(super) fn has_bf16(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Variant::Avx512Bf16 | Variant::Amx(_) => true,
            #[cfg(target_arch = "aarch64")]
            Variant::NeonBf16 => true,
            _ => false,
        }
    }

    /// Returns the permission to use AMX tiles of bf16, if the level includes them.
    pub(super) fn amx(self) -> Option<AmxToken> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Variant::Amx(token) => Some(token),
            _ => None,
        }
    }

    /// Runs a [`LoopKernel`] compiled for this instruction set.
    #[inline]
    pub(super) fn run_loop(self, kernel: impl LoopKernel) {
        self.run(Autovectorized(kernel));
    }

    /// Runs a [`SimdKernel`] with this instruction set.
    #[inline]
    pub(super) fn run(self, kernel: impl SimdKernel) {
        // SAFETY: only `all` creates levels, after detecting the processor's features.
        unsafe {
            match self.0 {
                Variant::Plain => kernel.run::<Plain>(),
                #[cfg(target_arch = "x86_64")]
                Variant::Avx2 => x86::avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Variant::Avx512 => x86::avx512(kernel),
                #[cfg(target_arch = "x86_64")]
                Variant::Avx512Bf16 | Variant::Amx(_) => x86::avx512_bf16(kernel),
                #[cfg(target_arch = "aarch64")]
                Variant::Neon => arm::neon(kernel),
                #[cfg(target_arch = "aarch64")]
                Variant::NeonBf16 => arm::neon_bf16(kernel),
                #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
                Variant::Simd128 => kernel.run::<wasm::Simd128>(),
            }
        }
    }
}

/// Eight lanes in portable Rust.
#[derive(Clone, Copy)]
struct Plain([f32; 8]);

impl SimdF32 for Plain {
    const LANES: usize = 8;
    const HAS_32_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller guarantees the values behind the pointer.
        Self(unsafe { from.cast::<[f32; 8]>().read() })
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const f32, count: usize) -> Self {
        // SAFETY: the caller guarantees the values behind the pointer.
        Self(std::array::from_fn(|i| if i < count { unsafe { from.add(i).read() } } else { 0.0 }))
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u32) -> [Self; 2] {
        // SAFETY: the caller guarantees the values behind the pointer.
        let pairs = unsafe { from.cast::<[u32; 8]>().read_unaligned() };
        // A bf16 is the upper half of the f32 of the same value.
        [Self(pairs.map(|pair| f32::from_bits(pair << 16))), Self(pairs.map(|pair| f32::from_bits(pair & 0xffff_0000)))]
    }

    #[inline(always)]
    unsafe fn load_int8(from: *const i8) -> Self {
        // SAFETY: the caller guarantees the values behind the pointer.
        Self(unsafe { from.cast::<[i8; 8]>().read() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees the values behind the pointer.
        unsafe { to.cast::<[f32; 8]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }

    #[inline(always)]
    unsafe fn ldexp(self, n: Self) -> Self {
        Self(std::array::from_fn(|i| f32::from_bits(self.0[i].to_bits().wrapping_add(n.0[i].to_bits() << 23))))
    }

    #[inline(always)]
    unsafe fn reduce_sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..Self::LANES {
            for j in 0..Self::LANES {
                // SAFETY: the caller guarantees the values behind the pointer.
                unsafe { to.add(j * to_stride + i).write(from.add(i * stride + j).read()) };
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;
#[cfg(target_arch = "x86_64")]
mod x86;
