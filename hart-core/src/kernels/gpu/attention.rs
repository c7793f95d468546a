//! Attention. Self-attention splits the QKV projection, adds biases, normalises, applies RoPE and appends to the KV cache in one kernel,
//! and then calls [`flash_attention`].

use burn::backend::Cube;
use burn::backend::ops::FloatTensorOps;
use burn::prelude::Tensor;
use burn::tensor::activation::softmax;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, FloatDType, Shape};
use burn_cubecl::kernel::attention::{AttentionStrategy, attention as burn_attention};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubek::attention::forward::routines::blackbox_accelerated::BlackboxAcceleratedStrategy;

use super::cached_kv::{CachedKv, KvScratch};
use super::flash::{FlashInputs, flash_attention};
use super::gemm::{ConvGeometry, F32Mode, GemmShape, Layout, Operand, gemm};
use super::{THREADS, contiguous, cube_count, cube_index, element, empty_like, is_gpu, tensor};
use crate::kernels::params::{AttentionParams, KvPart, MIN_NORM, Rotary, RowGroup};
use crate::kernels::tensors::to_f32;

/// Maximum number of pairs of token and head per cube of [`split_qkv_kernel`].
const MAX_HEADS_PER_CUBE: usize = 8;
/// Maximum number of scores that [`chunked_attention`] stores at once, unless one head has more.
const MAX_SCORES: usize = if cfg!(test) { 1 << 14 } else { 1 << 25 };

/// Splits a QKV projection `[rows, tokens, 3 * heads * head_dim]` into queries, keys and values.
///
/// Adds the biases, L2-normalises queries and keys if `l2_norm`, and applies RoPE. Queries are multiplied by `scale` and written as
/// `[rows, heads, tokens, head_dim]`; keys and values are appended to caches `[rows, heads, capacity, head_dim]` at `cached_len`.
///
/// One thread computes the two channels of one head and token that RoPE rotates together; `UNIT_POS_Y` indexes the pairs of head and
/// token in the cube.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn split_qkv_kernel<X: Float>(
    qkv: &[X],
    query_bias: &[f32],
    value_bias: &[f32],
    norms: &[f32],
    cos: &[f32],
    sin: &[f32],
    query: &mut [X],
    key: &mut [X],
    value: &mut [X],
    total: usize,
    heads: usize,
    tokens: usize,
    capacity: usize,
    cached_len: usize,
    rotary_tokens: usize,
    scale: f32,
    #[comptime] half_dim: usize,
    #[comptime] heads_per_cube: usize,
    #[comptime] l2_norm: bool,
    #[define(X)] _type: ElemType,
) {
    let head_dim = 2 * half_dim;
    let pair = UNIT_POS_X as usize;
    let slot = UNIT_POS_Y as usize;
    let index = cube_index() * CUBE_DIM_Y as usize + slot;
    let in_bounds = index < total;
    // Threads out of bounds still reach `sync_cube`.
    let index = if in_bounds { index } else { total - 1 };
    let (token, head) = (index / heads, index % heads);
    let (row, position) = (token / tokens, token % tokens);
    let width = heads * head_dim;
    let first = head * head_dim + pair;
    let second = first + half_dim;
    let start = token * 3 * width;
    let mut q1 = f32::cast_from(qkv[start + first]) + query_bias[first];
    let mut q2 = f32::cast_from(qkv[start + second]) + query_bias[second];
    let mut k1 = f32::cast_from(qkv[start + width + first]);
    let mut k2 = f32::cast_from(qkv[start + width + second]);
    if comptime!(l2_norm) {
        let mut squares = Shared::<[f32]>::new_slice(comptime!(2 * half_dim * heads_per_cube));
        let at = slot * head_dim;
        squares[at + pair] = q1 * q1 + q2 * q2;
        squares[at + half_dim + pair] = k1 * k1 + k2 * k2;
        sync_cube();
        let mut query_sum = 0.0f32;
        let mut key_sum = 0.0f32;
        for i in 0..half_dim {
            query_sum += squares[at + i];
            key_sum += squares[at + half_dim + i];
        }
        let query_factor = norms[head] / max(query_sum.sqrt(), MIN_NORM);
        let key_factor = 1.0f32 / max(key_sum.sqrt(), MIN_NORM);
        q1 *= query_factor;
        q2 *= query_factor;
        k1 *= key_factor;
        k2 *= key_factor;
    }
    if in_bounds {
        // Apply RoPE.
        let angles = token % rotary_tokens * head_dim;
        let (c1, s1) = (cos[angles + pair], sin[angles + pair]);
        let (c2, s2) = (cos[angles + half_dim + pair], sin[angles + half_dim + pair]);
        let to = ((row * heads + head) * tokens + position) * head_dim;
        query[to + pair] = X::cast_from((q1 * c1 - q2 * s1) * scale);
        query[to + half_dim + pair] = X::cast_from((q2 * c2 + q1 * s2) * scale);
        // Append to the KV cache.
        let to = ((row * heads + head) * capacity + cached_len + position) * head_dim;
        key[to + pair] = X::cast_from(k1 * c1 - k2 * s1);
        key[to + half_dim + pair] = X::cast_from(k2 * c2 + k1 * s2);
        value[to + pair] = X::cast_from(f32::cast_from(qkv[start + 2 * width + first]) + value_bias[first]);
        value[to + half_dim + pair] = X::cast_from(f32::cast_from(qkv[start + 2 * width + second]) + value_bias[second]);
    }
}

