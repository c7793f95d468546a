//! The hybrid visual tokenizer: from images to codes and residuals, and back (spec sections 5 and 6).
//!
//! Letters in shapes: B images; H and W their height and width in pixels; h and w those of the latent in positions; Z channels of the
//! latent; L tokens of a scale; V rows of the codebook; S scales.

mod blocks;
mod codebook;
mod decoder;
mod encoder;
mod known_tokens;
pub(crate) mod resample;

pub use codebook::Codebook;
pub(crate) use decoder::COMPACT_LEVELS;
pub use decoder::{Decoder, DecoderMemory};
pub use encoder::Encoder;
pub use known_tokens::KnownTokens;

use std::path::Path;

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::prelude::*;

use crate::config::VisualConfig;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::kernels;
use crate::nn;
use crate::options::OpenOptions;
use crate::progress::Progress;
use crate::weights::{Checkpoint, LoadReport, Loader, TensorProgress, VISUAL};

/// The latent, `[B, Z, h, w]`: the sum of all scales so far, the paper's f-hat.
#[derive(Clone, Debug)]
pub struct Latent(pub Tensor<4>);

impl Latent {
    /// Returns the latent before the first scale, all zeros.
    pub fn zeros(batch: usize, channels: usize, side: usize, device: &Device) -> Self {
        Self(kernels::tensor(vec![0.0; batch * channels * side * side], [batch, channels, side, side], device))
    }

    /// Adds the features of tokens of the latent's side, `[B, h w, Z]`.
    pub fn plus_rows(self, rows: Tensor<3>) -> Self {
        self.plus(resample::to_map(rows))
    }

    fn plus(self, map: Tensor<4>) -> Self {
        Self(self.0 + map)
    }
}

/// The tokens of images.
#[derive(Clone, Debug)]
pub struct ImageTokens {
    /// Codes of every scale, `[S][B][side^2]`.
    pub codes: Vec<Vec<Vec<u32>>>,
    /// Continuous tokens of the last scale, `[B, h w, Z]`: the features minus all earlier scales. The diffusion learns the
    /// residuals, which are these tokens minus the codebook rows of the last scale.
    pub continuous: Tensor<3>,
    /// Features of the latent before each scale but the first, `[B, tokens of these scales, Z]`: the transformer's inputs in training.
    pub inputs: Tensor<3>,
    /// The encoder's features, `[B, Z, h, w]`.
    pub features: Tensor<4>,
}

impl ImageTokens {
    /// Returns the latent of codes and residuals, which is equal to the encoder's features.
    pub fn hybrid(&self) -> Latent {
        Latent(self.features.clone())
    }
}

/// The visual tokenizer.
#[derive(Module, Debug)]
pub struct VisualTokenizer {
    encoder: Encoder,
    quant_conv: Conv2d,
    pub(crate) codebook: Codebook,
    post_quant_conv: Conv2d,
    decoder: Decoder,
    #[module(skip)]
    pub(crate) config: VisualConfig,
}

impl VisualTokenizer {
    /// Creates the tokenizer with weights that are yet to be loaded.
    pub fn init(config: &VisualConfig, device: &Device) -> Self {
        let quant_conv = || blocks::conv(config.z_channels, config.z_channels, config.quant_conv_kernel, device);
        Self {
            encoder: Encoder::init(config, device),
            quant_conv: quant_conv(),
            codebook: Codebook::init(config, device),
            post_quant_conv: quant_conv(),
            decoder: Decoder::init(config, device),
            config: config.clone(),
        }
    }

    /// Opens a visual tokenizer's folder, with `config.json` and weights.
    ///
    /// # Errors
    ///
    /// A file is missing or damaged, or the tensors don't fit the configuration.
    pub fn open(folder: &Path, options: &OpenOptions, device: &Device) -> Result<(Self, LoadReport)> {
        let storage = options.disk();
        let config = VisualConfig::read_in(&storage, &folder.join("config.json"))?;
        Self::load(&Checkpoint::open_in(&storage, folder)?, &config, options, device, Precision::F32, &mut |_| Ok(()))
    }

