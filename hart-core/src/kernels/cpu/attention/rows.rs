//! Where queries, keys and values lie, and what is done to them on their way into attention.

use crate::kernels::params::MIN_NORM;

/// Distances between numbers of one row of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strides {
    /// Where the row begins.
    pub(super) start: usize,
    /// From one token to the next.
    pub(super) token: usize,
    /// From one head to the next.
    pub(super) head: usize,
    /// From one channel to the next.
    pub(super) channel: usize,
}

impl Strides {
    pub(super) fn at(&self, token: usize, head: usize) -> usize {
        self.start + token * self.token + head * self.head
    }

    /// One more than the place of the last number.
    pub(super) fn end(&self, tokens: usize, heads: usize, channels: usize) -> usize {
        if tokens * heads * channels == 0 { 0 } else { self.at(tokens - 1, heads - 1) + (channels - 1) * self.channel + 1 }
    }
}

/// Queries, keys or values of one row of a batch, as a product left them.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) strides: Strides,
    /// How many tokens there are.
    pub(super) tokens: usize,
    pub(super) preparation: Preparation<'a>,
}

/// What is done to them, in this order.
#[derive(Clone, Copy)]
pub(super) struct Preparation<'a> {
    /// Added: a number for each head and channel.
    pub(super) bias: Option<&'a [f32]>,
    /// Norms that the heads are brought to.
    pub(super) norms: Option<&'a [f32]>,
    /// Rotated by so many cosines and sines, `[tokens][channels]`.
    pub(super) rotation: Option<(&'a [f32], &'a [f32])>,
    /// Multiplied.
    pub(super) scale: f32,
}

impl Preparation<'_> {
    /// Nothing is done.
    pub(super) const NONE: Self = Self { bias: None, norms: None, rotation: None, scale: 1.0 };
}

impl Rows<'_> {
    /// One token's numbers in one head, prepared; `bare` has room for as many.
    #[inline(always)]
    pub(super) fn prepare(&self, token: usize, head: usize, bare: &mut [f32], to: &mut [f32]) {
        let channels = bare.len();
        let (does, stride) = (&self.preparation, self.strides.channel);
        let from = &self.numbers[self.strides.at(token, head)..];
        let bias = does.bias.map(|bias| &bias[head * channels..][..channels]);
        let x: &[f32] = if stride == 1 && bias.is_none() {
            &from[..channels]
        } else {
            match bias {
                Some(bias) if stride == 1 => {
                    bare.iter_mut().zip(from.iter().zip(bias)).for_each(|(to, (x, bias))| *to = x + bias);
                }
                bias => {
                    bare.iter_mut().zip(from.iter().step_by(stride)).for_each(|(to, x)| *to = *x);
                    bare.iter_mut().zip(bias.into_iter().flatten()).for_each(|(to, bias)| *to += bias);
                }
            }
            bare
        };
        let mut factor = does.scale;
        if let Some(norms) = does.norms {
            let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
            factor *= norms[head] / norm.max(MIN_NORM);
        }
        let Some((cos, sin)) = does.rotation else {
            to.iter_mut().zip(x).for_each(|(to, x)| *to = x * factor);
            return;
        };
        let half = channels / 2;
        let (x, y) = (&x[..half], &x[half..][..half]);
        let (cos, sin) = (&cos[token * channels..][..channels], &sin[token * channels..][..channels]);
        let ((cos_x, cos_y), (sin_x, sin_y)) = (cos.split_at(half), sin.split_at(half));
        let (to_x, to_y) = to[..2 * half].split_at_mut(half);
        for i in 0..half {
            to_x[i] = (x[i] * cos_x[i] - y[i] * sin_x[i]) * factor;
            to_y[i] = (y[i] * cos_y[i] + x[i] * sin_y[i]) * factor;
        }
    }
}

/// A word of two numbers rounded to bf16, ties to even. A processor's own NaN stays one.
#[inline(always)]
pub(super) fn pair(low: f32, high: f32) -> f32 {
    let rounded = |x: f32| x.to_bits().wrapping_add(0x7fff + (x.to_bits() >> 16 & 1));
    f32::from_bits(rounded(low) >> 16 | rounded(high) & 0xffff_0000)
}