/// Returns `softmax(scale q k^T) v` where [`flash_attention`] does not apply: by burn's flash attention in f16 if the queries fill its
/// tiles, otherwise by [`chunked_attention`]. burn's kernels round to f16 inside, so f32 does not use them.
///
/// # Shapes
///
/// - query, output: `[rows, heads, tokens, head_dim]`
fn fallback_attention(query: CubeTensor, kv: &CachedKv, scale: f64) -> Tensor<4> {
    const TILE: usize = 16;
    let [rows, heads, tokens, head_dim] = [0, 1, 2, 3].map(|dim| query.meta.shape()[dim]);
    let planes = [4u8, 2, 1].into_iter().find(|&planes| tokens.is_multiple_of(TILE * usize::from(planes)));
    if let (true, Some(num_planes)) = (query.dtype == DType::F16, planes) {
        let flash = AttentionStrategy::FlashBlackboxAccelerated(BlackboxAcceleratedStrategy { num_planes, seq_q: 1, seq_kv: 1 });
        let [key, value] = kv.filled();
        if let Ok(output) = burn_attention(query.clone(), key, value, None, None, AttentionModuleOptions::default(), flash) {
            return tensor(output);
        }
    }
    // [rows * heads, tokens, head_dim]
    let merge_heads =
        |x: &CubeTensor, tokens: usize| tensor(Cube::float_reshape(x.clone(), Shape::from([rows * heads, tokens, head_dim])));
    let qkv = [merge_heads(&query, tokens), merge_heads(&kv.key, kv.capacity()), merge_heads(&kv.value, kv.capacity())];
    chunked_attention(&qkv, kv.len, scale, None).reshape([rows, heads, tokens, head_dim])
}

/// See [`crate::kernels::attention`]. Operands of different types are computed in f32; scores and softmax always are.
pub(crate) fn attention(qkv: [&Tensor<4>; 3], bias: Option<&Tensor<4>>, scale: f64) -> Option<Tensor<4>> {
    if !is_gpu(&qkv[0].device()) {
        return None;
    }
    let dtype = qkv[0].dtype();
    if qkv.iter().any(|operand| operand.dtype() != dtype) {
        let [query, key, value] = qkv.map(|operand| to_f32(operand.clone()));
        return attention([&query, &key, &value], bias, scale).map(|output| output.cast(dtype));
    }
    let [rows, heads, tokens, head_dim] = qkv[0].dims();
    let kv_len = qkv[1].dims()[2];
    if rows * heads * tokens * kv_len == 0 {
        return None;
    }
    // Repeat the heads of keys and values that several queries' heads share (grouped-query attention).
    let qkv = qkv.map(|operand| {
        let [_, groups, tokens, _] = operand.dims();
        let grouped = operand.clone().reshape([rows, groups, 1, tokens * head_dim]);
        let repeated = grouped.expand([rows, groups, heads / groups, tokens * head_dim]);
        repeated.reshape([rows * heads, tokens, head_dim]) // [rows * heads, tokens, head_dim]
    });
    let bias = bias.map(|bias| match bias.dims() {
        [1, 1, tokens, kv_len] => bias.clone().reshape([1, tokens, kv_len]),
        _ => bias.clone().expand([rows, heads, tokens, kv_len]).reshape([rows * heads, tokens, kv_len]),
    });
    Some(chunked_attention(&qkv, kv_len, scale, bias).reshape([rows, heads, tokens, head_dim]))
}

