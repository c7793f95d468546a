//! Macro-kernels in AMX, for operands packed as tiles.

use super::super::amx::{AmxToken, TILE_DWORDS, TILE_ROWS, Tdpbf16ps, Tdpbssd, TileGuard, TileOperands, TileProduct};
use super::epilogue::Epilogue;
use super::microkernel::MacroBlock;
use super::packing::NR;

/// Bytes of a tile.
const TILE_SIZE: usize = TILE_ROWS * TILE_DWORDS * 4;

/// Accumulators of a register block: two tiles of rows by two panels, `[32][2][NR]`.
#[repr(align(64))]
struct Accumulators<T>([[[T; NR]; 2]; 2 * TILE_ROWS]);

/// Multiplies a block of int8. Its k is zero-padded to whole tiles.
///
/// # Safety
///
/// The processor has AVX-512 F and VL, and no other thread accesses the outputs of these rows and panels.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512vl"))]
pub(super) unsafe fn int8(token: AmxToken, block: &MacroBlock<'_, impl Epilogue<i32>>) {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { macro_kernel::<Tdpbssd, _>(token, block) }
}

/// Multiplies a block of bf16. Its k is zero-padded to whole tiles.
///
/// # Safety
///
/// Same as [`int8`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512vl"))]
pub(super) unsafe fn bf16(token: AmxToken, block: &MacroBlock<'_, impl Epilogue<f32>>) {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { macro_kernel::<Tdpbf16ps, _>(token, block) }
}

/// Multiplies a block in register blocks of 32 rows by 32 outputs.
///
/// # Safety
///
/// Same as [`int8`].
#[inline(always)]
unsafe fn macro_kernel<T: TileProduct, E: Epilogue<T::Accumulator>>(token: AmxToken, block: &MacroBlock<'_, E>) {
    let (rows, panels, k_dwords) = (block.rows.len(), block.panels.len(), block.k_dwords);
    let (x_panel, w_panel) = (TILE_ROWS * k_dwords, NR * k_dwords * 4);
    assert!(k_dwords > 0 && k_dwords.is_multiple_of(TILE_DWORDS), "k is whole tiles");
    assert!(block.x.len() >= rows.div_ceil(TILE_ROWS) * x_panel && block.w.len() >= panels * w_panel, "panels are whole");
    let _tiles = TileGuard::new(token);
    let mut accumulators = Accumulators([[[T::Accumulator::default(); NR]; 2]; 2 * TILE_ROWS]);
    let c_row_stride = size_of_val(&accumulators.0[0]);
    for panel in (0..panels).step_by(2) {
        // Without a second panel, or a second tile of rows, the first one is multiplied twice and the copy is dropped.
        let w_panels = [panel, (panel + 1).min(panels - 1)];
        let params = w_panels.map(|panel| block.epilogue.panel_params(block.panels.start + panel));
        for row in (0..rows).step_by(2 * TILE_ROWS) {
            let tile_rows = [row, if row + TILE_ROWS < rows { row + TILE_ROWS } else { row }];
            let c = (&raw mut accumulators).cast::<u8>();
            let operands = TileOperands {
                a: tile_rows.map(|row| block.x[row / TILE_ROWS * x_panel..].as_ptr().cast()),
                a_row_stride: TILE_DWORDS * 4,
                a_tile_stride: TILE_SIZE,
                b: w_panels.map(|panel| block.w[panel * w_panel..].as_ptr()),
                b_row_stride: NR * 4,
                b_tile_stride: TILE_SIZE,
                k_tiles: k_dwords / TILE_DWORDS,
                c: [c, c.wrapping_add(TILE_ROWS * c_row_stride)],
                c_row_stride,
            };
            // SAFETY: the tiles are configured; x and w have whole panels, as checked above, and C is `accumulators`.
            unsafe { T::product_32x32_prefetch(operands) };
            for (p, params) in params.iter().enumerate().take(panels - panel) {
                for (r, accumulators) in accumulators.0.iter().enumerate().take(rows - row) {
                    // SAFETY: the caller upholds the contract of this function; the row and the panel are the block's.
                    unsafe {
                        block.epilogue.store(params, block.rows.start + row + r, block.panels.start + panel + p, &accumulators[p]);
                    }
                }
            }
        }
    }
}
