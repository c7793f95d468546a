//! Matrix products by Intel AMX.
//!
//! A tile register holds 16 rows of 64 bytes. A `tdp*` instruction computes `C += A B` for a 16x16 tile of sums C. Its operands are 16
//! dwords deep, where a dword holds four int8 or two bf16 that follow each other along k (the VNNI layout): a row of A is 16 dwords of
//! one row of the left operand, and row i of B is dword i of 16 columns of the right operand.
//!
//! Linux enables the registers for a process on request. Other systems never create an [`AmxToken`].

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use std::arch::asm;
use std::marker::PhantomData;

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// 32-bit elements in a row of a tile: dwords along k in A, columns in B and C.
pub(super) const TILE_DWORDS: usize = 16;

/// Permission to use AMX: a value proves that the processor has the tile registers and that the kernel enabled them for this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct AmxToken(());

impl AmxToken {
    /// Returns a token if the processor has AMX-INT8.
    pub(super) fn int8() -> Option<Self> {
        Self::with_feature(25)
    }

    /// Returns a token if the processor has AMX-BF16.
    pub(super) fn bf16() -> Option<Self> {
        Self::with_feature(22)
    }

    /// Returns a token if bit `bit` of CPUID.(EAX=7, ECX=0):EDX is set, and the processor has AVX-512, which the epilogues use.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn with_feature(bit: u32) -> Option<Self> {
        const AMX_TILE: u32 = 24;
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        static FEATURES: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
        let features = *FEATURES.get_or_init(|| {
            let vectors = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vl");
            let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
            if !vectors || features >> AMX_TILE & 1 == 0 {
                return 0;
            }
            // SAFETY: the call only extends the state that the process's threads may use, and reports failure by its result.
            let refused = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
            if refused == 0 { features } else { 0 }
        });
        (features >> bit & 1 == 1).then_some(Self(()))
    }

    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    fn with_feature(_: u32) -> Option<Self> {
        None
    }
}

/// The 64-byte operand of `ldtilecfg`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes in a row of each tile register.
    row_bytes: [u16; 16],
    /// Rows of each tile register.
    rows: [u8; 16],
}

/// Palette 1, with all eight tile registers at full size.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
static TILE_CONFIG: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Keeps the tile registers of this thread configured. Dropping it releases them.
pub(super) struct TileGuard(PhantomData<*const ()>);

impl TileGuard {
    /// Loads the tile configuration.
    pub(super) fn new(_: AmxToken) -> Self {
        // SAFETY: the token proves that the process may use the tile registers.
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const TILE_CONFIG, options(nostack, readonly, preserves_flags))
        };
        Self(PhantomData)
    }
}

impl Drop for TileGuard {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        unsafe {
            asm!("tilerelease", options(nostack, nomem, preserves_flags))
        };
    }
}

/// Operands of a register block `C = A B`: two tiles of rows by one or two tiles of columns. All strides are in bytes.
pub(super) struct TileOperands {
    /// Starts of the two tiles of A at k = 0.
    pub(super) a: [*const u8; 2],
    /// Distance from one row of A to the next.
    pub(super) a_row_stride: usize,
    /// Distance from one tile of A to the next along k.
    pub(super) a_tile_stride: usize,
    /// Starts of the two tiles of B at k = 0. The second one is not read by [`TileProduct::product_32x16`].
    pub(super) b: [*const u8; 2],
    /// Distance from one row of B, which is a dword along k, to the next.
    pub(super) b_row_stride: usize,
    /// Distance from one tile of B to the next along k.
    pub(super) b_tile_stride: usize,
    /// Number of tiles along k, at least one.
    pub(super) k_tiles: usize,
    /// Starts of the two tiles of rows of C. The second tile of columns follows 64 bytes later in each row.
    pub(super) c: [*mut u8; 2],
    /// Distance from one row of C to the next.
    pub(super) c_row_stride: usize,
}

/// Register blocks by one of the `tdp*` instructions.
pub(super) trait TileProduct {
    /// An element of C.
    type Accumulator: Copy + Default;

    /// Computes `C = A B` with one tile of columns.
    ///
    /// # Safety
    ///
    /// A [`TileGuard`] is alive on this thread, and all operands are in bounds.
    unsafe fn product_32x16(operands: TileOperands);

    /// Computes `C = A B` with two tiles of columns.
    ///
    /// # Safety
    ///
    /// Same as [`Self::product_32x16`].
    unsafe fn product_32x32(operands: TileOperands);

    /// Computes `C += A B` with two tiles of columns.
    ///
    /// # Safety
    ///
    /// Same as [`Self::product_32x16`].
    unsafe fn accumulate_32x32(operands: TileOperands);

    /// Computes `C = A B` with two tiles of columns, and prefetches the next tiles along k. It suits a long k whose operands are not in
    /// the first-level cache. Tiles must be contiguous in memory.
    ///
    /// # Safety
    ///
    /// Same as [`Self::product_32x16`].
    unsafe fn product_32x32_prefetch(operands: TileOperands);
}

/// Signed int8 by signed int8, sums in i32.
pub(super) struct Tdpbssd;
/// bf16 by bf16, sums in f32.
pub(super) struct Tdpbf16ps;