/// Returns `softmax(scale q k^T + bias) v` by [`dense_attention`] of a few heads at a time: the scores of all heads would take gigabytes
/// for a large image.
///
/// # Shapes
///
/// - qkv: queries `[heads, tokens, head_dim]`, keys and values `[heads, capacity, head_dim]`
/// - bias: `[heads or 1, tokens, kv_len]`
/// - output: `[heads, tokens, head_dim]`
fn chunked_attention(qkv: &[Tensor<3>; 3], kv_len: usize, scale: f64, bias: Option<Tensor<3>>) -> Tensor<3> {
    let [heads, tokens, _] = qkv[0].dims();
    let chunk = (MAX_SCORES / (tokens * kv_len)).clamp(1, heads);
    let outputs = (0..heads).step_by(chunk).map(|first| {
        let narrow = |x: &Tensor<3>| x.clone().narrow(0, first, chunk.min(heads - first));
        let bias = bias.as_ref().map(|bias| if bias.dims()[0] == 1 { bias.clone() } else { narrow(bias) });
        dense_attention(qkv.each_ref().map(narrow), kv_len, scale, bias)
    });
    Tensor::cat(outputs.collect(), 0)
}

/// Returns `softmax(scale q k^T + bias) v` with the scores in memory, in f32. The shapes are those of [`chunked_attention`].
fn dense_attention(qkv: [Tensor<3>; 3], kv_len: usize, scale: f64, bias: Option<Tensor<3>>) -> Tensor<3> {
    let [[heads, tokens, head_dim], [_, capacity, _], _] = [0, 1, 2].map(|i| qkv[i].dims());
    let [query, key, value] = qkv.map(|operand| contiguous(&operand).expect("a tensor of the GPU"));
    let dtype = query.dtype;
    let operand = |tensor: CubeTensor, layout, batch_stride| Operand::new(tensor, layout, head_dim).with_batch_stride(batch_stride);
    let batched_gemm = |a: Operand, b: Operand, n: usize, k: usize, to| {
        let shape = GemmShape::new(tokens, n, k).batched(heads);
        gemm(&a, &b, shape, ConvGeometry::default(), None, to, F32Mode::Full)
    };
    let query = operand(query, Layout::KMajor, tokens * head_dim);
    let key = operand(key, Layout::KMajor, capacity * head_dim);
    let scores: Tensor<3> = tensor(batched_gemm(query, key, kv_len, head_dim, DType::F32)); // [heads, tokens, kv_len]
    let scores = match bias {
        Some(bias) => scores * scale + bias,
        None => scores * scale,
    };
    let weights = contiguous(&softmax(scores, 2).cast(FloatDType::from(dtype))).expect("a tensor of the GPU");
    let weights = Operand::new(weights, Layout::KMajor, kv_len).with_batch_stride(tokens * kv_len);
    tensor(batched_gemm(weights, operand(value, Layout::MnMajor, capacity * head_dim), head_dim, kv_len, dtype))
}

