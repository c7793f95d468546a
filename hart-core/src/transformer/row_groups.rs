//! Deduplication of the equal tokens of a batch.

use burn::prelude::*;

use super::block::BlockModulation;
use crate::device::is_cpu;
use crate::kernels::{self, RowGroup};
use crate::text::Context;

/// The number of tokens that each row of a batch runs through the blocks.
///
/// All context tokens of an unconditional row are equal: zeros at the same position, which attend to the same keys. One of them is
/// computed for all T, and as a key it counts T times: `ln T` is added to its scores.
#[derive(Clone, Debug)]
pub(super) struct RowGroups {
    /// Groups of consecutive rows. The last group has the unconditional rows.
    pub(super) groups: Vec<RowGroup>,
    /// Number of tokens in each row outside of the blocks.
    tokens: usize,
}

impl RowGroups {
    /// Returns the groups of a context's tokens.
    pub(super) fn of_context(context: &Context) -> Self {
        let (rows, tokens) = (context.rows(), context.mask.first().map_or(0, Vec::len));
        // A GPU is faster with rows of one length than with fewer tokens.
        let is_deduplicated = tokens > 0 && is_cpu(&context.hidden.device());
        let equal = if is_deduplicated { context.unconditional.min(rows) } else { 0 };
        let groups =
            [RowGroup { rows: rows - equal, tokens, multiplicity: 1 }, RowGroup { rows: equal, tokens: 1, multiplicity: tokens }];
        Self { groups: groups.into_iter().filter(|group| group.rows > 0).collect(), tokens }
    }

    /// Returns the groups of a later scale: the same rows, with all of their `tokens` different.
    pub(super) fn with_tokens(&self, tokens: usize) -> Self {
        let groups = self.groups.iter().map(|group| RowGroup { tokens, multiplicity: 1, ..*group }).collect();
        Self { groups, tokens }
    }

    /// Returns the number of tokens in each row outside of the blocks.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Returns the number of tokens N that run through the blocks.
    pub(super) fn total(&self) -> usize {
        self.groups.iter().map(RowGroup::total).sum()
    }

    /// Returns whether a token stands for several equal ones.
    fn has_duplicates(&self) -> bool {
        self.groups.iter().any(|group| group.tokens != self.tokens)
    }

    /// Keeps only one of several equal tokens: `[R, L, C]` to `[1, N, C]`. Returns x unchanged if no tokens are equal.
    pub(super) fn deduplicate(&self, x: Tensor<3>) -> Tensor<3> {
        if !self.has_duplicates() {
            return x;
        }
        let mut row = 0;
        let part = |group: &RowGroup| {
            let part = x.clone().narrow(0, row, group.rows).narrow(1, 0, group.tokens);
            row += group.rows;
            part.reshape([1, group.total(), x.dims()[2]]) // [1, tokens of the group, channels]
        };
        Tensor::cat(self.groups.iter().map(part).collect(), 1)
    }

    /// Repeats tokens that stand for several; the inverse of [`Self::deduplicate`].
    pub(super) fn expand(&self, x: Tensor<3>) -> Tensor<3> {
        if !self.has_duplicates() {
            return x;
        }
        let mut token = 0;
        let part = |group: &RowGroup| {
            let part = x.clone().narrow(1, token, group.total());
            token += group.total();
            let part = part.reshape([group.rows, group.tokens, x.dims()[2]]); // [rows of the group, tokens, channels]
            part.repeat_dim(1, self.tokens / group.tokens)
        };
        Tensor::cat(self.groups.iter().map(part).collect(), 0)
    }

    /// Like [`Self::deduplicate`], for a list with one value for each token, `[R][L]` to `[1][N]`.
    pub(super) fn deduplicate_list<T: Copy>(&self, rows: &[Vec<T>]) -> Vec<Vec<T>> {
        if !self.has_duplicates() {
            return rows.to_vec();
        }
        vec![rows.iter().zip(self.tokens_of_rows()).flat_map(|(row, tokens)| row[..tokens].iter().copied()).collect()]
    }

    /// Returns a block's modulation for tokens `[1, N, C]`. If no tokens are equal, it stays the modulation of each row.
    pub(super) fn modulation(&self, modulation: &BlockModulation, device: &Device) -> BlockModulation {
        let branches = modulation.as_ref()?;
        if !self.has_duplicates() {
            return Some(branches.clone());
        }
        let rows: Vec<usize> = self.tokens_of_rows().enumerate().flat_map(|(row, tokens)| vec![row; tokens]).collect();
        let rows = kernels::indices(&rows, device);
        Some([branches[0].per_token(&rows), branches[1].per_token(&rows)])
    }

    /// Returns the number of tokens of each row.
    fn tokens_of_rows(&self) -> impl Iterator<Item = usize> {
        self.groups.iter().flat_map(|group| vec![group.tokens; group.rows])
    }
}
