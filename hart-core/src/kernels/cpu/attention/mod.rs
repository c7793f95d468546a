//! Attention's bodies for burn's CPU backend. Each answers None where it doesn't apply, and the plain body does the work.

#[allow(unsafe_code)] // Registers of AMX, filled from slices whose lengths are checked first.
mod amx;
#[allow(unsafe_code)] // SIMD over slices whose lengths are checked first.
mod flash;
mod layout;
#[allow(unsafe_code)] // Tasks write to places of their own.
mod mix;
mod panels;
mod quantized;
mod rows;

use std::f64::consts::LOG2_E;

use burn::backend::flex::FlexTensor;
use burn::prelude::*;
use rayon::prelude::*;

use super::memory;
use super::tensor::{primitive, tensor};
use crate::kernels::params::{AttentionParams, KvPart, Rotary, RowGroup};
use crate::kernels::tensors::values;
use mix::{Heads, Keyed, Question, mix};
pub(crate) use panels::Panels;
use quantized::Rounded;
use rows::{Preparation, Rows, Strides};

/// Past keys and values: for each row, one part for each scale.
#[derive(Clone, Debug)]
pub(crate) struct CachedKv(Vec<Vec<CachedPart>>);

/// Keys and values of one row and one scale.
#[derive(Clone, Debug)]
enum CachedPart {
    Packed(Panels),
    Quantized(Rounded),
}

/// Panels of the last scale, for each row.
pub(crate) type KvScratch = Vec<Panels>;

impl CachedPart {
    fn keyed(&self) -> Keyed<'_> {
        match self {
            Self::Packed(panels) => Keyed::Packed(panels),
            Self::Quantized(quantized) => Keyed::Rounded(quantized),
        }
    }
}

/// See [`crate::kernels::attention`]; only without a bias.
pub(crate) fn attention(operands: [&Tensor<4>; 3], bias: Option<&Tensor<4>>, scale: f64) -> Option<Tensor<4>> {
    if bias.is_some() {
        return None;
    }
    let [query, key, value] = operands;
    let [batch, count, length, channels] = query.dims();
    let heads = Heads { count, groups: key.dims()[1], channels, pairs: false };
    let (query, key, value) = (primitive(query)?, primitive(key)?, primitive(value)?);
    let packed = |row: usize| {
        let (key, value) = (rows_of(&key, row, 1.0)?, rows_of(&value, row, 1.0)?);
        Some(Panels::default().packed(&key, &value, heads.groups, channels, false))
    };
    let packed = (0..batch).into_par_iter().map(packed).collect::<Option<Vec<_>>>()?;
    // Channel by channel where the queries are, as in a picture's map.
    let channels_first = query.layout().strides()[3] > query.layout().strides()[2];
    let (token, channel) = if channels_first { (1, length) } else { (channels, 1) };
    let question = |row: usize| {
        let to = Strides { start: row * count * length * channels, head: length * channels, token, channel };
        Some(Question { queries: rows_of(&query, row, (scale * LOG2_E) as f32)?, panels: vec![Keyed::Packed(&packed[row])], to })
    };
    let questions = (0..batch).map(question).collect::<Option<Vec<_>>>()?;
    let mut out = memory::unspecified(batch * count * length * channels);
    mix(&questions, heads, &mut out);
    Some(if channels_first {
        tensor::<4>(out, vec![batch, count, channels, length]).swap_dims(2, 3)
    } else {
        tensor(out, vec![batch, count, length, channels])
    })
}

/// One row of `[rows, heads, seq, dim]`.
fn rows_of(x: &FlexTensor, row: usize, scale: f32) -> Option<Rows<'_>> {
    let [_, _, tokens, _] = x.layout().shape().to_vec().try_into().ok()?;
    let strides = x.layout().strides().iter().map(|&stride| usize::try_from(stride).ok());
    let strides: [usize; 4] = strides.collect::<Option<Vec<_>>>()?.try_into().ok()?;
    let [from_row, head, token, channel] = strides;
    let strides = Strides { start: x.layout().start_offset() + row * from_row, head, token, channel };
    Some(Rows { numbers: x.storage(), strides, tokens, preparation: Preparation { scale, ..Preparation::NONE } })
}

/// Product of a block's first linear layer: tokens of all rows, each with its queries, keys and values side by side.
#[derive(Clone, Copy)]
struct Product<'a> {
    numbers: &'a [f32],
    /// Numbers of a token's queries.
    width: usize,
    /// Channels of a head.
    channels: usize,
}

/// What lies in a product.
#[derive(Clone, Copy)]
enum Of {
    Queries,
    Keys,
    Values,
}