/// Prefetches the 16 cache lines of the next tile along k.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! prefetch_tile {
    ($start:literal, $stride:literal) => {
        prefetch_tile!($start, $stride, 0 64 128 192 256 320 384 448 512 576 640 704 768 832 896 960)
    };
    ($start:literal, $stride:literal, $($row:literal)*) => {
        concat!($("prefetcht0 [{", $start, "} + {", $stride, "} + ", $row, "]\n"),*)
    };
}

/// Defines a micro-kernel: the instructions before the k-loop, those of its body, and those after it. C is in tmm0 to tmm3, its second
/// tile of rows in tmm2 and tmm3; A is in tmm4 and tmm5, B in tmm6 and tmm7.
macro_rules! micro_kernel {
    ($name:ident, [$($prologue:expr),*], [$($body:expr),*], [$($epilogue:expr),*]) => {
        #[inline(always)]
        unsafe fn $name(operands: TileOperands) {
            let TileOperands { a, a_row_stride, a_tile_stride, b, b_row_stride, b_tile_stride, k_tiles, c, c_row_stride } = operands;
            // SAFETY: the caller upholds the contract of this function. Only tile registers and C are written; prefetching never
            // faults.
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            unsafe {
                asm!(
                    $($prologue,)*
                    "2:",
                    $($body,)*
                    "add {a0}, {a_step}",
                    "add {a1}, {a_step}",
                    "add {b0}, {b_step}",
                    "add {b1}, {b_step}",
                    "dec {k_tiles}",
                    "jnz 2b",
                    $($epilogue,)*
                    a0 = inout(reg) a[0] => _,
                    a1 = inout(reg) a[1] => _,
                    a_row = in(reg) a_row_stride,
                    a_step = in(reg) a_tile_stride,
                    b0 = inout(reg) b[0] => _,
                    b1 = inout(reg) b[1] => _,
                    b_row = in(reg) b_row_stride,
                    b_step = in(reg) b_tile_stride,
                    k_tiles = inout(reg) k_tiles => _,
                    c0 = in(reg) c[0],
                    c1 = in(reg) c[1],
                    c_row = in(reg) c_row_stride,
                    out("tmm0") _,
                    out("tmm1") _,
                    out("tmm2") _,
                    out("tmm3") _,
                    out("tmm4") _,
                    out("tmm5") _,
                    out("tmm6") _,
                    out("tmm7") _,
                    options(nostack)
                );
            }
            #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
            unreachable!(
                "AMX is not available on this target: {:?}",
                (a, a_row_stride, a_tile_stride, b, b_row_stride, b_tile_stride, k_tiles, c, c_row_stride)
            )
        }
    };
}

/// Implements [`TileProduct`] by an instruction.
macro_rules! tile_product {
    ($type:ty, $accumulator:ty, $tdp:literal) => {
        impl TileProduct for $type {
            type Accumulator = $accumulator;

            micro_kernel!(
                product_32x16,
                ["tilezero tmm0", "tilezero tmm2"],
                [
                    "tileloadd tmm4, [{a0} + {a_row}]",
                    "tileloadd tmm6, [{b0} + {b_row}]",
                    concat!($tdp, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm5, [{a1} + {a_row}]",
                    concat!($tdp, " tmm2, tmm5, tmm6")
                ],
                ["tilestored [{c0} + {c_row}], tmm0", "tilestored [{c1} + {c_row}], tmm2"]
            );

            tile_product!(product_32x32, $tdp, "", ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"]);

            tile_product!(
                accumulate_32x32,
                $tdp,
                "",
                [
                    "tileloadd tmm0, [{c0} + {c_row}]",
                    "tileloadd tmm1, [{c0} + {c_row} + 64]",
                    "tileloadd tmm2, [{c1} + {c_row}]",
                    "tileloadd tmm3, [{c1} + {c_row} + 64]"
                ]
            );

            tile_product!(
                product_32x32_prefetch,
                $tdp,
                concat!(
                    prefetch_tile!("a0", "a_step"),
                    prefetch_tile!("b0", "b_step"),
                    prefetch_tile!("b1", "b_step"),
                    prefetch_tile!("a1", "a_step")
                ),
                ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"]
            );
        }
    };
    ($name:ident, $tdp:literal, $prefetch:expr, $prologue:tt) => {
        micro_kernel!(
            $name,
            $prologue,
            [
                "tileloadd tmm4, [{a0} + {a_row}]",
                "tileloadd tmm6, [{b0} + {b_row}]",
                concat!($tdp, " tmm0, tmm4, tmm6"),
                "tileloadd tmm7, [{b1} + {b_row}]",
                concat!($tdp, " tmm1, tmm4, tmm7"),
                "tileloadd tmm5, [{a1} + {a_row}]",
                concat!($tdp, " tmm2, tmm5, tmm6"),
                concat!($tdp, " tmm3, tmm5, tmm7"),
                $prefetch
            ],
            [
                "tilestored [{c0} + {c_row}], tmm0",
                "tilestored [{c0} + {c_row} + 64], tmm1",
                "tilestored [{c1} + {c_row}], tmm2",
                "tilestored [{c1} + {c_row} + 64], tmm3"
            ]
        );
    };
}

tile_product!(Tdpbssd, i32, "tdpbssd");
tile_product!(Tdpbf16ps, f32, "tdpbf16ps");
