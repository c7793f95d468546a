//! Attention for burn's CPU backend.

#[allow(unsafe_code)] // AMX tiles, loaded from slices whose lengths are checked first.
mod amx;
#[allow(unsafe_code)] // SIMD over rows whose number is checked first.
mod bias;
mod columns;
#[allow(unsafe_code)] // SIMD.
mod exp2;
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod flash;
mod layout;
mod packed_kv;
#[allow(unsafe_code)] // Tasks write to disjoint parts of the output.
mod parallel;
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod quantized_kv;
mod segment;
#[cfg(test)]
mod tests;
mod token_view;

use std::f64::consts::LOG2_E;

use burn::backend::flex::FlexTensor;
use burn::prelude::*;
use rayon::prelude::*;

use super::memory;
use super::tensor::{primitive, slice, tensor};
use crate::kernels::params::{AttentionParams, KvPart, Rotary, RowGroup};
use crate::kernels::tensors::values;
use bias::ScoreBias;
use packed_kv::PackedKv;
use parallel::{BatchRow, HeadConfig, attend};
use quantized_kv::QuantizedKv;
use segment::{CachedSegment, Segment};
use token_view::{Prologue, Strides, TokenView};

/// Keys and values of earlier scales: for each row, one segment per scale.
#[derive(Clone, Debug)]
pub(crate) struct CachedKv(Vec<Vec<CachedSegment>>);

/// Memory of the last scale's packed keys and values, one for each row.
pub(crate) type KvScratch = Vec<PackedKv>;

/// See [`crate::kernels::attention`]. Applies without a bias and with one that all heads share, `[batch or 1, 1, tokens, keys]`.
pub(crate) fn attention(operands: [&Tensor<4>; 3], bias: Option<&Tensor<4>>, scale: f64) -> Option<Tensor<4>> {
    let [query, key, value] = operands;
    let [batch, heads, tokens, head_dim] = query.dims();
    let keys = key.dims()[2];
    let bias = match bias {
        Some(bias) if bias.dims()[1..] == [1, tokens, keys] && [1, batch].contains(&bias.dims()[0]) => {
            Some((primitive(bias)?.to_contiguous(), bias.dims()[0] > 1))
        }
        Some(_) => return None,
        None => None,
    };
    let config = HeadConfig { heads, kv_heads: key.dims()[1], head_dim, bf16: false };
    let (query, key, value) = (primitive(query)?, primitive(key)?, primitive(value)?);
    let pack = |row: usize| {
        let (key, value) = (view(&key, row, 1.0)?, view(&value, row, 1.0)?);
        Some(PackedKv::default().pack(&key, &value, config.kv_heads, head_dim, config.bf16))
    };
    let packed = (0..batch).into_par_iter().map(pack).collect::<Option<Vec<_>>>()?;
    // The output has the layout of the queries, which is channels first in a feature map.
    let channels_first = query.layout().strides()[3] > query.layout().strides()[2];
    let (token, channel) = if channels_first { (1, tokens) } else { (head_dim, 1) };
    let batch_row = |row: usize| {
        let queries = view(&query, row, (scale * LOG2_E) as f32)?;
        let output = Strides { start: row * heads * tokens * head_dim, head: tokens * head_dim, token, channel };
        let bias = bias.as_ref().map(|(bias, each)| {
            let first = if *each { row * tokens * keys } else { 0 };
            ScoreBias { values: &slice(bias)[first..][..tokens * keys], keys }
        });
        Some(BatchRow { queries, segments: vec![Segment::Packed(&packed[row])], bias, output })
    };
    let rows = (0..batch).map(batch_row).collect::<Option<Vec<_>>>()?;
    let mut out = memory::unspecified(batch * heads * tokens * head_dim);
    attend(&rows, config, &mut out);
    Some(if channels_first {
        tensor::<4>(out, vec![batch, heads, head_dim, tokens]).swap_dims(2, 3)
    } else {
        tensor(out, vec![batch, heads, tokens, head_dim])
    }) // [batch, heads, tokens, head_dim]
}

/// Returns one row of `[batch, heads, tokens, head_dim]`; `None` for negative strides.
fn view(x: &FlexTensor, row: usize, scale: f32) -> Option<TokenView<'_>> {
    let [_, _, tokens, _] = x.layout().shape().to_vec().try_into().ok()?;
    let strides = x.layout().strides().iter().map(|&stride| usize::try_from(stride).ok());
    let strides: [usize; 4] = strides.collect::<Option<Vec<_>>>()?.try_into().ok()?;
    let [row_stride, head, token, channel] = strides;
    let strides = Strides { start: x.layout().start_offset() + row * row_stride, head, token, channel };
    Some(TokenView { data: x.storage(), strides, tokens, prologue: Prologue { scale, ..Prologue::NONE } })
}

/// Output of a block's QKV projection: tokens of all rows, each with its queries, keys and values, `[tokens, 3, heads, head_dim]`.
#[derive(Clone, Copy)]
struct Qkv<'a> {
    data: &'a [f32],
    /// `heads * head_dim`.
    width: usize,
    head_dim: usize,
}

/// One of the three parts of [`Qkv`].
#[derive(Clone, Copy)]
enum QkvPart {
    Query,
    Key,
    Value,
}