/// See [`crate::kernels::self_attention`]. Applies without a bias, with a KV cache, and to rows with equally many tokens.
pub(crate) fn self_attention(
    qkv: &Tensor<3>,
    params: &AttentionParams,
    rotary: Rotary<'_>,
    groups: &[RowGroup],
    kv: KvPart<'_, CachedKv, KvScratch>,
    bias: Option<&Tensor<4>>,
) -> Option<Tensor<3>> {
    let KvPart { options, cached, mut last } = kv;
    if bias.is_some() {
        return None;
    }
    let [rows, tokens, width] = qkv.dims();
    let (heads, width) = (params.heads, width / 3);
    let head_dim = width / heads;
    let half_dim = head_dim / 2;
    if half_dim == 0 || head_dim % 2 == 1 || half_dim > THREADS as usize {
        return None;
    }
    let heads_per_cube = (THREADS as usize / half_dim).clamp(1, MAX_HEADS_PER_CUBE);
    let uniform = groups.iter().all(|group| group.tokens == tokens && group.multiplicity == 1);
    if !uniform || rows * tokens == 0 || groups.iter().map(|group| group.rows).sum::<usize>() != rows {
        return None;
    }
    let qkv = contiguous(qkv)?;
    let past = cached.take().unwrap_or_else(|| CachedKv::empty(&qkv, [rows, heads, options.capacity.max(tokens), head_dim]));
    // The last scale is appended to a copy of the past in scratch memory, since no later scale reads it.
    let (mut kv, past) = match &mut last {
        Some(scratch) => {
            let capacity = past.len + tokens;
            let reusable = |scratch: &CachedKv| {
                scratch.capacity() == capacity && scratch.key.dtype == qkv.dtype && scratch.key.meta.shape()[0] == rows
            };
            let mut copy =
                scratch.take().filter(reusable).unwrap_or_else(|| CachedKv::empty(&qkv, [rows, heads, capacity, head_dim]));
            copy.copy_from(&past);
            (copy, Some(past))
        }
        None => (past, None),
    };
    assert!(kv.len + tokens <= kv.capacity(), "the cache was made for all scales");
    let query = empty_like(&qkv, [rows, heads, tokens, head_dim], qkv.dtype);
    let Rotary { cos, sin } = rotary;
    let rotary_tokens = cos.dims()[0] * cos.dims()[2];
    // A kernel without L2 normalisation still binds a buffer, which it does not read.
    let unread = || Some(params.query_bias.clone());
    let norms = params.norms.clone().map(|norms| norms.reshape([heads])).or_else(unread)?;
    // Attention multiplies scores by the usual 1 / sqrt(head_dim); queries are multiplied by the remaining factor of the model's scale.
    let attention_scale = 1.0 / (head_dim as f64).sqrt();
    split_qkv_kernel::launch(
        &qkv.client.clone(),
        cube_count((rows * tokens * heads).div_ceil(heads_per_cube)),
        CubeDim::new_2d(half_dim as u32, heads_per_cube as u32),
        qkv.clone().into_buffer_arg(),
        contiguous(&params.query_bias)?.into_buffer_arg(),
        contiguous(&params.value_bias)?.into_buffer_arg(),
        contiguous(&norms)?.into_buffer_arg(),
        contiguous(cos)?.into_buffer_arg(),
        contiguous(sin)?.into_buffer_arg(),
        query.clone().into_buffer_arg(),
        kv.key.clone().into_buffer_arg(),
        kv.value.clone().into_buffer_arg(),
        rows * tokens * heads,
        heads,
        tokens,
        kv.capacity(),
        kv.len,
        rotary_tokens,
        (params.scale / attention_scale) as f32,
        half_dim,
        heads_per_cube,
        params.norms.is_some(),
        element(qkv.dtype),
    );
    kv.len += tokens;
    let inputs = FlashInputs { query: &query, key: &kv.key, value: &kv.value, kv_len: kv.len };
    let output: Tensor<3> = match flash_attention(inputs, attention_scale) {
        Some(output) => tensor(output),
        None => {
            let output = fallback_attention(query, &kv, attention_scale);
            output.swap_dims(1, 2).reshape([rows, tokens, width]) // [rows, tokens, heads * head_dim]
        }
    };
    match (last, past) {
        (Some(scratch), Some(past)) => {
            *scratch = Some(kv);
            *cached = Some(past);
        }
        _ => *cached = Some(kv),
    }
    Some(output)
}
