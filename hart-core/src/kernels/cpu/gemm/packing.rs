//! Packed layouts of x: panels of `mr` rows, which a micro-kernel reads without a stride.

use super::super::amx;
use super::super::memory::AlignedVec;

/// Outputs of a panel of w.
pub(crate) const NR: usize = 16;

/// The packed layout of x that a micro-kernel reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct XLayout {
    /// Rows of a panel, which are those of the largest register block: at most 16.
    pub(super) mr: usize,
    pub(super) format: XFormat,
}

/// The order of dwords within a panel of x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum XFormat {
    /// `[k_groups][mr]`.
    Panel,
    /// `[k_groups][2][mr]`: elements are widened to twice their size, the even ones of a k-group in one dword, the odd ones in the next.
    /// Used on processors without instructions for the narrow type.
    Widened,
    /// `[k_groups / 16][mr][16]`, zeros after the last k-group of a row: tiles of AMX.
    Tiled,
    /// `[k_groups / 2][mr][2]`, zeros after the last k-group of a row: operands of ARM's matrix products.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code))]
    Pairs,
}

impl XLayout {
    /// Returns the number of dwords along k of a packed row of `k_groups`.
    pub(super) fn k_dwords(self, k_groups: usize) -> usize {
        match self.format {
            XFormat::Panel => k_groups,
            XFormat::Widened => 2 * k_groups,
            XFormat::Tiled => k_groups.next_multiple_of(amx::TILE_DWORDS),
            XFormat::Pairs => k_groups.next_multiple_of(2),
        }
    }

    /// Returns the number of dwords of one panel.
    pub(super) fn panel_len(self, k_groups: usize) -> usize {
        self.k_dwords(k_groups) * self.mr
    }

    /// Returns the number of dwords of all panels of `rows` rows.
    pub(super) fn len(self, rows: usize, k_groups: usize) -> usize {
        rows.div_ceil(self.mr) * self.panel_len(k_groups)
    }

    /// Allocates all panels of `rows` rows. The last one, which may have fewer rows, is zeroed; the others have unspecified values.
    pub(super) fn alloc(self, rows: usize, k_groups: usize) -> AlignedVec<u32> {
        let mut panels = AlignedVec::new(self.len(rows, k_groups));
        let last = panels.len().saturating_sub(self.panel_len(k_groups));
        panels[last..].fill(0);
        panels
    }

    /// Packs the k-groups of one row into its panel. `dword` returns the dword of a k-group, `widened` the two of
    /// [`XFormat::Widened`].
    #[inline(always)]
    pub(super) fn pack_row<G: Copy>(
        self,
        panel: &mut [u32],
        row: usize,
        k_groups: &[G],
        dword: impl Fn(G) -> u32,
        widened: impl Fn(G) -> [u32; 2],
    ) {
        match self.format {
            XFormat::Panel => panel.chunks_exact_mut(self.mr).zip(k_groups).for_each(|(to, group)| to[row] = dword(*group)),
            XFormat::Widened => {
                let pairs = panel.chunks_exact_mut(2 * self.mr);
                pairs.zip(k_groups).for_each(|(to, group)| [to[row], to[self.mr + row]] = widened(*group));
            }
            XFormat::Tiled => self.pack_tiles::<G, { amx::TILE_DWORDS }>(panel, row, k_groups, dword),
            XFormat::Pairs => self.pack_tiles::<G, 2>(panel, row, k_groups, dword),
        }
    }

    /// Packs the k-groups of one row into its panel `[k_groups / N][mr][N]`.
    #[inline(always)]
    fn pack_tiles<G: Copy, const N: usize>(self, panel: &mut [u32], row: usize, k_groups: &[G], dword: impl Fn(G) -> u32) {
        for (tile, from) in panel.chunks_exact_mut(self.mr * N).zip(k_groups.chunks(N)) {
            let to = &mut tile[row * N..][..N];
            to[from.len()..].fill(0);
            to.iter_mut().zip(from).for_each(|(to, group)| *to = dword(*group));
        }
    }
}
