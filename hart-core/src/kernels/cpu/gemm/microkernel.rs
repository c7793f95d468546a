//! The micro-kernel that all packed products share, and the loops around it.
//!
//! A register block of `mr` rows by up to three panels of [`NR`] outputs is accumulated over k: each step broadcasts a dword of each
//! row of x, loads a vector of each panel of w, and multiplies and adds. Weights are packed in panels `[k_groups][NR]`, so that one
//! k-group of all outputs of a panel is one vector; x is packed as [`XLayout`] specifies.
//!
//! Processors without instructions for int8 or bf16 multiply the next wider type: x is packed [`XFormat::Widened`], and a task widens
//! its panels of w before it uses them. AMX ([`super::amx`]) needs x packed [`XFormat::Tiled`], and panels of w that start at a cache
//! line. The matrix products of ARM need x packed [`XFormat::Pairs`].

use std::cell::RefCell;
use std::ops::Range;

use super::super::amx;
use super::super::tasks;
use super::epilogue::Epilogue;
use super::packing::{NR, XFormat, XLayout};

/// Bytes of one k-group of a panel of w.
const W_STEP: usize = NR * size_of::<u32>();

/// One k-group of a panel of w, which is a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct CacheLine {
    _dwords: [u32; NR],
}

impl CacheLine {
    const ZERO: Self = Self { _dwords: [0; NR] };
}

/// Vector operations of a micro-kernel in one instruction set.
///
/// # Safety
///
/// Every function requires the processor to have the instructions.
pub(super) trait MicroKernelOps {
    /// Rows of the largest register block, and of a panel of x: 2, 4, 6 or 8.
    const MR: usize;
    /// Panels of w in the largest register block, at most 3.
    const PANELS: usize;
    /// One element of an accumulator.
    type Accumulator: Copy + Default;
    /// Accumulators of the outputs of a panel.
    type AccVector: Copy;
    /// One k-group of a panel of w.
    type WVector: Copy;
    /// One dword of x: in all lanes, or alone where instructions broadcast it.
    type XVector: Copy;

    /// Returns accumulators of zero.
    unsafe fn zero() -> Self::AccVector;
    /// Loads 64 bytes, at any alignment.
    unsafe fn load_w(from: *const u8) -> Self::WVector;
    /// Loads one dword of x.
    unsafe fn load_x(from: *const u32) -> Self::XVector;
    /// Adds to each accumulator the dot product of its dwords of x and w.
    unsafe fn accumulate(accumulators: Self::AccVector, x: Self::XVector, w: Self::WVector) -> Self::AccVector;
    /// Returns the accumulators as an array.
    unsafe fn to_array(accumulators: Self::AccVector) -> [Self::Accumulator; NR];
}

/// Operands of a macro-kernel: packed rows of x by panels of w.
pub(super) struct MacroBlock<'a, E> {
    /// Panels of x, from that of the first row on. Rows after the last may have any value.
    pub x: &'a [u32],
    /// Panels of w, from the first one on.
    pub w: &'a [u8],
    /// Dwords along k, as packed.
    pub k_dwords: usize,
    /// Rows of x; the first one is the first of a panel.
    pub rows: Range<usize>,
    /// Panels of w.
    pub panels: Range<usize>,
    pub epilogue: &'a E,
}

thread_local! {
    /// Repacked panels of w. Kept from task to task: fresh memory costs as much as a product of a few rows.
    static REPACKED_W: RefCell<Vec<CacheLine>> = const { RefCell::new(Vec::new()) };
}

