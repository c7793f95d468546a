//! Queries, keys and values as a projection stores them, and the operations that are fused into reading them.

use crate::kernels::params::MIN_NORM;

/// Memory layout of one batch row, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strides {
    /// Offset of the row.
    pub(super) start: usize,
    pub(super) token: usize,
    pub(super) head: usize,
    pub(super) channel: usize,
}

impl Strides {
    /// Returns the offset of a token's first channel in a head.
    pub(super) fn offset(&self, token: usize, head: usize) -> usize {
        self.start + token * self.token + head * self.head
    }

    /// Returns the offset after the last element, or 0 if there is none.
    pub(super) fn end(&self, tokens: usize, heads: usize, channels: usize) -> usize {
        if tokens * heads * channels == 0 { 0 } else { self.offset(tokens - 1, heads - 1) + (channels - 1) * self.channel + 1 }
    }
}

/// Queries, keys or values of one batch row.
#[derive(Clone, Copy)]
pub(super) struct TokenView<'a> {
    pub(super) data: &'a [f32],
    pub(super) strides: Strides,
    /// Number of tokens.
    pub(super) tokens: usize,
    pub(super) prologue: Prologue<'a>,
}

/// Operations that are applied to each token when it is read, in the order of the fields.
#[derive(Clone, Copy)]
pub(super) struct Prologue<'a> {
    /// Bias, `[heads][channels]`.
    pub(super) bias: Option<&'a [f32]>,
    /// L2 norms that the heads are scaled to, `[heads]`.
    pub(super) norms: Option<&'a [f32]>,
    /// Cosines and sines of RoPE, each `[tokens][channels]`.
    pub(super) rope: Option<(&'a [f32], &'a [f32])>,
    /// Factor of all channels.
    pub(super) scale: f32,
}

impl Prologue<'_> {
    /// The identity.
    pub(super) const NONE: Self = Self { bias: None, norms: None, rope: None, scale: 1.0 };
}

impl TokenView<'_> {
    /// Reads the channels of one token and head into `to` and applies the prologue. `temp` has one element per channel.
    #[inline(always)]
    pub(super) fn load(&self, token: usize, head: usize, temp: &mut [f32], to: &mut [f32]) {
        let channels = temp.len();
        let (prologue, stride) = (&self.prologue, self.strides.channel);
        let from = &self.data[self.strides.offset(token, head)..];
        // Add the bias.
        let bias = prologue.bias.map(|bias| &bias[head * channels..][..channels]);
        let x: &[f32] = if stride == 1 && bias.is_none() {
            &from[..channels]
        } else {
            match bias {
                Some(bias) if stride == 1 => {
                    temp.iter_mut().zip(from.iter().zip(bias)).for_each(|(to, (x, bias))| *to = x + bias);
                }
                bias => {
                    temp.iter_mut().zip(from.iter().step_by(stride)).for_each(|(to, x)| *to = *x);
                    temp.iter_mut().zip(bias.into_iter().flatten()).for_each(|(to, bias)| *to += bias);
                }
            }
            temp
        };
        // L2-normalise. RoPE keeps the norm, so the factor is applied with the scale at the end.
        let mut factor = prologue.scale;
        if let Some(norms) = prologue.norms {
            let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
            factor *= norms[head] / norm.max(MIN_NORM);
        }
        // Apply RoPE.
        let Some((cos, sin)) = prologue.rope else {
            to.iter_mut().zip(x).for_each(|(to, x)| *to = x * factor);
            return;
        };
        let half = channels / 2;
        let (x1, x2) = (&x[..half], &x[half..][..half]);
        let (cos, sin) = (&cos[token * channels..][..channels], &sin[token * channels..][..channels]);
        let ((cos1, cos2), (sin1, sin2)) = (cos.split_at(half), sin.split_at(half));
        let (to1, to2) = to[..2 * half].split_at_mut(half);
        for i in 0..half {
            to1[i] = (x1[i] * cos1[i] - x2[i] * sin1[i]) * factor;
            to2[i] = (x2[i] * cos2[i] + x1[i] * sin2[i]) * factor;
        }
    }
}
