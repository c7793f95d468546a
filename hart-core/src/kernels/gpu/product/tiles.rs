//! The kernel of a product: each cube sums one tile of the output, and has the next tiles of both operands on their way meanwhile.

use cubecl::cmma;
use cubecl::prelude::*;

use super::super::{THREADS, cube_number};
use super::stage::{Map, Source, fetch_part, keep_part};
use super::sums::{PLANE, Sums, UNIT, Way, add_by_threads, add_on_units, place_of_sums};

/// One cube a tile of the output, and one a product of a batch: `y = left right + bias`, sums in f32.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments, clippy::manual_div_ceil)] // A kernel's numbers have no `div_ceil`.
pub(super) fn multiply_tiles<XL: Numeric, XR: Numeric, S: Float, Y: Float, B: Float, NXL: Size, NXR: Size, NL: Size, NR: Size>(
    left: &[Vector<XL, NXL>],
    right: &[Vector<XR, NXR>],
    bias: &[B],
    y: &mut [Y],
    rows: usize,
    columns: usize,
    all_depth: usize,
    share: usize,
    left_line: usize,
    right_line: usize,
    left_apart: usize,
    right_apart: usize,
    map: Map,
    across: usize,
    #[comptime] way: Way,
    #[define(XL, XR, S, Y, B)] _types: [ElemType; 5],
) {
    let product = CUBE_POS_Z as usize;
    let depth = min(share, all_depth - product * share);
    let number = cube_number();
    let first_row = number / across * comptime!(way.left.tile);
    let first_column = number % across * comptime!(way.right.tile);
    if first_row >= rows {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let step = comptime!(way.left.step());
    let steps = (depth + step - 1) / step;

    let mut stage_left = Shared::<[Vector<S, NL>]>::new_aligned_slice(comptime!(2 * way.left.stage()), 32usize);
    let mut stage_right = Shared::<[Vector<S, NR>]>::new_aligned_slice(comptime!(2 * way.right.stage()), 32usize);
    let mut part_left = Array::<Vector<XL, NXL>>::new(comptime!(way.left.each()));
    let mut part_right = Array::<Vector<XR, NXR>>::new(comptime!(way.right.each()));
    let from_left = Source { first: first_row, acrosses: rows, depth, line: left_line, start: product * left_apart };
    let from_right = Source { first: first_column, acrosses: columns, depth, line: right_line, start: product * right_apart };

    fetch_part::<XL, NXL>(left, &mut part_left, 0usize, &from_left, &map, way.left);
    fetch_part::<XR, NXR>(right, &mut part_right, 0usize, &from_right, &map, way.right);
    keep_part::<XL, NXL, S, NL>(&part_left, &mut stage_left, 0usize, way.left);
    keep_part::<XR, NXR, S, NR>(&part_right, &mut stage_right, 0usize, way.right);
    sync_cube();

    let on_units = comptime!(way.on_units);
    let mut sums = Sums::new(way);
    for index in 0..steps {
        let now = index % 2;
        // The next tiles are on their way while this one is multiplied.
        if index + 1 < steps {
            let begin = (index + 1) * step;
            fetch_part::<XL, NXL>(left, &mut part_left, begin, &from_left, &map, way.left);
            fetch_part::<XR, NXR>(right, &mut part_right, begin, &from_right, &map, way.right);
        }
        if on_units {
            add_on_units::<S, NL, NR>(&mut sums, &stage_left, &stage_right, now, way);
        } else {
            add_by_threads::<S, NL, NR>(&mut sums, &stage_left, &stage_right, now, way);
        }
        if index + 1 < steps {
            keep_part::<XL, NXL, S, NL>(&part_left, &mut stage_left, 1 - now, way.left);
            keep_part::<XR, NXR, S, NR>(&part_right, &mut stage_right, 1 - now, way.right);
        }
        sync_cube();
    }

    // Fragments are opaque: each goes through a plane's own part of shared memory.
    let lanes = comptime!(if on_units { PLANE } else { 1 });
    let each = comptime!(if on_units { UNIT * UNIT / PLANE } else { 1 });
    let mut scratch =
        Shared::<[f32]>::new_aligned_slice(comptime!(if on_units { UNIT * UNIT * THREADS as usize / PLANE } else { 1 }), 32usize);
    let (down, across) = comptime!(way.blocks());
    let (row_of_all, column_of_all) = place_of_sums(way);
    #[unroll]
    for i in 0..down {
        #[unroll]
        for j in 0..across {
            if on_units {
                let begin = unit / PLANE * comptime!(UNIT * UNIT);
                let sum = sums.fragments.index(comptime!(i * across + j));
                cmma::store(&mut scratch[begin..begin + comptime!(UNIT * UNIT)], sum, UNIT as u32, cmma::MatrixLayout::RowMajor);
                sync_plane();
            }
            #[unroll]
            for part in 0..each {
                let number = unit % lanes + comptime!(part * lanes);
                let row = first_row + row_of_all + comptime!(i * UNIT) + number / UNIT;
                let column = first_column + column_of_all + comptime!(j * UNIT) + number % UNIT;
                if row < rows && column < columns {
                    let mut value = 0.0f32;
                    if comptime!(way.bias) {
                        value += f32::cast_from(bias[column]);
                    }
                    if on_units {
                        value += scratch[unit / PLANE * comptime!(UNIT * UNIT) + number];
                    } else {
                        value += sums.numbers[comptime!(i * across + j)];
                    }
                    y[(product * rows + row) * columns + column] = Y::cast_from(value);
                }
            }
            if on_units {
                sync_plane();
            }
        }
    }
}