impl<E> MacroBlock<'_, E> {
    /// Runs a macro-kernel with w repacked to panels of `k_dwords`, which `repack` fills from the original ones.
    pub(super) fn with_repacked_w(
        self,
        k_dwords: usize,
        repack: impl FnOnce(&[u8], &mut [CacheLine]),
        macro_kernel: impl FnOnce(MacroBlock<'_, E>),
    ) {
        let panels = self.panels.len();
        REPACKED_W.with_borrow_mut(|repacked| {
            repacked.resize(panels * k_dwords, CacheLine::ZERO);
            repack(&self.w[..panels * self.k_dwords * size_of::<CacheLine>()], repacked);
            // SAFETY: cache lines are integers without padding, which may be read as bytes.
            let w = unsafe { std::slice::from_raw_parts(repacked.as_ptr().cast(), size_of_val(repacked.as_slice())) };
            macro_kernel(MacroBlock { w, k_dwords, ..self });
        });
    }

    /// Runs a macro-kernel with the elements of w widened to twice their size.
    pub(super) fn with_widened_w(self, widen: impl FnOnce(&[u8], &mut [CacheLine]), macro_kernel: impl FnOnce(MacroBlock<'_, E>)) {
        let k_dwords = 2 * self.k_dwords;
        self.with_repacked_w(k_dwords, widen, macro_kernel);
    }

    /// Runs a macro-kernel with panels of w that start at a cache line and are zero-padded to whole tiles.
    pub(super) fn with_tiled_w(self, macro_kernel: impl FnOnce(MacroBlock<'_, E>)) {
        let (panel_size, k_dwords) = (self.k_dwords * size_of::<CacheLine>(), self.k_dwords.next_multiple_of(amx::TILE_DWORDS));
        let copy = |w: &[u8], repacked: &mut [CacheLine]| {
            for (from, to) in w.chunks_exact(panel_size).zip(repacked.chunks_exact_mut(k_dwords)) {
                let (to, padding) = to.split_at_mut(panel_size / size_of::<CacheLine>());
                padding.fill(CacheLine::ZERO);
                // SAFETY: cache lines are integers without padding, which may be written as bytes.
                unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u8>(), panel_size) }.copy_from_slice(from);
            }
        };
        self.with_repacked_w(k_dwords, copy, macro_kernel);
    }
}

/// Panels of w in a task.
const TASK_PANELS: usize = 6;
/// Dwords of x in a task, which stay in the second-level cache.
const TASK_X_DWORDS: usize = 128 * 1024;
/// Like [`TASK_X_DWORDS`], for tasks that widen their panels of w. More rows amortise the widening, and x stays in the third-level
/// cache.
const WIDENED_TASK_X_DWORDS: usize = 1024 * 1024;
/// Like [`TASK_X_DWORDS`], for tasks that copy their panels of w for AMX.
const TILED_TASK_X_DWORDS: usize = 256 * 1024;

/// Dwords of x that are multiplied by all panels of a task before the next dwords. They stay in a small second-level cache.
const MC_X_DWORDS: usize = 20 * 1024;

/// Splits a product into tasks of rows and panels and runs them on all threads.
pub(super) fn for_each_macro_block(
    rows: usize,
    outputs: usize,
    k_groups: usize,
    layout: XLayout,
    run: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    let panels = outputs.div_ceil(NR);
    let x_dwords = match layout.format {
        XFormat::Panel | XFormat::Pairs => TASK_X_DWORDS,
        XFormat::Widened => WIDENED_TASK_X_DWORDS,
        XFormat::Tiled => TILED_TASK_X_DWORDS,
    };
    let task_rows = (x_dwords / layout.k_dwords(k_groups)).max(1).next_multiple_of(2 * layout.mr);
    let (row_tasks, panel_tasks) = (rows.div_ceil(task_rows), panels.div_ceil(TASK_PANELS));
    tasks::for_each(
        row_tasks * panel_tasks,
        || (),
        |(), task| {
            let (row, panel) = (task / panel_tasks * task_rows, task % panel_tasks * TASK_PANELS);
            run(row..(row + task_rows).min(rows), panel..(panel + TASK_PANELS).min(panels));
        },
    );
}

/// Returns the number of rows of x that stay in the cache while they are multiplied by all panels.
pub(super) fn rows_in_cache(k_dwords: usize) -> usize {
    (MC_X_DWORDS / k_dwords).max(1)
}

