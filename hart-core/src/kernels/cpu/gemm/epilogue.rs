//! Epilogues, which turn the accumulators of a micro-kernel into outputs and store them.

use super::super::elementwise::silu_of;
use super::super::tasks::SyncPtr;
use super::packing::NR;

/// Turns accumulators into outputs and stores them. Implementations need `#[inline(always)]` on all functions.
pub(super) trait Epilogue<Accumulator>: Sync {
    /// Parameters of a panel's outputs, such as their biases.
    type PanelParams;

    /// Loads the parameters of a panel, once for all of its rows.
    fn panel_params(&self, panel: usize) -> Self::PanelParams;

    /// Stores the outputs of one row in one panel.
    ///
    /// # Safety
    ///
    /// The row and the panel exist, no other thread accesses their outputs, and `params` are the panel's.
    unsafe fn store(&self, params: &Self::PanelParams, row: usize, panel: usize, accumulators: &[Accumulator; NR]);
}

/// Loads a panel's part of a vector with one value per output, zeros after the last. The length is constant, so that the compiler uses
/// vectors.
#[inline(always)]
pub(super) fn load_panel(values: &[f32], panel: usize) -> [f32; NR] {
    /// Outlined, so that the compiler does not merge it with the copy of a whole panel.
    #[cold]
    #[inline(never)]
    fn partial(values: &[f32]) -> [f32; NR] {
        std::array::from_fn(|i| values.get(i).copied().unwrap_or(0.0))
    }
    let values = &values[panel * NR..];
    match values.first_chunk() {
        Some(values) => *values,
        None => partial(values),
    }
}

/// Stores one row's outputs of a panel. Values after the last output are dropped.
///
/// # Safety
///
/// `y` points to a matrix of `outputs` columns that has this row and panel, and no other thread accesses them.
#[inline(always)]
pub(super) unsafe fn store_panel_row(y: *mut f32, outputs: usize, row: usize, panel: usize, values: [f32; NR]) {
    let first = panel * NR;
    // SAFETY: the caller upholds the contract of this function; a partial panel is stored only up to the last output.
    unsafe {
        let y = y.add(row * outputs + first);
        if first + NR <= outputs {
            y.cast::<[f32; NR]>().write(values);
        } else {
            // Element by element: a copy of variable length would compile to a call of `memcpy`, for whole panels too.
            for (i, value) in values.into_iter().enumerate().take(outputs - first) {
                y.add(i).write(value);
            }
        }
    }
}

/// Loads one row's outputs of a panel, zeros after the last output.
///
/// # Safety
///
/// Same as [`store_panel_row`], and the outputs are initialised.
#[inline(always)]
pub(super) unsafe fn load_panel_row(y: *const f32, outputs: usize, row: usize, panel: usize) -> [f32; NR] {
    let first = panel * NR;
    let mut values = [0.0; NR];
    // SAFETY: the caller upholds the contract of this function; a partial panel is loaded only up to the last output.
    unsafe {
        let y = y.add(row * outputs + first);
        if first + NR <= outputs {
            values = y.cast::<[f32; NR]>().read();
        } else {
            for (i, value) in values.iter_mut().enumerate().take(outputs - first) {
                *value = y.add(i).read();
            }
        }
    }
    values
}

/// The matrix `[rows, outputs]` that an epilogue stores to.
pub(super) struct OutputMatrix {
    pub(super) y: SyncPtr<f32>,
    pub(super) outputs: usize,
    /// Set if y holds gates: an output becomes `silu(gate) * output`.
    pub(super) gated: bool,
}

impl OutputMatrix {
    /// Stores one row's outputs of a panel.
    ///
    /// # Safety
    ///
    /// Same as [`store_panel_row`]; if the matrix is gated, the gates are initialised.
    #[inline(always)]
    pub(super) unsafe fn store(&self, row: usize, panel: usize, mut values: [f32; NR]) {
        // SAFETY: the caller upholds the contract of this function.
        unsafe {
            if self.gated {
                let gates = load_panel_row(self.y.get(), self.outputs, row, panel);
                for i in 0..NR {
                    values[i] *= silu_of(gates[i]);
                }
            }
            store_panel_row(self.y.get(), self.outputs, row, panel, values);
        }
    }
}
