//! Micro-kernel operations for int8 and bf16 in the instruction sets of x86-64.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::epilogue::Epilogue;
use super::microkernel::{CacheLine, MacroBlock, MicroKernelOps, macro_kernel};
use super::packing::NR;

/// `vpdpbusd` on 512 bits: unsigned int8 of x by signed int8 of w.
pub(super) struct Avx512Vnni;

// SAFETY of all functions: used only inside `avx512_vnni`, whose caller guarantees the processor's features.
impl MicroKernelOps for Avx512Vnni {
    const MR: usize = 8;
    const PANELS: usize = 3;
    type Accumulator = i32;
    type AccVector = __m512i;
    type WVector = __m512i;
    type XVector = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load_w(from: *const u8) -> __m512i {
        // SAFETY: see above, and the caller guarantees the data behind the pointer.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_x(from: *const u32) -> __m512i {
        // SAFETY: see above, and the caller guarantees the data behind the pointer.
        unsafe { _mm512_set1_epi32(from.read() as i32) }
    }

    #[inline(always)]
    unsafe fn accumulate(accumulators: __m512i, x: __m512i, w: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(accumulators, x, w) }
    }

    #[inline(always)]
    unsafe fn to_array(accumulators: __m512i) -> [i32; NR] {
        // SAFETY: both types have the same size, and any bits are valid.
        unsafe { std::mem::transmute(accumulators) }
    }
}

/// Rows of a panel of x for 256-bit vectors.
pub(super) const YMM_MR: usize = 6;

/// A dot product of dwords on 256 bits.
trait YmmDot {
    /// Adds to each of eight accumulators the dot product of its dwords of x and w.
    ///
    /// # Safety
    ///
    /// The processor has the instructions.
    unsafe fn accumulate(accumulators: __m256i, x: __m256i, w: __m256i) -> __m256i;
}

/// `vpdpbusd` on 256 bits, in the encoding of AVX-VNNI if `VEX`, otherwise in that of AVX512-VNNI.
struct Vnni<const VEX: bool>;

impl<const VEX: bool> YmmDot for Vnni<VEX> {
    #[inline(always)]
    unsafe fn accumulate(accumulators: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: the caller upholds the contract of this function.
        unsafe { if VEX { _mm256_dpbusd_avx_epi32(accumulators, x, w) } else { _mm256_dpbusd_epi32(accumulators, x, w) } }
    }
}

/// `vpmaddwd` on int8 that were widened to 16 bits. `vpmaddubsw` would multiply int8, but saturates.
struct Madd;

impl YmmDot for Madd {
    #[inline(always)]
    unsafe fn accumulate(accumulators: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: the caller upholds the contract of this function.
        unsafe { _mm256_add_epi32(accumulators, _mm256_madd_epi16(x, w)) }
    }
}

/// Two 256-bit vectors for the 16 outputs of a panel.
struct Ymm<D>(PhantomData<D>);

// SAFETY of all functions: used only inside `avx2`, `avx_vnni` and `avx512_vnni256`, whose callers guarantee the processor's features.
impl<D: YmmDot> MicroKernelOps for Ymm<D> {
    const MR: usize = YMM_MR;
    const PANELS: usize = 1;
    type Accumulator = i32;
    type AccVector = [__m256i; 2];
    type WVector = [__m256i; 2];
    type XVector = __m256i;

    #[inline(always)]
    unsafe fn zero() -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn load_w(from: *const u8) -> [__m256i; 2] {
        // SAFETY: see above, and the caller guarantees the data behind the pointer.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn load_x(from: *const u32) -> __m256i {
        // SAFETY: see above, and the caller guarantees the data behind the pointer.
        unsafe { _mm256_set1_epi32(from.read() as i32) }
    }

    #[inline(always)]
    unsafe fn accumulate(accumulators: [__m256i; 2], x: __m256i, w: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe { [D::accumulate(accumulators[0], x, w[0]), D::accumulate(accumulators[1], x, w[1])] }
    }

    #[inline(always)]
    unsafe fn to_array(accumulators: [__m256i; 2]) -> [i32; NR] {
        // SAFETY: both types have the same size, and any bits are valid.
        unsafe { std::mem::transmute(accumulators) }
    }
}