/// Multiplies all rows of a block by all of its panels.
///
/// # Safety
///
/// The processor has the instructions of `O`, and no other thread accesses the outputs of these rows and panels.
#[inline(always)]
pub(super) unsafe fn macro_kernel<O: MicroKernelOps, E: Epilogue<O::Accumulator>>(block: &MacroBlock<'_, E>) {
    let (rows, panels, k_dwords) = (block.rows.len(), block.panels.len(), block.k_dwords);
    assert!(
        block.x.len() >= rows.next_multiple_of(O::MR) * k_dwords && block.w.len() >= panels * k_dwords * W_STEP,
        "panels are whole"
    );
    let mc = rows_in_cache(k_dwords).next_multiple_of(O::MR);
    for first in (0..rows).step_by(mc) {
        let mut panel = 0;
        while panel < panels {
            let together = (panels - panel).min(O::PANELS);
            for row in (first..rows.min(first + mc)).step_by(O::MR) {
                // SAFETY: the caller upholds the contract of this function; the lengths are checked above, and the row is the first of its
                // panel.
                unsafe {
                    match together {
                        3 if O::PANELS >= 3 => x_panel::<O, E, 3>(block, row, panel),
                        2 if O::PANELS >= 2 => x_panel::<O, E, 2>(block, row, panel),
                        _ => x_panel::<O, E, 1>(block, row, panel),
                    }
                }
            }
            panel += together;
        }
    }
}

/// Multiplies one panel of x by `P` panels of w, with the smallest register block that holds its remaining rows.
///
/// # Safety
///
/// Same as [`macro_kernel`]. The row is the first of its panel and exists, and so do the panels of w.
#[inline(always)]
unsafe fn x_panel<O: MicroKernelOps, E: Epilogue<O::Accumulator>, const P: usize>(
    block: &MacroBlock<'_, E>,
    row: usize,
    panel: usize,
) {
    // SAFETY: the caller upholds the contract of this function; no register block has more rows than a panel of x.
    unsafe {
        match block.rows.len() - row {
            5.. if O::MR == 6 => micro_kernel::<O, E, 6, P>(block, row, panel),
            5.. if O::MR >= 8 => micro_kernel::<O, E, 8, P>(block, row, panel),
            3.. if O::MR >= 4 => micro_kernel::<O, E, 4, P>(block, row, panel),
            2.. => micro_kernel::<O, E, 2, P>(block, row, panel),
            _ => micro_kernel::<O, E, 1, P>(block, row, panel),
        }
    }
}

/// Computes a register block of `R` rows by `P` panels of w.
///
/// # Safety
///
/// Same as [`x_panel`]; `R` is at most `O::MR`.
#[inline(always)]
unsafe fn micro_kernel<O: MicroKernelOps, E: Epilogue<O::Accumulator>, const R: usize, const P: usize>(
    block: &MacroBlock<'_, E>,
    row: usize,
    panel: usize,
) {
    // SAFETY: reads stay within one panel of x and P panels of w, whose lengths `macro_kernel` has checked.
    unsafe {
        let k_dwords = block.k_dwords;
        let mut x = block.x.as_ptr().add(row * k_dwords);
        let mut w = block.w.as_ptr().add(panel * k_dwords * W_STEP);
        let mut accumulators = [[O::zero(); P]; R];
        for _ in 0..k_dwords {
            // Without closures, which do not inherit the function's target features.
            let mut ws = [O::load_w(w); P];
            for (p, ws) in ws.iter_mut().enumerate().skip(1) {
                *ws = O::load_w(w.add(p * k_dwords * W_STEP));
            }
            for (r, accumulators) in accumulators.iter_mut().enumerate() {
                let xr = O::load_x(x.add(r));
                for (accumulators, wp) in accumulators.iter_mut().zip(ws) {
                    *accumulators = O::accumulate(*accumulators, xr, wp);
                }
            }
            x = x.add(O::MR);
            w = w.add(W_STEP);
        }
        // Store the accumulators to memory before the epilogue branches, so that they stay in registers during the k-loop.
        let mut arrays = [[[O::Accumulator::default(); NR]; P]; R];
        for (arrays, accumulators) in arrays.iter_mut().zip(accumulators) {
            for (array, accumulators) in arrays.iter_mut().zip(accumulators) {
                *array = O::to_array(accumulators);
            }
        }
        for p in 0..P {
            let panel = block.panels.start + panel + p;
            let params = block.epilogue.panel_params(panel);
            for (r, arrays) in arrays.iter().enumerate().take(block.rows.len() - row) {
                block.epilogue.store(&params, block.rows.start + row + r, panel, &arrays[p]);
            }
        }
    }
}
