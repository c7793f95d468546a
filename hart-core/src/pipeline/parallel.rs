//! The number of images that a model generates at once.

use super::Model;
use crate::error::Result;
use crate::memory::Run;
use crate::options::OpenOptions;
use crate::request::Request;
use crate::threads;

/// Operations of a transformer block that the threads divide, one after another.
const OPERATIONS_PER_BLOCK: usize = 8;
/// Least number of multiply-adds of such an operation, on average, for each thread that makes an image much faster.
const LEAST_WORK: f64 = 16e6;
/// Largest memory of an image, in bytes, with which at least two are generated at once: threads of different images wait less for each
/// other.
const PAIR_MEMORY: u64 = 512 << 20;

impl Model {
    /// Returns the number of images at once: that of the options, or one that suits the model.
    pub(super) fn parallel(&self, options: &OpenOptions) -> Result<usize> {
        if let Some(parallel) = options.parallel {
            return Ok(parallel);
        }
        if !self.device.is_synchronous() || !threads::CAN_START {
            return Ok(1);
        }
        let threads = self.threads.count()?;
        let least = if self.budget.run(&self.config, Run::ONE).working <= PAIR_MEMORY { 2 } else { 1 };
        let most = (threads / self.useful_threads()).max(least).min(threads);
        Ok(if most <= 1 { 1 } else { self.budget.images_at_once(&self.config, Run::ONE, most) })
    }

    /// Estimates the number of threads with which an image is generated much faster than with fewer.
    fn useful_threads(&self) -> usize {
        let operations = self.scales.len() * self.config.transformer.depth * OPERATIONS_PER_BLOCK;
        let work = self.image_work(&self.sampling(&Request::new("an image"))) / operations as f64;
        ((work / LEAST_WORK) as usize).max(1)
    }
}
