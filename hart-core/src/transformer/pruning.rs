//! Pruned scales (FastVAR, arXiv 2503.23367): a branch of a block computes only the tokens farthest from their mean. The others take the
//! branch's outputs of the cache scale, the last scale that is not pruned.

use burn::prelude::*;

use crate::device::Precision;
use crate::kernels::{self, KeptTokens, RowGroup, TokenMap};
use crate::nn::RotaryEmbedding;
use crate::pruning::Pruning;
use crate::scales::Scale;

/// The tokens that run through a block: their angles, and how they are divided among the rows.
#[derive(Clone, Debug)]
pub(super) struct BlockTokens {
    pub(super) rotation: RotaryEmbedding,
    pub(super) groups: Vec<RowGroup>,
}

/// The state of a pruned run.
#[derive(Clone, Debug)]
pub(super) struct PrunedRun {
    plan: Pruning,
    /// That of each block.
    blocks: Vec<PrunedBlock>,
}

impl PrunedRun {
    pub(super) fn new(plan: Pruning, blocks: usize) -> Self {
        Self { plan, blocks: vec![PrunedBlock::default(); blocks] }
    }

    /// Returns the number of tokens of a scale that are computed.
    pub(super) fn kept(&self, scale: &Scale) -> usize {
        self.plan.kept(scale)
    }

    /// Returns the selection of a block's tokens at a scale.
    pub(super) fn selection(&mut self, block: usize, scale: &Scale, precision: Precision) -> Selection<'_> {
        let block = &mut self.blocks[block];
        if self.plan.prunes(scale) {
            Selection::Pruned { block, count: self.plan.kept(scale), is_last: scale.is_last() }
        } else if self.plan.is_stored(scale) {
            Selection::Stored { block, precision }
        } else {
            Selection::All
        }
    }

    /// Returns the positions of the tokens that a block's attention and feed-forward branch computed at the latest pruned scale.
    pub(super) fn kept_tokens(&self, block: usize) -> Option<[&[Vec<u32>]; 2]> {
        let [attention, feed_forward] = &self.blocks.get(block)?.kept;
        Some([attention.as_ref()?.positions(), feed_forward.as_ref()?.positions()])
    }
}

/// The two branches of a block, as indices.
#[derive(Clone, Copy, Debug)]
pub(super) enum BranchKind {
    Attention,
    FeedForward,
}

/// The state of a block in a pruned run, for each of its branches.
#[derive(Clone, Debug, Default)]
pub(super) struct PrunedBlock {
    /// Outputs at the cache scale. The last scale frees them.
    maps: [Option<TokenMap>; 2],
    /// The tokens that were computed at the latest pruned scale.
    kept: [Option<KeptTokens>; 2],
}

/// The tokens of a scale that the branches of a block compute, and the outputs of the others.
#[derive(Debug)]
pub(super) enum Selection<'a> {
    /// All tokens.
    All,
    /// All tokens. Their outputs are stored for the scales that are pruned.
    Stored { block: &'a mut PrunedBlock, precision: Precision },
    /// The `count` tokens of each row that are farthest from the row's mean.
    Pruned { block: &'a mut PrunedBlock, count: usize, is_last: bool },
}

impl Selection<'_> {
    /// Returns whether a branch computes all tokens.
    pub(super) fn is_all(&self) -> bool {
        !matches!(self, Self::Pruned { .. })
    }

    /// Returns the tokens that a branch computes, given its input before the norm.
    ///
    /// # Shapes
    ///
    /// - x: `[R, L, C]`
    /// - output: `[R, kept, C]`
    pub(super) fn select(&mut self, branch: BranchKind, x: &Tensor<3>) -> Tensor<3> {
        let Self::Pruned { block, count, .. } = self else { return x.clone() };
        let tokens = x.dims()[1];
        let distances = kernels::squared_distances(x);
        let positions = distances.chunks_exact(tokens).map(|distances| farthest(distances, *count)).collect();
        let kept = KeptTokens::new(positions, tokens, &x.device());
        let selected = kernels::select_tokens(x.clone(), &kept);
        block.kept[branch as usize] = Some(kept);
        selected
    }

    /// Returns the angles and the groups of the tokens that the attention computes.
    pub(super) fn tokens(&self, all: &BlockTokens) -> BlockTokens {
        match self.kept(BranchKind::Attention) {
            None => all.clone(),
            Some(kept) => BlockTokens {
                rotation: all.rotation.kept(kept),
                groups: all.groups.iter().map(|group| RowGroup { tokens: kept.count(), ..*group }).collect(),
            },
        }
    }

    /// Stores the outputs of a branch if later scales need them.
    ///
    /// # Shapes
    ///
    /// - y: `[R, L, C]`
    /// - gate: `[R, 1, C]`
    pub(super) fn store(&mut self, branch: BranchKind, y: &Tensor<3>, gate: Option<&Tensor<3>>) {
        if let Self::Stored { block, precision } = self {
            block.maps[branch as usize] = Some(TokenMap::new(gated(y.clone(), gate), *precision));
        }
    }

    /// Adds the outputs of a branch to its input, for all tokens.
    ///
    /// # Shapes
    ///
    /// - x, output: `[R, L, C]`
    /// - y: `[R, kept, C]`
    /// - gate: `[R, 1, C]`
    pub(super) fn add(&mut self, branch: BranchKind, x: Tensor<3>, y: Tensor<3>, gate: Option<&Tensor<3>>) -> Tensor<3> {
        self.store(branch, &y, gate);
        let Self::Pruned { block, is_last, .. } = self else { return kernels::add_gated(x, y, gate) };
        let map = if *is_last { block.maps[branch as usize].take() } else { block.maps[branch as usize].clone() };
        match (map, &block.kept[branch as usize]) {
            (Some(map), Some(kept)) => kernels::add_restored(x, gated(y, gate), &map, kept),
            _ => unreachable!("the cache scale precedes the pruned ones, and tokens are selected before they are computed"),
        }
    }

    fn kept(&self, branch: BranchKind) -> Option<&KeptTokens> {
        let Self::Pruned { block, .. } = self else { return None };
        block.kept[branch as usize].as_ref()
    }
}

/// Returns the output of a branch times its gate, if it has one.
fn gated(y: Tensor<3>, gate: Option<&Tensor<3>>) -> Tensor<3> {
    match gate {
        Some(gate) => kernels::to_f32(y) * kernels::to_f32(gate.clone()),
        None => y,
    }
}

/// Returns the ascending positions of the `count` largest distances. Of equal ones, the lower positions are taken.
fn farthest(distances: &[f32], count: usize) -> Vec<u32> {
    let mut positions: Vec<u32> = (0..distances.len() as u32).collect();
    let order = |a: &u32, b: &u32| distances[*b as usize].total_cmp(&distances[*a as usize]).then(a.cmp(b));
    if count < positions.len() {
        positions.select_nth_unstable_by(count, order);
        positions.truncate(count);
    }
    positions.sort_unstable();
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_farthest_tokens_are_kept_and_ties_go_to_lower_positions() {
        let distances = [1.0, 3.0, 2.0, 3.0, 0.0, 2.0, 2.0];
        let want: [&[u32]; 8] =
            [&[], &[1], &[1, 3], &[1, 2, 3], &[1, 2, 3, 5], &[1, 2, 3, 5, 6], &[0, 1, 2, 3, 5, 6], &[0, 1, 2, 3, 4, 5, 6]];
        for (count, want) in want.into_iter().enumerate() {
            assert_eq!(farthest(&distances, count), want);
        }
        assert_eq!(farthest(&[0.0; 5], 3), [0, 1, 2]);
    }
}
