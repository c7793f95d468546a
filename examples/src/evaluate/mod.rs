//! Scores a model on pictures of prompts that it was and wasn't trained on, without any other network: the pictures are drawings on
//! one-coloured backgrounds, so what they show can be looked up among the drawings.
//!
//! A picture's background is the median of its border. What stands out of it is an object: cropped, shrunk, and compared with every
//! drawing of the data (`references`). From that come:
//!
//! - `object_top1`, `object_top5`: share of single objects, as in training or on a background that they never had, that are most
//!   alike the right concept, or among the five concepts that are most alike.
//! - `style`: share of these in which the most alike drawing is of the style asked for.
//! - `any_object_top1`, `any_object_top5`, `any_style`: the same of all pictures. Of two objects each is looked for on either side;
//!   of several alike, the largest is looked at.
//! - `background`: share of the backgrounds asked for that bear the right name, the nearest of 16 colours in L\*a\*b\*.
//! - `relation_seen`, `relation_unseen`: share of the prompts with two objects for which both are there (top-5), each in the half of the
//!   picture where it belongs; for prompts as in training, and for held-out pairs and orders.
//! - `count_seen`, `count_unseen`: share of the prompts for several objects with that many pieces.
//! - `place`: share of the prompts for one object at a place with its middle near it.
//! - `all_right`: share of the pictures in which all that was asked for is right, every object by top-1.
//! - `shuffled_control`: `object_top1` when each picture is compared with what another prompt asked for. It must be near chance, one
//!   over the number of concepts, and up to four times that for two objects, which are looked for in four ways; if it isn't, the pictures or the scorer favour something whatever was asked for.
//! - `ceilings`: the same figures of true renders of the same contents: what the scorer sees of a perfect model.
//! - `tokenizer`: the same figures of these renders through the model's tokenizer and back: what a perfect transformer and residual
//!   diffusion would reach.
//! - `hybrid_psnr_db`, `discrete_psnr_db`: how well held-out pictures survive the model's tokenizer, with the continuous rest and from
//!   the discrete codes alone.
//! - `nearest_training_distance`: [`quality::nearest_training_distance`]: near 0 the model copies, at 1 its pictures are as new as fresh
//!   drawings of the same thing.

pub mod colour;
pub mod draw;
pub mod exam;
pub mod feature;
pub mod figures;
pub mod knows;
pub mod prompts;
pub mod quality;
pub mod references;
pub mod report;
pub mod score;
pub mod segment;
pub mod sheet;
pub mod sweep;