    /// Loads the weights of a checkpoint in `precision`.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        config: &VisualConfig,
        options: &OpenOptions,
        device: &Device,
        precision: Precision,
        progress: &mut TensorProgress<'_>,
    ) -> Result<(Self, LoadReport)> {
        let mut loader = Loader::new(checkpoint, &VISUAL).with_precision(precision).with_progress(progress);
        if !config.has_phi() {
            loader.allow_unused("quantize.quant_resi");
        }
        let tokenizer = loader.load(Self::init(config, device), "", device)?;
        Ok((tokenizer, loader.finish(options.strict)?))
    }

    /// Returns the codebook.
    pub fn codebook(&self) -> &Codebook {
        &self.codebook
    }

    /// Returns the side of images in pixels.
    pub fn resolution(&self) -> usize {
        self.config.sides[self.config.sides.len() - 1] * self.config.downsample()
    }

    /// Estimates the multiply-adds of decoding one latent, for progress.
    pub(crate) fn decode_work(&self, side: usize) -> f64 {
        self.decoder.work(side)
    }

    /// Encodes images to features.
    ///
    /// # Shapes
    ///
    /// - pixels: `[B, 3, H, W]`, values -1 to 1
    /// - output: `[B, Z, h, w]`
    pub fn encode(&self, pixels: Tensor<4>) -> Tensor<4> {
        nn::conv2d(self.encoder.forward(pixels), &self.quant_conv)
    }

    /// Quantises features to tokens of all scales.
    ///
    /// # Shapes
    ///
    /// - features: `[B, Z, h, w]` from [`Self::encode`]
    pub fn tokenize(&self, features: Tensor<4>) -> ImageTokens {
        self.codebook.tokenize(features, &self.config.sides)
    }

    /// Encodes images and quantises them to tokens of all scales.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if there are no images, or the side of one is not [`Self::resolution`].
    pub fn tokenize_images(&self, images: &[Image]) -> Result<ImageTokens> {
        let side = self.resolution();
        if images.is_empty() {
            return Err(Error::request("image", "missing: expected at least one"));
        }
        for image in images {
            if (image.width(), image.height()) != (side, side) {
                let problem =
                    format!("has {} x {} pixels, the model reads {side} x {side}: resize it", image.width(), image.height());
                return Err(Error::request("image", problem));
            }
        }
        let device = self.quant_conv.weight.lazy_device();
        let values = Image::planes_of(images);
        Ok(self.tokenize(self.encode(kernels::tensor(values, [images.len(), 3, side, side], &device))))
    }

    /// Returns the latent of the codes alone, without residuals.
    pub fn discrete(&self, tokens: &ImageTokens) -> Latent {
        self.codebook.discrete(tokens, &self.config.sides)
    }

    /// Decodes a latent to pixels.
    ///
    /// # Shapes
    ///
    /// - output: `[B, 3, H, W]`, values -1 to 1
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`].
    pub fn decode(&self, latent: &Latent, progress: &mut Progress<'_>) -> Result<Tensor<4>> {
        self.decode_with(DecoderMemory::Full, latent, progress)
    }

    /// Like [`Self::decode`], but with the given memory of the decoder.
    ///
    /// # Errors
    ///
    /// Like [`Self::decode`].
    pub fn decode_with(&self, memory: DecoderMemory, latent: &Latent, progress: &mut Progress<'_>) -> Result<Tensor<4>> {
        Ok(self.decode_unclamped(memory, latent, progress)?.clamp(-1.0, 1.0))
    }

    /// Like [`Self::decode_with`], but values may lie beyond -1 and 1.
    pub(crate) fn decode_unclamped(
        &self,
        memory: DecoderMemory,
        latent: &Latent,
        progress: &mut Progress<'_>,
    ) -> Result<Tensor<4>> {
        let features = nn::conv2d(latent.0.clone(), &self.post_quant_conv);
        Ok(kernels::to_f32(self.decoder.forward(features, memory, progress)?))
    }

    /// Decodes the first image of a latent with sides of at most `max_side` pixels, but at least the side of one latent position. A
    /// smaller image is decoded from the downsampled latent.
    ///
    /// # Errors
    ///
    /// Like [`Self::decode_images`].
    pub fn preview(&self, memory: DecoderMemory, latent: &Latent, max_side: usize, progress: &mut Progress<'_>) -> Result<Image> {
        let first = latent.0.clone().narrow(0, 0, 1);
        let side = (max_side / self.config.downsample()).clamp(1, first.dims()[2]);
        Ok(self.decode_images_with(memory, &Latent(kernels::area(first, side)), progress)?.swap_remove(0))
    }

    /// Decodes a latent to images.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`], or [`Error::Overflow`] if a pixel is not finite.
    pub fn decode_images(&self, latent: &Latent, progress: &mut Progress<'_>) -> Result<Vec<Image>> {
        self.decode_images_with(DecoderMemory::Full, latent, progress)
    }

    /// Like [`Self::decode_images`], but with the given memory of the decoder.
    ///
    /// # Errors
    ///
    /// Like [`Self::decode_images`].
    pub fn decode_images_with(&self, memory: DecoderMemory, latent: &Latent, progress: &mut Progress<'_>) -> Result<Vec<Image>> {
        // Clamping would hide an infinity. The conversion to levels clamps too.
        let pixels = self.decode_unclamped(memory, latent, progress)?;
        let [_, channels, height, width] = pixels.dims();
        let values = kernels::values(pixels);
        values.chunks(channels * height * width).map(|planes| Image::from_planes(planes, width, height)).collect()
    }
}
