//! Evaluation of a model on images of seen and held-out prompts. It needs no other network: the images are drawings on plain
//! backgrounds, so their contents are detected by comparison with the drawings.
//!
//! The background is the median of the border. Everything that differs from it is an object: cropped, scaled, and compared with
//! every drawing of the data ([`references`]). The metrics, each a share of the prompts that mention the part, are:
//!
//! - `object_top1`, `object_top5`: single objects, as in training or on a held-out background, whose best match is the right
//!   concept, or with the right concept among the five best.
//! - `style`: these images whose best match has the requested style.
//! - `any_object_top1`, `any_object_top5`, `any_style`: the same for all images. Two objects are searched in both halves; of
//!   several equal objects, the largest counts.
//! - `background`: backgrounds of the right colour, the nearest of 16 in L\*a\*b\*.
//! - `relation_seen`, `relation_unseen`: prompts with two objects, both found (top-5), each in its half of the image;
//!   for prompts as in training, and for held-out pairs and orders.
//! - `count_seen`, `count_unseen`: prompts for several equal objects with the right number of objects.
//! - `position`: prompts for one object at a position, with its centre nearby.
//! - `all_right`: images in which everything is right, with every object by top-1.
//! - `shuffled_control`: `object_top1` of each image against another prompt. It must be near chance: one over the number of
//!   concepts, and up to four times that for two objects, which are searched in four arrangements. If it isn't, the images or the
//!   detection are biased.
//! - `ceilings`: the same metrics of true renders of the same prompts: the upper limit of the detection.
//! - `tokenizer`: the same metrics of these renders reconstructed by the model's tokenizer: the upper limit of the transformer and
//!   the residual diffusion.
//! - `hybrid_psnr_db`, `discrete_psnr_db`: PSNR of held-out renders reconstructed by the model's tokenizer, with the continuous
//!   residual and from the discrete codes alone.
//! - `nearest_training_distance`: [`quality::nearest_training_distance`]: near 0 if the model copies training images, 1 if its
//!   images are as different from them as fresh renders.

pub mod capabilities;
pub mod colour;
pub mod detection;
pub mod evaluation;
pub mod feature;
pub mod metrics;
pub mod prompts;
pub mod quality;
pub mod references;
pub mod report;
pub mod runner;
pub mod score;
pub mod segment;
pub mod sheet;
pub mod sweep;
