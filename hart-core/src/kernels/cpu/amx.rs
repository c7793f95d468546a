//! Products of whole matrices by Intel's AMX: a register holds 16 rows of 64 bytes, and an instruction multiplies 16 rows of x by 16
//! outputs of w, 16 words deep. A word is four bytes or two bf16 that follow each other along the sum.
//!
//! Linux gives a program these registers when it asks for them. Elsewhere nobody is [`Allowed`] to use them.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use std::arch::asm;
use std::marker::PhantomData;

/// Rows of a register: of x and of the sums.
pub(super) const ROWS: usize = 16;
/// Words of a register's row: of x, or of a word of w and of the sums, the outputs.
pub(super) const WORDS: usize = 16;

/// The processor has the registers, and the program may use them: made after asking both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed(());

impl Allowed {
    /// For products of bytes.
    pub(super) fn int8() -> Option<Self> {
        Self::of(25)
    }

    /// For products of bf16.
    pub(super) fn bf16() -> Option<Self> {
        Self::of(22)
    }

    /// If the processor has what this bit of its answer says, and the vectors that make numbers of the sums.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn of(bit: u32) -> Option<Self> {
        const TILES: u32 = 24;
        const REQUEST: libc::c_long = 0x1023; // ARCH_REQ_XCOMP_PERM
        const TILE_DATA: libc::c_long = 18; // XFEATURE_XTILEDATA
        static FEATURES: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
        let features = *FEATURES.get_or_init(|| {
            let vectors = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vl");
            let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
            if !vectors || features >> TILES & 1 == 0 {
                return 0;
            }
            // SAFETY: it changes only what the program's threads may use; where that can't be, it says so.
            let refused = unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) };
            if refused == 0 { features } else { 0 }
        });
        (features >> bit & 1 == 1).then_some(Self(()))
    }

    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    fn of(_: u32) -> Option<Self> {
        None
    }
}

/// What the registers hold: all of them 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The registers are ready on this thread, while it is held.
pub(super) struct Ready(PhantomData<*const ()>);

impl Ready {
    pub(super) fn new(_: Allowed) -> Self {
        // SAFETY: the processor has the registers, and the program may use them.
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly, preserves_flags))
        };
        Self(PhantomData)
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        unsafe {
            asm!("tilerelease", options(nostack, nomem, preserves_flags))
        };
    }
}

/// Two blocks of 16 rows of x, and one or two of 16 outputs of w. All distances are in bytes.
pub(super) struct Squares {
    /// First words of the two blocks of rows.
    pub(super) x: [*const u8; 2],
    /// From one row to the next.
    pub(super) x_row: usize,
    /// From 16 words to the next.
    pub(super) x_step: usize,
    /// First words of the outputs; the second is of no use where there is one block of them.
    pub(super) w: [*const u8; 2],
    /// From one word to the next.
    pub(super) w_row: usize,
    /// From 16 words to the next.
    pub(super) w_step: usize,
    /// 16 words each, at least once.
    pub(super) steps: usize,
    /// First rows of the sums of the two blocks of rows, of 16 or 32 outputs.
    pub(super) y: [*mut u8; 2],
    /// From one row to the next.
    pub(super) y_row: usize,
}

/// What words hold.
pub(super) trait Kind {
    /// A sum.
    type Number: Copy + Default;

    /// `y = x w` with one block of outputs.
    ///
    /// # Safety
    ///
    /// The registers are ready, and all that is named is there.
    unsafe fn one(squares: Squares);

    /// `y = x w` with two.
    ///
    /// # Safety
    ///
    /// As [`Self::one`].
    unsafe fn two(squares: Squares);

    /// `y += x w` with two.
    ///
    /// # Safety
    ///
    /// As [`Self::one`].
    unsafe fn add_two(squares: Squares);

    /// `y = x w` with two, whose next words come near while it multiplies: for long sums of what lies far, where all words of a register
    /// follow each other.
    ///
    /// # Safety
    ///
    /// As [`Self::one`].
    unsafe fn two_far(squares: Squares);
}

/// Four bytes with a sign.
pub(super) struct Int8;
/// Two bf16.
pub(super) struct Bf16;

