//! Context to latent: scale by scale, then the residual diffusion.

use burn::prelude::Tensor;

use super::Hart;
use crate::device::{catch_backend_panic, is_cpu, synchronize};
use crate::error::Result;
use crate::image::Image;
use crate::kernels;
use crate::progress::{Progress, Stage, Step};
use crate::residual::Noise;
use crate::rng::RandomSource;
use crate::sampling::{self, Codes, SamplingParams};
use crate::scales::Scale;
use crate::text::Context;
use crate::transformer::{Hidden, State};
use crate::visual::{KnownTokens, Latent};

impl Hart {
    /// Context to latent: all scales, and the residual diffusion of the last one. One row of context makes one picture.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`](crate::Error::Cancelled), or [`Error::Overflow`](crate::Error::Overflow) if logits are not finite.
    pub fn sample(
        &self,
        context: Context,
        sampling: &SamplingParams,
        random: &dyn RandomSource,
        progress: &mut Progress<'_>,
    ) -> Result<Latent> {
        self.sample_from(None, context, sampling, random, progress)
    }

    /// As [`Self::sample`], starting from what is kept of a picture.
    ///
    /// # Errors
    ///
    /// As [`Self::sample`].
    pub fn sample_from(
        &self,
        known: Option<&KnownTokens>,
        context: Context,
        sampling: &SamplingParams,
        random: &dyn RandomSource,
        progress: &mut Progress<'_>,
    ) -> Result<Latent> {
        let known_or = |codes: Codes, latent: &Latent, scale: &Scale| match known {
            Some(known) => known.replace(codes, latent, self.visual.codebook(), scale),
            None => codes,
        };
        let _reuse = kernels::reuse_memory();
        let (batch, channels) = (context.rows(), self.config.visual.z_channels);
        let codebook = self.visual.codebook();
        progress.enter(Stage::Transformer);
        let mut state = State::new(self.transformer.condition(&context.with_unconditional()));
        let mut input = self.transformer.first_input(state.conditioning());
        let mut latent = Latent::zeros(batch, channels, self.config.transformer.last_side(), &self.device);
        for (scale, next) in self.scales.iter().zip(&self.scales[1..]) {
            let (_, codes) = self.predict(input, scale, &mut state, sampling, random, progress)?;
            let codes = known_or(codes, &latent, scale);
            latent = codebook.accumulate(latent, codes.features, scale);
            synchronize(self.kind, &self.device)?;
            self.report_preview(scale_done(scale), &latent, None, progress)?;
            // Both halves of the guided batch go on from the same latent.
            input = self.transformer.next_input(codebook.next_features(&latent, next), next).repeat_dim(0, 2);
        }
        let last = &self.scales[self.scales.len() - 1];
        let (hidden, codes) = self.predict(input, last, &mut state, sampling, random, progress)?;
        let codes = known_or(codes, &latent, last);
        latent = codebook.accumulate(latent, codes.features, last);
        // So that each stage's time is its own.
        synchronize(self.kind, &self.device)?;
        self.report_preview(scale_done(last), &latent, None, progress)?;
        progress.enter(Stage::Residual);
        let drawn = codebook.rows_of(codes.indices.repeat_dim(0, 2));
        let condition = self.transformer.residual_condition(&hidden, drawn);
        let noise = Noise { random, scale: last.index };
        let t = last.guidance(sampling.guidance);
        let residual = self.residual.sample(condition, t, &sampling.steps, &noise, progress)?;
        let latent = latent.plus_rows(residual.0);
        synchronize(self.kind, &self.device)?;
        Ok(match known {
            Some(known) => known.blend(latent),
            None => latent,
        })
    }

    /// Reports a step after which there is a picture to see: the finished one, or what the latent holds so far.
    pub(super) fn report_preview(
        &self,
        step: Step,
        latent: &Latent,
        finished: Option<&Image>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let cancel = progress.cancel_token();
        let decode = |max_side: usize| match finished {
            Some(image) if image.width().max(image.height()) <= max_side => Ok(image.clone()),
            _ => catch_backend_panic(self.kind, || self.visual.preview(latent, max_side, &mut Progress::new(&mut (), cancel, 1.0))),
        };
        progress.report_preview(step, &decode)
    }

    /// One scale: its tokens through the transformer, guided logits, codes.
    fn predict(
        &self,
        input: Tensor<3>,
        scale: &Scale,
        state: &mut State,
        sampling: &SamplingParams,
        random: &dyn RandomSource,
        progress: &mut Progress<'_>,
    ) -> Result<(Hidden, Codes)> {
        progress.enter(Stage::Transformer);
        progress.report(Step::Scale { scale: scale.index + 1, scales: scale.count, side: scale.side }, 0.0)?;
        // All context tokens go in at the first scale, and the last of them predicts its one image token.
        let hidden = self.transformer.forward(input, scale, state, progress)?.last(scale.tokens());
        let logits = sampling::guide(self.transformer.logits(&hidden, state.conditioning()), scale.guidance(sampling.guidance));
        if is_cpu(&self.device) {
            // A GPU is waited for once a scale, and what it took is the transformer's.
            progress.enter(Stage::Sampling);
        }
        let codes = sampling::sample(logits, &sampling.of_scale(scale), &self.codebook, scale, random)?;
        Ok((hidden, codes))
    }
}

fn scale_done(scale: &Scale) -> Step {
    Step::ScaleDone { scale: scale.index + 1, scales: scale.count, side: scale.side }
}
