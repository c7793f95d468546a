//! The GEMM kernel: a K loop over double-buffered stages, then an epilogue that adds the bias and writes the tile.

use cubecl::cmma;
use cubecl::prelude::*;

use super::super::{PLANE, THREADS, cube_index};
use super::accumulator::{Accumulator, FRAGMENT, KernelConfig, accumulate_fragments, accumulate_values, accumulator_origin};
use super::stage::{ConvArgs, GlobalTiles, load_tile, store_tile};

/// Computes `c = a b + bias` with f32 accumulation. One cube computes one tile of the output of one slice (batch entry or split-K
/// slice, `CUBE_POS_Z`).
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments, clippy::manual_div_ceil)] // CubeCL has no `div_ceil`.
pub(super) fn gemm_kernel<AG: Numeric, BG: Numeric, S: Float, C: Float, Bias: Float, NAG: Size, NBG: Size, NA: Size, NB: Size>(
    a: &[Vector<AG, NAG>],
    b: &[Vector<BG, NBG>],
    bias: &[Bias],
    c: &mut [C],
    m: usize,
    n: usize,
    total_k: usize,
    slice_k: usize,
    a_leading_dim: usize,
    b_leading_dim: usize,
    a_batch_stride: usize,
    b_batch_stride: usize,
    conv: ConvArgs,
    tiles_n: usize,
    #[comptime] config: KernelConfig,
    #[define(AG, BG, S, C, Bias)] _types: [ElemType; 5],
) {
    let slice = CUBE_POS_Z as usize;
    let k = min(slice_k, total_k - slice * slice_k);
    let tile = cube_index();
    let tile_row = tile / tiles_n * comptime!(config.a.extent);
    let tile_column = tile % tiles_n * comptime!(config.b.extent);
    if tile_row >= m {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let block_k = comptime!(config.a.block_k());
    let blocks = (k + block_k - 1) / block_k;

    let mut a_shared = Shared::<[Vector<S, NA>]>::new_aligned_slice(comptime!(2 * config.a.stage_len()), 32usize);
    let mut b_shared = Shared::<[Vector<S, NB>]>::new_aligned_slice(comptime!(2 * config.b.stage_len()), 32usize);
    let mut a_registers = Array::<Vector<AG, NAG>>::new(comptime!(config.a.vectors_per_thread()));
    let mut b_registers = Array::<Vector<BG, NBG>>::new(comptime!(config.b.vectors_per_thread()));
    let a_global = GlobalTiles { mn_start: tile_row, mn: m, k, leading_dim: a_leading_dim, offset: slice * a_batch_stride };
    let b_global = GlobalTiles { mn_start: tile_column, mn: n, k, leading_dim: b_leading_dim, offset: slice * b_batch_stride };

    // Prologue: fill the first stage.
    load_tile::<AG, NAG>(a, &mut a_registers, 0usize, &a_global, &conv, config.a);
    load_tile::<BG, NBG>(b, &mut b_registers, 0usize, &b_global, &conv, config.b);
    store_tile::<AG, NAG, S, NA>(&a_registers, &mut a_shared, 0usize, config.a);
    store_tile::<BG, NBG, S, NB>(&b_registers, &mut b_shared, 0usize, config.b);
    sync_cube();

    let tensor_cores = comptime!(config.tensor_cores);
    let mut accumulator = Accumulator::new(config);
    for block in 0..blocks {
        let stage = block % 2;
        // Loads of the next tiles overlap with the multiplication of this stage.
        if block + 1 < blocks {
            let k_start = (block + 1) * block_k;
            load_tile::<AG, NAG>(a, &mut a_registers, k_start, &a_global, &conv, config.a);
            load_tile::<BG, NBG>(b, &mut b_registers, k_start, &b_global, &conv, config.b);
        }
        if tensor_cores {
            accumulate_fragments::<S, NA, NB>(&mut accumulator, &a_shared, &b_shared, stage, config);
        } else {
            accumulate_values::<S, NA, NB>(&mut accumulator, &a_shared, &b_shared, stage, config);
        }
        if block + 1 < blocks {
            store_tile::<AG, NAG, S, NA>(&a_registers, &mut a_shared, 1 - stage, config.a);
            store_tile::<BG, NBG, S, NB>(&b_registers, &mut b_shared, 1 - stage, config.b);
        }
        sync_cube();
    }

    // Epilogue. The layout of a fragment is opaque, so each plane writes it to its own part of shared memory first.
    let threads = comptime!(if tensor_cores { PLANE } else { 1 });
    let values_per_thread = comptime!(if tensor_cores { FRAGMENT * FRAGMENT / PLANE } else { 1 });
    let mut scratch = Shared::<[f32]>::new_aligned_slice(
        comptime!(if tensor_cores { FRAGMENT * FRAGMENT * THREADS as usize / PLANE } else { 1 }),
        32usize,
    );
    let (count_m, count_n) = comptime!(config.accumulators());
    let (origin_row, origin_column) = accumulator_origin(config);
    #[unroll]
    for i in 0..count_m {
        #[unroll]
        for j in 0..count_n {
            if tensor_cores {
                let begin = unit / PLANE * comptime!(FRAGMENT * FRAGMENT);
                let sum = accumulator.fragments.index(comptime!(i * count_n + j));
                cmma::store(
                    &mut scratch[begin..begin + comptime!(FRAGMENT * FRAGMENT)],
                    sum,
                    FRAGMENT as u32,
                    cmma::MatrixLayout::RowMajor,
                );
                sync_plane();
            }
            #[unroll]
            for part in 0..values_per_thread {
                let element = unit % threads + comptime!(part * threads);
                let row = tile_row + origin_row + comptime!(i * FRAGMENT) + element / FRAGMENT;
                let column = tile_column + origin_column + comptime!(j * FRAGMENT) + element % FRAGMENT;
                if row < m && column < n {
                    let mut value = 0.0f32;
                    if comptime!(config.bias) {
                        value += f32::cast_from(bias[column]);
                    }
                    if tensor_cores {
                        value += scratch[unit / PLANE * comptime!(FRAGMENT * FRAGMENT) + element];
                    } else {
                        value += accumulator.values[comptime!(i * count_n + j)];
                    }
                    c[(slice * m + row) * n + column] = C::cast_from(value);
                }
            }
            if tensor_cores {
                sync_plane();
            }
        }
    }
}