/// Widens panels of w from int8 to int16: each cache line becomes one of its even inputs and one of its odd inputs.
///
/// # Safety
///
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn widen_int8(w: &[u8], widened: &mut [CacheLine]) {
    assert!(w.len() >= widened.len() / 2 * size_of::<CacheLine>(), "two widened lines for each line");
    for line in 0..widened.len() / 2 {
        for half in 0..2 {
            // SAFETY: w has this many lines of two halves, as checked above, and `widened` twice as many lines.
            unsafe {
                let bytes = _mm256_loadu_si256(w.as_ptr().cast::<__m256i>().add(2 * line + half));
                let to = widened.as_mut_ptr().cast::<__m256i>().add(4 * line + half);
                _mm256_store_si256(to, _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes)));
                _mm256_store_si256(to.add(2), _mm256_srai_epi16::<8>(bytes));
            }
        }
    }
}

/// `vdpbf16ps` on 512 bits.
pub(super) struct Avx512Bf16;

// SAFETY of all functions: used only inside `avx512_bf16`, whose caller guarantees the processor's features.
impl MicroKernelOps for Avx512Bf16 {
    const MR: usize = 8;
    const PANELS: usize = 3;
    type Accumulator = f32;
    type AccVector = __m512;
    type WVector = __m512i;
    type XVector = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load_w(from: *const u8) -> __m512i {
        // SAFETY: see above, and the caller guarantees the data behind the pointer.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_x(from: *const u32) -> __m512i {
        // SAFETY: see above, and the caller guarantees the data behind the pointer.
        unsafe { _mm512_set1_epi32(from.read() as i32) }
    }

    #[inline(always)]
    unsafe fn accumulate(accumulators: __m512, x: __m512i, w: __m512i) -> __m512 {
        // SAFETY: see above; both vector types are 512 bits wide.
        unsafe {
            _mm512_dpbf16_ps(accumulators, std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(w))
        }
    }

    #[inline(always)]
    unsafe fn to_array(accumulators: __m512) -> [f32; NR] {
        // SAFETY: both types have the same size, and any bits are valid.
        unsafe { std::mem::transmute(accumulators) }
    }
}

/// Defines a [`macro_kernel`] compiled for an instruction set.
macro_rules! macro_kernel_for {
    ($name:ident, $ops:ty, $accumulator:ty, $features:literal) => {
        /// Multiplies a block.
        ///
        /// # Safety
        ///
        /// The processor has the features. Otherwise the same as [`macro_kernel`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(block: &MacroBlock<'_, impl Epilogue<$accumulator>>) {
            // SAFETY: the caller upholds the contract of this function.
            unsafe { macro_kernel::<$ops, _>(block) }
        }
    };
}

macro_kernel_for!(avx2, Ymm<Madd>, i32, "avx2");
macro_kernel_for!(avx_vnni, Ymm<Vnni<true>>, i32, "avx2,avxvnni");
// With VL, the compiler uses all 32 registers for 256-bit vectors too.
macro_kernel_for!(avx512_vnni256, Ymm<Vnni<false>>, i32, "avx2,avx512f,avx512vl,avx512vnni");
macro_kernel_for!(avx512_vnni, Avx512Vnni, i32, "avx512f,avx512vl,avx512vnni");
macro_kernel_for!(avx512_bf16, Avx512Bf16, f32, "avx512f,avx512vl,avx512bf16");

/// Widens f16 with `vcvtph2ps`, if the processor has it. The crate `half` calls a function for every eight values, and takes three times
/// as long.
///
/// # Panics
///
/// If the lengths differ.
pub(super) fn widen_f16(from: &[f16], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "equal lengths");
    if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has both features.
        unsafe { widen_f16c(from, to) }
    } else {
        from.convert_to_f32_slice(to);
    }
}

#[target_feature(enable = "avx,f16c")]
fn widen_f16c(from: &[f16], to: &mut [f32]) {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    for (from, to) in from.iter().zip(to) {
        // SAFETY: both arrays have eight values.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()))) };
    }
    to_rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to = from.to_f32());
}