/// Asks for the words of a register that lie one step on.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! next {
    ($first:literal, $step:literal) => {
        next!($first, $step, 0 64 128 192 256 320 384 448 512 576 640 704 768 832 896 960)
    };
    ($first:literal, $step:literal, $($row:literal)*) => {
        concat!($("prefetcht0 [{", $first, "} + {", $step, "} + ", $row, "]\n"),*)
    };
}

/// A function of [`Kind`]: what fills the registers of the sums, what a step of 16 words does, and what empties them. The sums are in tmm0
/// to tmm3, those of the second block of rows in the last two.
macro_rules! form {
    ($name:ident, [$($begin:expr),*], [$($step:expr),*], [$($end:expr),*]) => {
        #[inline(always)]
        unsafe fn $name(squares: Squares) {
            let Squares { x, x_row, x_step, w, w_row, w_step, steps, y, y_row } = squares;
            // SAFETY: the caller's. Nothing but the registers and y is changed; asking for words that are not there does nothing.
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            unsafe {
                asm!(
                    $($begin,)*
                    "2:",
                    $($step,)*
                    "add {x0}, {x_step}",
                    "add {x1}, {x_step}",
                    "add {w0}, {w_step}",
                    "add {w1}, {w_step}",
                    "dec {steps}",
                    "jnz 2b",
                    $($end,)*
                    x0 = inout(reg) x[0] => _,
                    x1 = inout(reg) x[1] => _,
                    x_row = in(reg) x_row,
                    x_step = in(reg) x_step,
                    w0 = inout(reg) w[0] => _,
                    w1 = inout(reg) w[1] => _,
                    w_row = in(reg) w_row,
                    w_step = in(reg) w_step,
                    steps = inout(reg) steps => _,
                    y0 = in(reg) y[0],
                    y1 = in(reg) y[1],
                    y_row = in(reg) y_row,
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
            unreachable!("nobody is allowed to: {:?}", (x, x_row, x_step, w, w_row, w_step, steps, y, y_row))
        }
    };
}

/// A [`Kind`] by its instruction.
macro_rules! kind {
    ($kind:ty, $number:ty, $multiply:literal) => {
        impl Kind for $kind {
            type Number = $number;

            form!(
                one,
                ["tilezero tmm0", "tilezero tmm2"],
                [
                    "tileloadd tmm4, [{x0} + {x_row}]",
                    "tileloadd tmm6, [{w0} + {w_row}]",
                    concat!($multiply, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm5, [{x1} + {x_row}]",
                    concat!($multiply, " tmm2, tmm5, tmm6")
                ],
                ["tilestored [{y0} + {y_row}], tmm0", "tilestored [{y1} + {y_row}], tmm2"]
            );

            kind!(two, $multiply, "", ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"]);

            kind!(
                add_two,
                $multiply,
                "",
                [
                    "tileloadd tmm0, [{y0} + {y_row}]",
                    "tileloadd tmm1, [{y0} + {y_row} + 64]",
                    "tileloadd tmm2, [{y1} + {y_row}]",
                    "tileloadd tmm3, [{y1} + {y_row} + 64]"
                ]
            );

            kind!(
                two_far,
                $multiply,
                concat!(next!("x0", "x_step"), next!("w0", "w_step"), next!("w1", "w_step"), next!("x1", "x_step")),
                ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"]
            );
        }
    };
    ($name:ident, $multiply:literal, $next:expr, $begin:tt) => {
        form!(
            $name,
            $begin,
            [
                "tileloadd tmm4, [{x0} + {x_row}]",
                "tileloadd tmm6, [{w0} + {w_row}]",
                concat!($multiply, " tmm0, tmm4, tmm6"),
                "tileloadd tmm7, [{w1} + {w_row}]",
                concat!($multiply, " tmm1, tmm4, tmm7"),
                "tileloadd tmm5, [{x1} + {x_row}]",
                concat!($multiply, " tmm2, tmm5, tmm6"),
                concat!($multiply, " tmm3, tmm5, tmm7"),
                $next
            ],
            [
                "tilestored [{y0} + {y_row}], tmm0",
                "tilestored [{y0} + {y_row} + 64], tmm1",
                "tilestored [{y1} + {y_row}], tmm2",
                "tilestored [{y1} + {y_row} + 64], tmm3"
            ]
        );
    };
}

kind!(Int8, i32, "tdpbssd");
kind!(Bf16, f32, "tdpbf16ps");
