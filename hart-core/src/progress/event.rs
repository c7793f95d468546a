//! Events of a run, and their receiver.

use std::time::Duration;

use crate::error::Result;
use crate::image::Image;

/// The stages of a run, in the order of the data flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Prompt to context.
    Text,
    /// The autoregressive transformer, scale by scale.
    Transformer,
    /// Logits to codes, and codes to the latent.
    Sampling,
    /// The residual diffusion of the last scale.
    Residual,
    /// Latent to pixels. Encoding an image to start from also counts as this stage.
    Decode,
}

impl Stage {
    /// All stages in order.
    pub const ALL: [Self; 5] = [Self::Text, Self::Transformer, Self::Sampling, Self::Residual, Self::Decode];

    /// Returns the stage's name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Transformer => "transformer",
            Self::Sampling => "sampling",
            Self::Residual => "residual",
            Self::Decode => "decode",
        }
    }
}

/// The step of a run, or of opening a model, that an event reports.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Step {
    /// A layer of the text encoder is finished.
    TextLayer {
        /// Number of the layer, from 1.
        layer: usize,
        /// Total number of layers.
        layers: usize,
    },
    /// A scale begins.
    Scale {
        /// Number of the scale, k, from 1.
        scale: usize,
        /// Total number of scales, S.
        scales: usize,
        /// Side of the scale in latent positions.
        side: usize,
    },
    /// The codes of a scale have been added to the latent. The event has a preview.
    ScaleDone {
        /// Number of the scale, k, from 1.
        scale: usize,
        /// Total number of scales, S.
        scales: usize,
        /// Side of the scale in latent positions.
        side: usize,
    },
    /// A transformer block of the current scale is finished.
    Block {
        /// Number of the scale, k, from 1.
        scale: usize,
        /// Total number of scales, S.
        scales: usize,
        /// Number of the block, from 1.
        block: usize,
        /// Total number of blocks.
        blocks: usize,
    },
    /// A step of the residual diffusion is finished.
    Diffusion {
        /// Number of the step, from 1.
        step: usize,
        /// Total number of steps.
        steps: usize,
    },
    /// A block of the decoder is finished.
    Decoder {
        /// Number of the block, from 1.
        block: usize,
        /// Total number of blocks.
        blocks: usize,
    },
    /// An image is finished. The event's preview is that image.
    Images {
        /// Number of finished images.
        finished: usize,
        /// Number of requested images.
        total: usize,
    },
    /// A tensor is loaded. Only events of [`Hart::open_with`](crate::Hart::open_with) have this step; their stage is the one whose
    /// weights are loaded.
    Tensor {
        /// Number of the tensor, from 1.
        tensor: usize,
        /// Total number of tensors of the model.
        tensors: usize,
    },
}

/// A progress report of a run, or of opening a model.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Event<'a> {
    /// The current stage.
    pub stage: Stage,
    /// The step that has been completed or begun.
    pub step: Step,
    /// Time since the work began.
    pub elapsed: Duration,
    /// Estimated fraction of the whole work that is done, 0 to 1. Never decreases.
    pub fraction: f32,
    /// Index of the image that the event is about, from 0 in the order of [`Generation::images`](crate::Generation::images). Events of
    /// images that are generated at once alternate. A prompt is encoded for the first of its images; 0 when a model is opened.
    pub image_index: usize,
    pub(crate) preview: Option<&'a dyn Fn(usize) -> Result<Image>>,
    /// Returns the preview for a use after the event.
    pub(crate) owned_preview: Option<&'a dyn Fn() -> OwnedPreview>,
}

/// Decodes an image, given the maximum side in pixels.
pub(crate) type OwnedPreview = Box<dyn Fn(usize) -> Result<Image> + Send + Sync>;

impl Event<'_> {
    /// Returns whether the event has a preview: after every scale, and when an image is finished.
    pub fn has_preview(&self) -> bool {
        self.preview.is_some()
    }

    /// Decodes the current state of the image, with sides of at most `max_side` pixels, but at least the side of one latent
    /// position (16 in published models). `usize::MAX` is the full size. Returns `None` if the event has no preview.
    ///
    /// The image is decoded during this call. A small one costs little. The final image does not depend on it.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`](crate::Error::Cancelled) or [`Error::Overflow`](crate::Error::Overflow).
    pub fn preview(&self, max_side: usize) -> Option<Result<Image>> {
        self.preview.map(|decode| decode(max_side))
    }
}

impl std::fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Event")
            .field("stage", &self.stage)
            .field("step", &self.step)
            .field("elapsed", &self.elapsed)
            .field("fraction", &self.fraction)
            .field("image_index", &self.image_index)
            .field("has_preview", &self.has_preview())
            .finish()
    }
}

/// Return value of an observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Continues the run.
    Continue,
    /// Cancels the work as soon as possible. It returns [`Error::Cancelled`](crate::Error::Cancelled).
    Cancel,
}

/// Receives the events and images of a run, or the events of opening a model, on the thread that called
/// [`Hart::generate_with`](crate::Hart::generate_with) or [`Hart::open_with`](crate::Hart::open_with).
///
/// Any `FnMut(&Event<'_>) -> Control` is an observer. `()` ignores everything.
pub trait Observer {
    /// Receives an event. Called often, so it should return quickly. Images that are generated at once do not wait for it.
    fn event(&mut self, event: &Event<'_>) -> Control;

    /// Receives each finished image, in the order of [`Generation::images`](crate::Generation::images), just before the event with
    /// [`Step::Images`]. Images that are generated at once do not wait for it. Does nothing by default.
    fn image(&mut self, _: &Image) {}
}

impl<F: FnMut(&Event<'_>) -> Control> Observer for F {
    fn event(&mut self, event: &Event<'_>) -> Control {
        self(event)
    }
}

impl Observer for () {
    fn event(&mut self, _: &Event<'_>) -> Control {
        Control::Continue
    }
}