/// Tokens of one row of the batch.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    group: RowGroup,
}

impl<'a> Product<'a> {
    fn rows(&self, of: Of, span: Span, preparation: Preparation<'a>) -> Rows<'a> {
        let start = (span.first * 3 + of as usize) * self.width;
        let strides = Strides { start, token: 3 * self.width, head: self.channels, channel: 1 };
        Rows { numbers: self.numbers, strides, tokens: span.group.tokens, preparation }
    }
}

fn spans(groups: &[RowGroup]) -> Vec<Span> {
    let mut first = 0;
    let of = |group: RowGroup| {
        let span = Span { first, group };
        first += group.tokens;
        span
    };
    groups.iter().flat_map(|group| vec![*group; group.rows]).map(of).collect()
}

/// Cosines and sines of the tokens from `first` on; where the rows share them, every row begins at the first.
#[derive(Clone, Copy)]
struct Tables<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    channels: usize,
    shared: bool,
}

impl<'a> Tables<'a> {
    fn of(&self, span: Span) -> Option<(&'a [f32], &'a [f32])> {
        let from = if self.shared { 0 } else { span.first * self.channels };
        Some((&self.cos[from..], &self.sin[from..]))
    }
}

/// See [`crate::kernels::self_attention`]; only without a bias, and with a KV cache.
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
    let heads = Heads { count: params.heads, groups: params.heads, channels: width / params.heads, pairs: options.bf16 };
    let qkv = primitive(qkv)?.to_contiguous();
    let product = Product { numbers: qkv.as_slice()?, width, channels: heads.channels };
    let (query_bias, value_bias) = (primitive(&params.query_bias)?.to_contiguous(), primitive(&params.value_bias)?.to_contiguous());
    let norms = params.norms.clone().map(values);
    let ones = vec![1.0; heads.count];
    let Rotary { cos, sin } = rotary;
    let [rotated_rows, _, rotated, _] = cos.dims();
    let (cos, sin) = (primitive(cos)?.to_contiguous(), primitive(sin)?.to_contiguous());
    let shared = rotated_rows * rotated != total;
    let turns = Tables { cos: cos.as_slice()?, sin: sin.as_slice()?, channels: heads.channels, shared };
    let spans = spans(groups);
    assert_eq!(spans.iter().map(|span| span.group.tokens).sum::<usize>(), total, "groups hold all tokens");
    assert!(!shared || spans.iter().all(|span| span.group.tokens <= rotated), "every token has its angles");

    let mut scratch = last.as_mut().map(|scratch| std::mem::take(*scratch)).unwrap_or_default();
    scratch.resize_with(spans.len(), Panels::default);
    let packed = |(&span, scratch): (&Span, Panels)| {
        let norms = norms.is_some().then_some(&ones[..]);
        let keys = Preparation { norms, rotation: turns.of(span), ..Preparation::NONE };
        let values = Preparation { bias: value_bias.as_slice(), ..Preparation::NONE };
        let (keys, values) = (product.rows(Of::Keys, span, keys), product.rows(Of::Values, span, values));
        scratch.packed(&keys, &values, heads.groups, heads.channels, heads.pairs).counting(span.group.multiplicity)
    };
    let new: Vec<Panels> = spans.par_iter().zip(scratch).map(packed).collect();
    let mut past = cached.take().map_or_else(|| vec![Vec::new(); spans.len()], |CachedKv(past)| past);
    let scale = (params.scale * LOG2_E) as f32;
    let questions = spans.iter().zip(&past).zip(&new).map(|((&span, past), new)| {
        let queries = Preparation { bias: query_bias.as_slice(), norms: norms.as_deref(), rotation: turns.of(span), scale };
        let to = Strides { start: span.first * width, token: width, head: heads.channels, channel: 1 };
        Question {
            queries: product.rows(Of::Queries, span, queries),
            panels: past.iter().map(CachedPart::keyed).chain([Keyed::Packed(new)]).collect(),
            to,
        }
    });
    let mut out = memory::unspecified(total * width);
    mix(&questions.collect::<Vec<_>>(), heads, &mut out);
    match last {
        // No scale follows: the past is freed.
        Some(scratch) => *scratch = new,
        None => {
            let part = |new| match options.int8 {
                true => CachedPart::Quantized(Rounded::of(&new, heads.channels)),
                false => CachedPart::Packed(new),
            };
            past.iter_mut().zip(new).for_each(|(past, new)| past.push(part(new)));
            *cached = Some(CachedKv(past));
        }
    }
    Some(tensor(out, vec![batch, length, width]))
}
