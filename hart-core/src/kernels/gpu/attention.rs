//! Self-attention with keys and values kept in place: one kernel takes a block's product apart, adds biases, norms and rotates, and
//! writes keys and values where they stay.

use burn::backend::Cube;
use burn::backend::ops::FloatTensorOps;
use burn::prelude::Tensor;
use burn::tensor::activation::softmax;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, FloatDType, Shape};
use burn_cubecl::kernel::attention::{AttentionStrategy, attention as burns_attention};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubek::attention::forward::routines::blackbox_accelerated::BlackboxAcceleratedStrategy;

use super::flash::{Heads, attend};
use super::product::{Lies, Operand, Single, Sizes, View, multiply};
use super::{THREADS, cube_number, cubes, element, empty_like, is_here, tensor, thread_number, threads_for, whole};
use crate::kernels::params::{AttentionParams, KvPart, MIN_NORM, Rotary, RowGroup};
use crate::kernels::tensors::to_f32;

/// Heads of tokens that a cube works on, where it has threads for so many.
const HEADS: usize = 8;
/// Scores that exist at once, unless one head has more.
const MOST_SCORES: usize = if cfg!(test) { 1 << 14 } else { 1 << 25 };

/// Keys and values `[rows, heads, room, channels]`, of which the first `filled` tokens of every head are there.
#[derive(Debug)]
pub(crate) struct CachedKv {
    key: CubeTensor,
    value: CubeTensor,
    filled: usize,
}

/// Memory of the last scale's keys and values.
pub(crate) type KvScratch = Option<CachedKv>;

/// A copy has memory of its own that can be written to.
impl Clone for CachedKv {
    fn clone(&self) -> Self {
        let mut copy = Self::empty(&self.key, [0, 1, 2, 3].map(|dim| self.key.meta.shape()[dim]));
        copy.copy(self);
        copy
    }
}

impl CachedKv {
    fn empty(like: &CubeTensor, [rows, heads, room, channels]: [usize; 4]) -> Self {
        let part = || empty_like(like, [rows, heads, room, channels], like.dtype);
        Self { key: part(), value: part(), filled: 0 }
    }

    fn room(&self) -> usize {
        self.key.meta.shape()[2]
    }

    /// The tokens that are there, as views.
    fn seen(&self) -> [CubeTensor; 2] {
        [&self.key, &self.value].map(|part| {
            let mut part = part.clone();
            let [rows, heads, _, channels] = [0, 1, 2, 3].map(|dim| part.meta.shape()[dim]);
            part.meta.shape = Shape::from([rows, heads, self.filled, channels]);
            part
        })
    }

