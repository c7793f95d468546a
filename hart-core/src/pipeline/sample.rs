//! Sampling of a latent from a context: scale by scale, then the residual diffusion.

use burn::prelude::{Int, Tensor};

use super::Hart;
use crate::error::Result;
use crate::image::{DigitalSource, Image, Marks};
use crate::kernels;
use crate::progress::{CancelToken, OwnedPreview, Progress, Stage, Step};
use crate::residual::Noise;
use crate::rng::RandomSource;
use crate::sampling::{self, SamplingParams};
use crate::text::Context;
use crate::transformer::Hidden;
use crate::visual::{DecoderMemory, KnownTokens, Latent};

/// How the previews of a run are decoded, and how their files are marked.
#[derive(Clone, Copy)]
pub(super) struct Previews {
    pub(super) memory: DecoderMemory,
    pub(super) source: DigitalSource,
    pub(super) marks: Marks,
}

impl Hart {
    /// Samples latents from a context, one for each of its rows: all scales, then the residual of the last one.
    ///
    /// # Errors
    ///
    /// [`Error::Request`](crate::Error::Request) if the pruning does not fit the model, [`Error::Cancelled`](crate::Error::Cancelled), or
    /// [`Error::Overflow`](crate::Error::Overflow) if logits are not finite.
    pub fn sample(
        &self,
        context: Context,
        sampling: &SamplingParams,
        random: &dyn RandomSource,
        progress: &mut Progress<'_>,
    ) -> Result<Latent> {
        self.sample_from(None, context, sampling, random, progress)
    }

    /// Like [`Self::sample`], but with the known tokens of an image in place of the sampled ones.
    ///
    /// # Errors
    ///
    /// Like [`Self::sample`].
    pub fn sample_from(
        &self,
        known: Option<&KnownTokens>,
        context: Context,
        sampling: &SamplingParams,
        random: &dyn RandomSource,
        progress: &mut Progress<'_>,
    ) -> Result<Latent> {
        let source = if known.is_some() { DigitalSource::Composite } else { DigitalSource::Generated };
        let previews = Previews { memory: DecoderMemory::Full, source, marks: Marks::ALL };
        self.sample_with(previews, known, context, sampling, random, progress)
    }

    /// Like [`Self::sample_from`], with other previews.
    pub(super) fn sample_with(
        &self,
        previews: Previews,
        known: Option<&KnownTokens>,
        context: Context,
        sampling: &SamplingParams,
        random: &dyn RandomSource,
        progress: &mut Progress<'_>,
    ) -> Result<Latent> {
        let model = &*self.model;
        let (transformer, codebook, scales) = (&model.transformer, model.visual.codebook(), &model.scales);
        let _reuse = kernels::reuse_memory();
        progress.set_device(&model.device);
        progress.enter(Stage::Transformer);
        let side = model.config.transformer.last_side();
        let mut latent = Latent::zeros(context.rows(), model.config.visual.z_channels, side, &model.device.device);
        // Without guidance there is no unconditional half.
        let (context, halves) = if sampling.is_guided() { (context.with_unconditional(), 2) } else { (context, 1) };
        let mut state = transformer.begin(transformer.condition(&context), sampling.pruning.as_ref())?;
        let mut input = transformer.first_input(state.conditioning());
        let mut scale = &scales[0];
        let (hidden, indices) = loop {
            progress.enter(Stage::Transformer);
            let (number, count, side) = (scale.index + 1, scale.count, scale.side);
            progress.report(Step::Scale { scale: number, scales: count, side }, 0.0)?;
            // The first scale's input is all context tokens. The last of them predicts its only image token.
            let hidden = transformer.forward(input, scale, &mut state, progress)?.last(scale.tokens());
            let logits = transformer.logits(&hidden, state.conditioning());
            let logits = match sampling.is_guided() {
                true => sampling::guide(logits, scale.guidance(sampling.guidance)),
                false => logits,
            };
            progress.enter_if_synchronous(Stage::Sampling);
            let codes = sampling::sample(logits, &sampling.of_scale(scale), &model.codebook, scale, random)?;
            let codes = match known {
                Some(known) => known.replace(codes, &latent, codebook, scale),
                None => codes,
            };
            latent = codebook.accumulate(latent, codes.features, scale);
            progress.synchronize()?;
            self.report_preview(previews, Step::ScaleDone { scale: number, scales: count, side }, &latent, None, progress)?;
            let Some(next) = scales.get(scale.index + 1) else { break (hidden, codes.indices) };
            // Both halves of the guided batch continue from the same latent.
            input = transformer.next_input(codebook.next_features(&latent, next), next).repeat_dim(0, halves);
            scale = next;
        };
        let latent = self.add_residual(latent, &hidden, indices, sampling, random, progress)?;
        Ok(match known {
            Some(known) => known.blend(latent),
            None => latent,
        })
    }

    /// Adds the residual of the last scale, sampled by the diffusion, to the latent.
    fn add_residual(
        &self,
        latent: Latent,
        hidden: &Hidden,
        indices: Tensor<2, Int>,
        sampling: &SamplingParams,
        random: &dyn RandomSource,
        progress: &mut Progress<'_>,
    ) -> Result<Latent> {
        let model = &*self.model;
        let last = &model.scales[model.scales.len() - 1];
        progress.enter(Stage::Residual);
        let guidance = sampling.is_guided().then(|| last.guidance(sampling.guidance));
        let indices = if guidance.is_some() { indices.repeat_dim(0, 2) } else { indices };
        let indices = model.visual.codebook().rows_of(indices);
        let condition = model.transformer.residual_condition(hidden, indices);
        let noise = Noise { random, scale: last.index };
        let residual = model.residual.sample(condition, guidance, &sampling.steps, &noise, progress)?;
        let latent = latent.plus_rows(residual.0);
        progress.synchronize()?;
        Ok(latent)
    }

    /// Reports a step with a preview: the finished image, or the latent decoded so far.
    pub(super) fn report_preview(
        &self,
        previews: Previews,
        step: Step,
        latent: &Latent,
        finished: Option<&Image>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let cancel = progress.cancel_token();
        let decode = |max_side: usize| match finished {
            Some(image) if image.width().max(image.height()) <= max_side => Ok(image.clone()),
            _ => self.decode_preview(previews, latent, max_side, cancel),
        };
        progress.report_owned_preview(step, &decode, &|| self.owned_preview(previews, latent.clone(), cancel))
    }

    /// Returns a preview of a latent for any time.
    pub(super) fn owned_preview(&self, previews: Previews, latent: Latent, cancel: Option<&CancelToken>) -> OwnedPreview {
        let (hart, cancel) = (self.clone(), cancel.cloned());
        Box::new(move |max_side| hart.decode_preview(previews, &latent, max_side, cancel.as_ref()))
    }

    /// Decodes a latent to an image with sides of at most `max_side` pixels.
    pub(super) fn decode_preview(
        &self,
        previews: Previews,
        latent: &Latent,
        max_side: usize,
        cancel: Option<&CancelToken>,
    ) -> Result<Image> {
        let mut silent = ();
        let mut progress = Progress::new(&mut silent, cancel, 1.0);
        let preview = || self.model.visual.preview(previews.memory, latent, max_side, &mut progress);
        // Programs may save it as a file.
        Ok(self.model.device.catch_backend_panic(preview)?.with_source(previews.source, previews.marks))
    }
}
