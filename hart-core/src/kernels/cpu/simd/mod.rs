//! Vectors of floats, and the choice of the widest that the processor has.

use super::amx::Allowed;

/// A vector of floats.
///
/// All functions are unsafe to call where the processor lacks the instructions: they are used inside [`Job::run`] only.
pub(super) trait Lanes: Copy {
    const COUNT: usize;
    /// Whether there are 32 registers and not 16.
    const MANY: bool;
    /// Whether [`Self::add_pairs`] and what follows it to [`Self::largest`] may be called: the processor multiplies pairs of bf16.
    const PAIRS: bool = false;
    /// Zeros.
    unsafe fn zero() -> Self;
    /// One number everywhere.
    unsafe fn splat(value: f32) -> Self;
    /// Reads `COUNT` numbers.
    unsafe fn load(from: *const f32) -> Self;
    /// Reads the first `count < COUNT` numbers, zeros behind.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    /// Reads `COUNT` pairs of bf16: the lower ones, and the upper ones.
    unsafe fn load_pairs(from: *const u32) -> [Self; 2];
    /// Writes `COUNT` numbers.
    unsafe fn store(self, to: *mut f32);
    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// The larger, lane by lane; `other` where one is not a number.
    unsafe fn max(self, other: Self) -> Self;
    /// `a b + self`.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// `self + a b` where each lane of a and b holds two bf16, so that two products are added.
    unsafe fn add_pairs(self, _a: Self, _b: Self) -> Self {
        unreachable!("only where there are PAIRS")
    }
    /// The two rounded to bf16, `low` in the lower half of each lane.
    unsafe fn pair(_low: Self, _high: Self) -> Self {
        unreachable!("only where there are PAIRS")
    }
    /// The same, but all of `low` before all of `high`.
    unsafe fn halves(_low: Self, _high: Self) -> Self {
        unreachable!("only where there are PAIRS")
    }
    /// The largest of all lanes.
    unsafe fn largest(self) -> f32 {
        unreachable!("only where there are PAIRS")
    }
    /// `2^n self`: n is what the lowest bits of `n` hold as a whole number.
    unsafe fn times_power(self, n: Self) -> Self;
    /// All lanes together.
    unsafe fn sum(self) -> f32;
    /// Turns a square: `COUNT` numbers of each of `COUNT` rows, `stride` apart, become the columns of rows `to_stride` apart.
    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize);
}

/// Work that is written once for vectors of any width.
pub(super) trait Job {
    /// Does the work. To be marked `#[inline(always)]`, so that it is compiled for the lanes' processor.
    ///
    /// # Safety
    ///
    /// The processor has the lanes.
    unsafe fn run<L: Lanes>(self);
}

/// Loops over slices that the compiler makes vectors of.
pub(super) trait Loop {
    /// Does the work. To be marked `#[inline(always)]`, so that it is compiled for every processor.
    fn run(self);
}

/// Added to a float below 2^22, this leaves its nearest integer in the lowest bits; taken away again, the float is whole.
pub(super) const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// A loop as a job for which the compiler chooses the vectors.
struct Vectorised<T>(T);

impl<T: Loop> Job for Vectorised<T> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        self.0.run();
    }
}

/// The instructions that a job is run with: no value names what the processor lacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level(Kind);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// The same vectors, and registers for matrices.
    #[cfg(target_arch = "x86_64")]
    Amx(Allowed),
}

impl Level {
    /// All that the processor has, the widest last.
    pub(super) fn all() -> impl DoubleEndedIterator<Item = Self> {
        let mut all = [Some(Self(Kind::Plain)), None, None, None, None];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all[1] = Some(Self(Kind::Avx2));
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                all[2] = Some(Self(Kind::Avx512));
                all[3] = is_x86_feature_detected!("avx512bf16").then_some(Self(Kind::Avx512Bf16));
                all[4] = all[3].and(Allowed::bf16()).map(|allowed| Self(Kind::Amx(allowed)));
            }
        }
        all.into_iter().flatten()
    }

    /// The widest that the processor has.
    pub(super) fn best() -> Self {
        Self::all().next_back().unwrap_or(Self(Kind::Plain))
    }

    /// Whether there are 32 registers and not 16, as [`Lanes::MANY`].
    pub(super) fn many(self) -> bool {
        match self.0 {
            Kind::Plain => Plain::MANY,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => false,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 | Kind::Avx512Bf16 | Kind::Amx(_) => true,
        }
    }

    /// As [`Lanes::PAIRS`].
    pub(super) fn pairs(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16 | Kind::Amx(_) => true,
            _ => false,
        }
    }

    /// Whether there are registers for matrices of bf16.
    pub(super) fn matrices(self) -> Option<Allowed> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx(allowed) => Some(allowed),
            _ => None,
        }
    }

    /// Runs a loop with these instructions.
    #[inline]
    pub(super) fn run_loop(self, work: impl Loop) {
        self.run(Vectorised(work));
    }

    /// Runs a job with these instructions.
    #[inline]
    pub(super) fn run(self, job: impl Job) {
        // SAFETY: a level is made in `all` only, after asking the processor.
        unsafe {
            match self.0 {
                Kind::Plain => job.run::<Plain>(),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => x86::avx2(job),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => x86::avx512(job),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512Bf16 | Kind::Amx(_) => x86::avx512_bf16(job),
            }
        }
    }
}

/// Eight numbers, for any processor.
#[derive(Clone, Copy)]
struct Plain([f32; 8]);

impl Lanes for Plain {
    const COUNT: usize = 8;
    const MANY: bool = false;

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
        // SAFETY: the caller's.
        Self(unsafe { from.cast::<[f32; 8]>().read() })
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: the caller's.
        Self(std::array::from_fn(|i| if i < count { unsafe { from.add(i).read() } } else { 0.0 }))
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const u32) -> [Self; 2] {
        // SAFETY: the caller's.
        let pairs = unsafe { from.cast::<[u32; 8]>().read_unaligned() };
        // A bf16 is the upper half of an f32.
        [Self(pairs.map(|pair| f32::from_bits(pair << 16))), Self(pairs.map(|pair| f32::from_bits(pair & 0xffff_0000)))]
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
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
    unsafe fn times_power(self, n: Self) -> Self {
        Self(std::array::from_fn(|i| f32::from_bits(self.0[i].to_bits().wrapping_add(n.0[i].to_bits() << 23))))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.0.iter().sum()
    }

    #[inline(always)]
    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..Self::COUNT {
            for j in 0..Self::COUNT {
                // SAFETY: the caller's.
                unsafe { to.add(j * to_stride + i).write(from.add(i * stride + j).read()) };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;