/// Tokens of one batch row.
#[derive(Clone, Copy)]
struct RowSpan {
    /// First token, counted over all rows.
    first: usize,
    group: RowGroup,
}

impl<'a> Qkv<'a> {
    fn view(&self, part: QkvPart, span: RowSpan, prologue: Prologue<'a>) -> TokenView<'a> {
        let start = (span.first * 3 + part as usize) * self.width;
        let strides = Strides { start, token: 3 * self.width, head: self.head_dim, channel: 1 };
        TokenView { data: self.data, strides, tokens: span.group.tokens, prologue }
    }
}

/// Returns the span of tokens of each row.
fn row_spans(groups: &[RowGroup]) -> Vec<RowSpan> {
    let mut first = 0;
    let span = |group: RowGroup| {
        let span = RowSpan { first, group };
        first += group.tokens;
        span
    };
    groups.iter().flat_map(|group| vec![*group; group.rows]).map(span).collect()
}

/// Cosines and sines of RoPE, `[tokens, head_dim]`.
#[derive(Clone, Copy)]
struct RopeTables<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    head_dim: usize,
    /// `true` if all rows share the tables of one row. Otherwise the tables hold the tokens of all rows.
    shared: bool,
}

impl<'a> RopeTables<'a> {
    /// Returns the tables from a row's first token on.
    fn row(&self, span: RowSpan) -> Option<(&'a [f32], &'a [f32])> {
        let from = if self.shared { 0 } else { span.first * self.head_dim };
        Some((&self.cos[from..], &self.sin[from..]))
    }
}

/// See [`crate::kernels::self_attention`]. Applies without a bias and with a KV cache.
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
    let [batch, length, width] = qkv.dims();
    let (total, width) = (batch * length, width / 3);
    let head_dim = width / params.heads;
    let config = HeadConfig { heads: params.heads, kv_heads: params.heads, head_dim, bf16: options.bf16 };
    let qkv = primitive(qkv)?.to_contiguous();
    let qkv = Qkv { data: qkv.as_slice()?, width, head_dim };
    let (query_bias, value_bias) = (primitive(&params.query_bias)?.to_contiguous(), primitive(&params.value_bias)?.to_contiguous());
    let query_norms = params.norms.clone().map(values);
    let ones = vec![1.0; config.heads];
    let key_norms = query_norms.is_some().then_some(&ones[..]);
    let Rotary { cos, sin } = rotary;
    let [rope_rows, _, rope_tokens, _] = cos.dims();
    let (cos, sin) = (primitive(cos)?.to_contiguous(), primitive(sin)?.to_contiguous());
    let shared = rope_rows * rope_tokens != total;
    let rope = RopeTables { cos: cos.as_slice()?, sin: sin.as_slice()?, head_dim, shared };
    let spans = row_spans(groups);
    assert_eq!(spans.iter().map(|span| span.group.tokens).sum::<usize>(), total, "groups hold all tokens");
    assert!(!shared || spans.iter().all(|span| span.group.tokens <= rope_tokens), "every token has its angles");

    // Pack the new keys and values, with bias, norm and RoPE.
    let mut scratch = last.as_mut().map(|scratch| std::mem::take(*scratch)).unwrap_or_default();
    scratch.resize_with(spans.len(), PackedKv::default);
    let pack = |(&span, scratch): (&RowSpan, PackedKv)| {
        let keys = Prologue { norms: key_norms, rope: rope.row(span), ..Prologue::NONE };
        let values = Prologue { bias: value_bias.as_slice(), ..Prologue::NONE };
        let (keys, values) = (qkv.view(QkvPart::Key, span, keys), qkv.view(QkvPart::Value, span, values));
        let packed = scratch.pack(&keys, &values, config.kv_heads, head_dim, config.bf16);
        packed.with_multiplicity(span.group.multiplicity)
    };
    let new: Vec<PackedKv> = spans.par_iter().zip(scratch).map(pack).collect();

    // Attend to the cached segments and the new one.
    let mut past = cached.take().map_or_else(|| vec![Vec::new(); spans.len()], |CachedKv(past)| past);
    let scale = (params.scale * LOG2_E) as f32;
    let rows = spans.iter().zip(&past).zip(&new).map(|((&span, past), new)| {
        let prologue = Prologue { bias: query_bias.as_slice(), norms: query_norms.as_deref(), rope: rope.row(span), scale };
        BatchRow {
            queries: qkv.view(QkvPart::Query, span, prologue),
            bias: None,
            segments: past.iter().map(CachedSegment::segment).chain([Segment::Packed(new)]).collect(),
            output: Strides { start: span.first * width, token: width, head: head_dim, channel: 1 },
        }
    });
    let mut out = memory::unspecified(total * width);
    attend(&rows.collect::<Vec<_>>(), config, &mut out);

    // Append the new segment to the cache.
    match last {
        // After the last scale, return its memory to the scratch and free the past.
        Some(scratch) => *scratch = new,
        None => {
            let segment = |new| match options.int8 {
                true => CachedSegment::Quantized(QuantizedKv::quantize(&new, head_dim)),
                false => CachedSegment::Packed(new),
            };
            past.iter_mut().zip(new).for_each(|(past, new)| past.push(segment(new)));
            *cached = Some(CachedKv(past));
        }
    }
    Some(tensor(out, vec![batch, length, width]))
}
