//! The KV cache of one block on a GPU, preallocated for all scales and filled in place.

use burn::tensor::Shape;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{element, elementwise_dims, empty_like, thread_index};

/// Keys and values, `[rows, heads, capacity, head_dim]`. The first `len` tokens of every head are filled.
#[derive(Debug)]
pub(crate) struct CachedKv {
    pub(super) key: CubeTensor,
    pub(super) value: CubeTensor,
    pub(super) len: usize,
}

/// Memory of the last scale's keys and values.
pub(crate) type KvScratch = Option<CachedKv>;

/// Clones allocate new memory, since caches are written to in place.
impl Clone for CachedKv {
    fn clone(&self) -> Self {
        let mut copy = Self::empty(&self.key, [0, 1, 2, 3].map(|dim| self.key.meta.shape()[dim]));
        copy.copy_from(self);
        copy
    }
}

impl CachedKv {
    /// Allocates an empty cache of the device and the type of `like`.
    pub(super) fn empty(like: &CubeTensor, [rows, heads, capacity, head_dim]: [usize; 4]) -> Self {
        let tensor = || empty_like(like, [rows, heads, capacity, head_dim], like.dtype);
        Self { key: tensor(), value: tensor(), len: 0 }
    }

    /// Returns the number of tokens that fit.
    pub(super) fn capacity(&self) -> usize {
        self.key.meta.shape()[2]
    }

    /// Returns views of the keys and values that are filled, `[rows, heads, len, head_dim]`.
    pub(super) fn filled(&self) -> [CubeTensor; 2] {
        [&self.key, &self.value].map(|tensor| {
            let mut view = tensor.clone();
            let [rows, heads, _, head_dim] = [0, 1, 2, 3].map(|dim| view.meta.shape()[dim]);
            view.meta.shape = Shape::from([rows, heads, self.len, head_dim]);
            view
        })
    }

    /// Replaces the contents by those of `from`, which has the same rows, heads and head dimension.
    pub(super) fn copy_from(&mut self, from: &Self) {
        let [rows, heads, capacity, head_dim] = [0, 1, 2, 3].map(|dim| self.key.meta.shape()[dim]);
        for (to, source) in [(&self.key, &from.key), (&self.value, &from.value)] {
            let count = rows * heads * from.len * head_dim;
            let (grid, cube) = elementwise_dims(count);
            copy_kernel::launch(
                &to.client,
                grid,
                cube,
                source.clone().into_buffer_arg(),
                to.clone().into_buffer_arg(),
                count,
                from.len * head_dim,
                from.capacity() * head_dim,
                capacity * head_dim,
                element(to.dtype),
            );
        }
        self.len = from.len;
    }
}

/// Copies `head_len` elements of every head. One thread copies one element.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn copy_kernel<X: Float>(
    from: &[X],
    to: &mut [X],
    count: usize,
    head_len: usize,
    from_stride: usize,
    to_stride: usize,
    #[define(X)] _type: ElemType,
) {
    let i = thread_index();
    if i < count {
        let (head, at) = (i / head_len, i % head_len);
        to[head * to_stride + at] = from[head * from_stride + at];
    }
}
