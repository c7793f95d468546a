//! The KV cache of one block.

use burn::prelude::*;

use super::params::{KvOptions, KvPart};
use super::{cpu, gpu};
use crate::device::Precision;

/// Keys and values of one group as plain tensors.
#[derive(Clone, Debug)]
pub(super) struct PlainKv {
    /// `[rows, heads, tokens, head_dim]`.
    pub(super) key: Tensor<4>,
    /// `[rows, heads, tokens, head_dim]`.
    pub(super) value: Tensor<4>,
    /// Logarithm of each token's multiplicity.
    pub(super) log_multiplicities: Vec<f32>,
}

impl PlainKv {
    fn append(self, new: Self) -> Self {
        Self {
            key: Tensor::cat(vec![self.key, new.key], 2),
            value: Tensor::cat(vec![self.value, new.value], 2),
            log_multiplicities: [self.log_multiplicities, new.log_multiplicities].concat(),
        }
    }
}

/// Keys and values of one block and all tokens so far, in the format of the backend that computed them.
#[derive(Clone, Debug)]
pub(crate) struct KvStore {
    options: KvOptions,
    /// Plain tensors for each group of rows, if no backend kernel has computed them.
    plain: Option<Vec<PlainKv>>,
    cpu: Option<cpu::CachedKv>,
    gpu: Option<gpu::CachedKv>,
}

/// Memory of the last scale's keys and values, which the blocks use in turn.
#[derive(Clone, Debug, Default)]
pub(crate) struct KvScratch {
    cpu: cpu::KvScratch,
    gpu: gpu::KvScratch,
}

impl KvStore {
    /// Creates an empty store for a model of this precision, with at most `capacity` tokens per row.
    pub(crate) fn new(precision: Precision, capacity: usize) -> Self {
        let options = KvOptions {
            bf16: matches!(precision, Precision::Bf16 | Precision::Int8),
            int8: precision == Precision::Int8,
            capacity,
        };
        Self { options, plain: None, cpu: None, gpu: None }
    }

    /// Borrows the store to append the keys and values of one scale.
    pub(crate) fn append(&mut self) -> KvAppend<'_> {
        KvAppend(Some(Append { store: self, last: None }))
    }

    /// Borrows the store for the last scale, whose keys and values are kept in `scratch` and not appended.
    pub(crate) fn append_last<'a>(&'a mut self, scratch: &'a mut KvScratch) -> KvAppend<'a> {
        KvAppend(Some(Append { store: self, last: Some(scratch) }))
    }
}

/// A block's past keys and values, and the destination of one scale's new ones.
pub(crate) struct KvAppend<'a>(Option<Append<'a>>);

struct Append<'a> {
    store: &'a mut KvStore,
    /// `Some` for the last scale.
    last: Option<&'a mut KvScratch>,
}

impl KvAppend<'_> {
    /// Attends to the new keys and values only, and stores nothing.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Returns the CPU's part; `None` without a store, or if another backend computed the past.
    pub(super) fn cpu(&mut self) -> Option<KvPart<'_, cpu::CachedKv, cpu::KvScratch>> {
        let Append { store, last } = self.0.as_mut()?;
        let part = KvPart { options: store.options, cached: &mut store.cpu, last: last.as_mut().map(|last| &mut last.cpu) };
        (store.plain.is_none() && store.gpu.is_none()).then_some(part)
    }

    /// Returns the GPU's part; `None` without a store, or if another backend computed the past.
    pub(super) fn gpu(&mut self) -> Option<KvPart<'_, gpu::CachedKv, gpu::KvScratch>> {
        let Append { store, last } = self.0.as_mut()?;
        let part = KvPart { options: store.options, cached: &mut store.gpu, last: last.as_mut().map(|last| &mut last.gpu) };
        (store.plain.is_none() && store.cpu.is_none()).then_some(part)
    }

    /// Stores the new keys and values and returns all that the new tokens attend to, for each group of rows.
    pub(super) fn append(self, new: Vec<PlainKv>) -> Vec<PlainKv> {
        let Some(Append { store, last }) = self.0 else { return new };
        let all = match store.plain.take() {
            Some(past) => past.into_iter().zip(new).map(|(past, new)| past.append(new)).collect(),
            None => new,
        };
        if last.is_none() {
            store.plain = Some(all.clone());
        }
        all
    }
}
