//! Matrices with one column for each query of a block.

/// Queries of a query block: three of the widest vectors.
pub(super) const QUERY_BLOCK: usize = 48;

/// The values of a cache line. The alignment ensures that no vector of queries spans two cache lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct CacheLine([f32; 16]);

/// A matrix `[rows][QUERY_BLOCK]` with one column per query.
#[derive(Default)]
pub(super) struct QueryColumns(Vec<CacheLine>);

impl QueryColumns {
    /// Cache lines of a row.
    const LINES: usize = QUERY_BLOCK / 16;

    /// Creates a matrix of zeros.
    pub(super) fn new(rows: usize) -> Self {
        Self(vec![CacheLine([0.0; 16]); rows * Self::LINES])
    }

    /// Changes the number of rows.
    pub(super) fn resize(&mut self, rows: usize) {
        self.0.resize(rows * Self::LINES, CacheLine([0.0; 16]));
    }

    /// Returns the number of rows.
    pub(super) fn rows(&self) -> usize {
        self.0.len() / Self::LINES
    }

    /// Returns a pointer to the first query of a row.
    pub(super) fn row_ptr(&mut self, row: usize) -> *mut f32 {
        self.0[row * Self::LINES..].as_mut_ptr().cast()
    }

    /// Sets all elements to one value.
    #[inline(always)]
    pub(super) fn fill(&mut self, value: f32) {
        self.0.fill(CacheLine([value; 16]));
    }

    /// Returns the column of a query.
    #[inline(always)]
    pub(super) fn column(&self, query: usize) -> impl Iterator<Item = f32> {
        self.0[query / 16..].iter().step_by(Self::LINES).map(move |line| line.0[query % 16])
    }

    /// Sets the column of a query, from the first row on.
    #[inline(always)]
    pub(super) fn set_column(&mut self, query: usize, elements: impl Iterator<Item = f32>) {
        let lines = self.0[query / 16..].iter_mut().step_by(Self::LINES);
        lines.zip(elements).for_each(|(line, element)| line.0[query % 16] = element);
    }
}