    /// Takes over the tokens of another one, which has the same rows and heads.
    fn copy(&mut self, from: &Self) {
        let [rows, heads, room, channels] = [0, 1, 2, 3].map(|dim| self.key.meta.shape()[dim]);
        for (to, from_part) in [(&self.key, &from.key), (&self.value, &from.value)] {
            let count = rows * heads * from.filled * channels;
            let (all, dim) = threads_for(count);
            copy_kernel::launch(
                &to.client,
                all,
                dim,
                from_part.clone().into_buffer_arg(),
                to.clone().into_buffer_arg(),
                count,
                from.filled * channels,
                from.room() * channels,
                room * channels,
                element(to.dtype),
            );
        }
        self.filled = from.filled;
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn copy_kernel<X: Float>(
    from: &[X],
    to: &mut [X],
    count: usize,
    part: usize,
    from_stride: usize,
    to_stride: usize,
    #[define(X)] _type: ElemType,
) {
    let i = thread_number();
    if i < count {
        let (head, at) = (i / part, i % part);
        to[head * to_stride + at] = from[head * from_stride + at];
    }
}

/// One thread a pair of channels that are turned against each other, of one head of one token.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn take_apart<X: Float>(
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
    length: usize,
    room: usize,
    filled: usize,
    turned: usize,
    scale: f32,
    #[comptime] half: usize,
    #[comptime] lines: usize,
    #[comptime] normed: bool,
    #[define(X)] _type: ElemType,
) {
    let channels = 2 * half;
    let pair = UNIT_POS_X as usize;
    let line = UNIT_POS_Y as usize;
    let number = cube_number() * CUBE_DIM_Y as usize + line;
    let there = number < total;
    // Those that have nothing to do stay for the others' sums.
    let number = if there { number } else { total - 1 };
    let (token, head) = (number / heads, number % heads);
    let (row, position) = (token / length, token % length);
    let width = heads * channels;
    let first = head * channels + pair;
    let second = first + half;
    let start = token * 3 * width;
    let mut q1 = f32::cast_from(qkv[start + first]) + query_bias[first];
    let mut q2 = f32::cast_from(qkv[start + second]) + query_bias[second];
    let mut k1 = f32::cast_from(qkv[start + width + first]);
    let mut k2 = f32::cast_from(qkv[start + width + second]);
    if comptime!(normed) {
        let mut squares = Shared::<[f32]>::new_slice(comptime!(2 * half * lines));
        let at = line * channels;
        squares[at + pair] = q1 * q1 + q2 * q2;
        squares[at + half + pair] = k1 * k1 + k2 * k2;
        sync_cube();
        let mut of_query = 0.0f32;
        let mut of_key = 0.0f32;
        for i in 0..half {
            of_query += squares[at + i];
            of_key += squares[at + half + i];
        }
        let query_factor = norms[head] / max(of_query.sqrt(), MIN_NORM);
        let key_factor = 1.0f32 / max(of_key.sqrt(), MIN_NORM);
        q1 *= query_factor;
        q2 *= query_factor;
        k1 *= key_factor;
        k2 *= key_factor;
    }
    if there {
        let angles = token % turned * channels;
        let (c1, s1) = (cos[angles + pair], sin[angles + pair]);
        let (c2, s2) = (cos[angles + half + pair], sin[angles + half + pair]);
        let to = ((row * heads + head) * length + position) * channels;
        query[to + pair] = X::cast_from((q1 * c1 - q2 * s1) * scale);
        query[to + half + pair] = X::cast_from((q2 * c2 + q1 * s2) * scale);
        let to = ((row * heads + head) * room + filled + position) * channels;
        key[to + pair] = X::cast_from(k1 * c1 - k2 * s1);
        key[to + half + pair] = X::cast_from(k2 * c2 + k1 * s2);
        value[to + pair] = X::cast_from(f32::cast_from(qkv[start + 2 * width + first]) + value_bias[first]);
        value[to + half + pair] = X::cast_from(f32::cast_from(qkv[start + 2 * width + second]) + value_bias[second]);
    }
}

/// `softmax(scale q k^T) v`, with scores and softmax in f32, where [`attend`] has no units. In half precision by burn's flash
/// attention, where the queries fill its tiles; its kernels round to f16 inside, so f32 never takes them.
fn mix(query: CubeTensor, here: &CachedKv, scale: f64) -> Tensor<4> {
    const TILE: usize = 16;
    let [rows, heads, length, channels] = [0, 1, 2, 3].map(|dim| query.meta.shape()[dim]);
    let planes = [4u8, 2, 1].into_iter().find(|&planes| length.is_multiple_of(TILE * usize::from(planes)));
    if let (true, Some(num_planes)) = (query.dtype == DType::F16, planes) {
        let flash = AttentionStrategy::FlashBlackboxAccelerated(BlackboxAcceleratedStrategy { num_planes, seq_q: 1, seq_kv: 1 });
        let [key, value] = here.seen();
        if let Ok(mixed) = burns_attention(query.clone(), key, value, None, None, AttentionModuleOptions::default(), flash) {
            return tensor(mixed);
        }
    }
    let of_heads =
        |x: &CubeTensor, length: usize| tensor(Cube::float_reshape(x.clone(), Shape::from([rows * heads, length, channels])));
    let of = [of_heads(&query, length), of_heads(&here.key, here.room()), of_heads(&here.value, here.room())];
    mix_some_at_a_time(&of, here.filled, scale, None).reshape([rows, heads, length, channels])
}

/// `softmax(scale q k^T + bias) v` of `[rows, heads, length, channels]`, with scores and softmax in f32.
pub(crate) fn attention(operands: [&Tensor<4>; 3], bias: Option<&Tensor<4>>, scale: f64) -> Option<Tensor<4>> {
    if !is_here(&operands[0].device()) {
        return None;
    }
    let dtype = operands[0].dtype();
    if operands.iter().any(|operand| operand.dtype() != dtype) {
        let [query, key, value] = operands.map(|operand| to_f32(operand.clone()));
        return attention([&query, &key, &value], bias, scale).map(|mixed| mixed.cast(dtype));
    }
    let of = operands;
    let [rows, heads, length, channels] = of[0].dims();
    let tokens = of[1].dims()[2];
    if rows * heads * length * tokens == 0 {
        return None;
    }
    let of = of.map(|part| {
        let [_, groups, length, _] = part.dims();
        let part =
            part.clone().reshape([rows, groups, 1, length * channels]).expand([rows, groups, heads / groups, length * channels]);
        part.reshape([rows * heads, length, channels])
    });
    // One for all heads stays one.
    let bias = bias.map(|bias| match bias.dims() {
        [1, 1, length, tokens] => bias.clone().reshape([1, length, tokens]),
        _ => bias.clone().expand([rows, heads, length, tokens]).reshape([rows * heads, length, tokens]),
    });
    Some(mix_some_at_a_time(&of, tokens, scale, bias).reshape([rows, heads, length, channels]))
}

/// The same of all heads, `[heads, length, channels]`, some at a time: all scores of a large picture would be many gigabytes.
fn mix_some_at_a_time(of: &[Tensor<3>; 3], tokens: usize, scale: f64, bias: Option<Tensor<3>>) -> Tensor<3> {
    let [heads, length, _] = of[0].dims();
    let at_once = (MOST_SCORES / (length * tokens)).clamp(1, heads);
    let mixed = (0..heads).step_by(at_once).map(|first| {
        let some = |x: &Tensor<3>| x.clone().narrow(0, first, at_once.min(heads - first));
        let bias = bias.as_ref().map(|bias| if bias.dims()[0] == 1 { bias.clone() } else { some(bias) });
        mix_heads(of.each_ref().map(some), tokens, scale, bias)
    });
    Tensor::cat(mixed.collect(), 0)
}

/// The same of some heads, `[heads, length, channels]`, of whose keys and values so many are there.
fn mix_heads(of: [Tensor<3>; 3], tokens: usize, scale: f64, bias: Option<Tensor<3>>) -> Tensor<3> {
    let [[heads, length, channels], [_, room, _], _] = [0, 1, 2].map(|part| of[part].dims());
    let [query, key, value] = of.map(|part| whole(&part).expect("it is the GPU's"));
    let kind = query.dtype;
    let of_head = |tensor: CubeTensor, lies, apart| Operand::new(tensor, lies, channels).apart(apart);
    let product = |left: Operand, right: Operand, columns: usize, depth: usize, to| {
        let sizes = Sizes::new(length, columns, depth).times(heads);
        multiply(&left, &right, sizes, View::default(), None, to, Single::Exact)
    };
    let (query, key) = (of_head(query, Lies::Deep, length * channels), of_head(key, Lies::Deep, room * channels));
    let scores: Tensor<3> = tensor(product(query, key, tokens, channels, DType::F32));
    let scores = match bias {
        Some(bias) => scores * scale + bias,
        None => scores * scale,
    };
    let shares = whole(&softmax(scores, 2).cast(FloatDType::from(kind))).expect("it is the GPU's");
    let shares = Operand::new(shares, Lies::Deep, tokens).apart(length * tokens);
    tensor(product(shares, of_head(value, Lies::Wide, room * channels), channels, tokens, kind))
}

/// See [`crate::kernels::self_attention`]; only without a bias, with a KV cache, and with rows of one length.
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
    let [rows, length, width] = qkv.dims();
    let (heads, width) = (params.heads, width / 3);
    let channels = width / heads;
    let half = channels / 2;
    if half == 0 || channels % 2 == 1 || half > THREADS as usize {
        return None;
    }
    let lines = (THREADS as usize / half).clamp(1, HEADS);
    let alike = groups.iter().all(|group| group.tokens == length && group.multiplicity == 1);
    if !alike || rows * length == 0 || groups.iter().map(|group| group.rows).sum::<usize>() != rows {
        return None;
    }
    let qkv = whole(qkv)?;
    let past = cached.take().unwrap_or_else(|| CachedKv::empty(&qkv, [rows, heads, options.capacity.max(length), channels]));
    // The last scale writes behind a copy of the past, since nothing of it is cached.
    let (mut here, past) = match &mut last {
        Some(scratch) => {
            let room = past.filled + length;
            let fits = |there: &CachedKv| there.room() == room && there.key.dtype == qkv.dtype && there.key.meta.shape()[0] == rows;
            let mut copy = scratch.take().filter(fits).unwrap_or_else(|| CachedKv::empty(&qkv, [rows, heads, room, channels]));
            copy.copy(&past);
            (copy, Some(past))
        }
        None => (past, None),
    };
    assert!(here.filled + length <= here.room(), "the cache was made for all scales");
    let query = empty_like(&qkv, [rows, heads, length, channels], qkv.dtype);
    let Rotary { cos, sin } = rotary;
    let turned = cos.dims()[0] * cos.dims()[2];
    let no_norms = || Some(params.query_bias.clone());
    let norms = params.norms.clone().map(|norms| norms.reshape([heads])).or_else(no_norms)?;
    // What attention multiplies scores by itself is taken away first.
    let usual = 1.0 / (channels as f64).sqrt();
    take_apart::launch(
        &qkv.client.clone(),
        cubes((rows * length * heads).div_ceil(lines)),
        CubeDim::new_2d(half as u32, lines as u32),
        qkv.clone().into_buffer_arg(),
        whole(&params.query_bias)?.into_buffer_arg(),
        whole(&params.value_bias)?.into_buffer_arg(),
        whole(&norms)?.into_buffer_arg(),
        whole(cos)?.into_buffer_arg(),
        whole(sin)?.into_buffer_arg(),
        query.clone().into_buffer_arg(),
        here.key.clone().into_buffer_arg(),
        here.value.clone().into_buffer_arg(),
        rows * length * heads,
        heads,
        length,
        here.room(),
        here.filled,
        turned,
        (params.scale / usual) as f32,
        half,
        lines,
        params.norms.is_some(),
        element(qkv.dtype),
    );
    here.filled += length;
    let of_heads = Heads { query: &query, key: &here.key, value: &here.value, tokens: here.filled };
    let mixed: Tensor<3> = match attend(of_heads, usual) {
        Some(mixed) => tensor(mixed),
        None => {
            let mixed: Tensor<4> = mix(query, &here, usual);
            mixed.swap_dims(1, 2).reshape([rows, length, width])
        }
    };
    match (last, past) {
        (Some(scratch), Some(past)) => {
            *scratch = Some(here);
            *cached = Some(past);
        }
        _ => *cached = Some(here),
    }
    Some(mixed)
}
