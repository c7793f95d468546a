//! The micro-kernel: rows times a panel of weights, `y[m][n] = sum over k of x[m][k] * w[k][n]`.

use super::super::simd::{SimdF32, SimdKernel};
use super::{ALIGN, CHUNK};

/// An element of a product's operands, which has the size of f32.
pub(super) trait Operand: Copy {
    /// Returns `sums` plus the products of the element in `x` and those in the lanes of `w`.
    ///
    /// # Safety
    ///
    /// The processor has the instructions of `S`. For pairs of bf16, it has [`SimdF32::HAS_BF16`].
    unsafe fn add_products<S: SimdF32>(sums: S, x: f32, w: S) -> S;
}

impl Operand for f32 {
    #[inline(always)]
    unsafe fn add_products<S: SimdF32>(sums: S, x: f32, w: S) -> S {
        // SAFETY: the caller's guarantee.
        unsafe { sums.add_scaled(x, w) }
    }
}

/// Operands and output of one product.
pub(super) struct Product<'a, N> {
    /// Rows of x, `stride` apart.
    pub(super) x: &'a [N],
    pub(super) stride: usize,
    pub(super) rows: usize,
    /// `[depth][columns]`.
    pub(super) panel: &'a [N],
    /// Number of elements along k.
    pub(super) depth: usize,
    /// A multiple of [`ALIGN`], at most [`CHUNK`].
    pub(super) columns: usize,
    /// `[rows][columns]`.
    pub(super) y: &'a mut [f32],
}

impl<N> Product<'_, N> {
    /// Asserts that all lengths fit together.
    #[inline(always)]
    pub(super) fn check(&self) {
        assert!(self.rows == 0 || self.x.len() >= (self.rows - 1) * self.stride + self.depth, "x holds all rows");
        assert!(
            self.panel.len() >= self.depth * self.columns && self.y.len() >= self.rows * self.columns,
            "panel and y hold all columns"
        );
        assert!(self.columns.is_multiple_of(ALIGN) && self.columns <= CHUNK, "whole vectors");
    }
}

impl<N: Operand> SimdKernel for Product<'_, N> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(mut self) {
        self.check();
        let vectors = self.columns / S::LANES;
        // SAFETY: the caller guarantees the instructions; `check` asserts that all rows and columns exist.
        unsafe {
            match (S::HAS_32_REGISTERS, vectors) {
                (true, 5) => self.tiles::<S, 5, 5>(),
                (true, 4) => self.tiles::<S, 6, 4>(),
                (true, 3) => self.tiles::<S, 8, 3>(),
                (true, 2) => self.tiles::<S, 8, 2>(),
                (true, _) => self.tiles::<S, 8, 1>(),
                // Hosts of wasm keep some of the 16 registers to themselves.
                (false, _) if S::LANES < 8 => self.tiles::<S, 2, 4>(),
                // Two vectors at a time: 16 columns are a whole number of them.
                (false, _) => self.tiles::<S, 6, 2>(),
            }
        }
    }
}

impl<N: Operand> Product<'_, N> {
    /// Multiplies all rows, `R` at a time, by all columns, `V` vectors at a time.
    ///
    /// # Safety
    ///
    /// The processor has the instructions, and `V` divides the number of vectors in a row.
    #[inline(always)]
    unsafe fn tiles<S: SimdF32, const R: usize, const V: usize>(&mut self) {
        let mut column = 0;
        while column < self.columns {
            let mut row = 0;
            // SAFETY: `R` rows and `V` vectors exist from `row` and `column` on.
            unsafe {
                while row + R <= self.rows {
                    self.tile::<S, R, V>(row, column);
                    row += R;
                }
                while row < self.rows {
                    self.tile::<S, 1, V>(row, column);
                    row += 1;
                }
            }
            column += V * S::LANES;
        }
    }

    /// Multiplies a register block of `R` rows and `V` vectors.
    ///
    /// # Safety
    ///
    /// The processor has the instructions; `R` rows and `V` vectors exist from `row` and `column` on.
    #[allow(clippy::needless_range_loop)] // Rows and vectors are indexed the same way.
    #[inline(always)]
    unsafe fn tile<S: SimdF32, const R: usize, const V: usize>(&mut self, row: usize, column: usize) {
        // SAFETY: the caller guarantees the rows and vectors, and `run` has checked the lengths.
        unsafe {
            let x = self.x.as_ptr().add(row * self.stride);
            let mut w = self.panel.as_ptr().add(column);
            let mut sums = [[S::zero(); V]; R];
            for k in 0..self.depth {
                let ws: [S; V] = std::array::from_fn(|v| S::load(w.add(v * S::LANES).cast()));
                for r in 0..R {
                    let x = x.add(r * self.stride + k).cast::<f32>().read();
                    for v in 0..V {
                        sums[r][v] = N::add_products(sums[r][v], x, ws[v]);
                    }
                }
                w = w.add(self.columns);
            }
            for r in 0..R {
                let y = self.y.as_mut_ptr().add((row + r) * self.columns + column);
                for v in 0..V {
                    sums[r][v].store(y.add(v * S::LANES));
                }
            }
        }
    }
}
