//! A pool of large `Vec<f32>`: fresh pages cost more time than many of the kernels that fill them.

use std::mem::{ManuallyDrop, MaybeUninit, take};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{AllocationProperty, Bytes};
use burn_std::{AccessError, AccessPolicy, AllocationController};
use bytemuck::{Pod, cast_vec};

/// Smallest length that is pooled: `malloc` reuses smaller allocations itself.
const MIN_LEN: usize = 64 * 1024;
/// Largest length that is pooled: larger ones would take too much of the machine's memory.
const MAX_LEN: usize = 10 * 1024 * 1024;
/// Total length of all pooled vectors.
const CAPACITY: usize = 32 * 1024 * 1024;
/// Number of requests after which a vector that was not reused is freed: about as many as one transformer block makes.
const MAX_AGE: u64 = 24;

static POOL: Mutex<Pool> = Mutex::new(Pool { users: 0, requests: 0, vectors: Vec::new() });

/// The pooled vectors.
struct Pool {
    /// Number of [`PoolGuard`]s.
    users: usize,
    /// Number of requests so far.
    requests: u64,
    /// Each vector with the number of requests before it was returned, the latest one last.
    vectors: Vec<(u64, Vec<f32>)>,
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Enables the pool. When the last guard is dropped, all pooled memory is freed.
#[derive(Debug)]
pub(crate) struct PoolGuard(());

impl PoolGuard {
    /// Enables the pool until the guard is dropped.
    pub(crate) fn new() -> Self {
        pool().users += 1;
        Self(())
    }
}

impl Drop for PoolGuard {
    fn drop(&mut self) {
        let mut pool = pool();
        pool.users -= 1;
        let freed = if pool.users == 0 { take(&mut pool.vectors) } else { Vec::new() };
        drop(pool);
        if !freed.is_empty() {
            drop(freed);
            trim();
        }
    }
}

/// Returns free memory of the C library to the system. Otherwise the library keeps the memory of a large image's keys and values
/// while the image is decoded.
fn trim() {
    // SAFETY: the call does not touch allocated memory.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Returns an empty vector of at least this capacity.
pub(super) fn with_capacity(capacity: usize) -> Vec<f32> {
    let mut vector = request(capacity).unwrap_or_default();
    vector.clear();
    vector.reserve_exact(capacity);
    vector
}

/// Returns a vector of this length with unspecified values.
pub(super) fn unspecified(len: usize) -> Vec<f32> {
    match request(len) {
        Some(mut vector) => {
            vector.resize(len, 0.0);
            vector
        }
        None => vec![0.0; len],
    }
}

/// Takes a vector of at least this capacity from the pool.
fn request(capacity: usize) -> Option<Vec<f32>> {
    if capacity < MIN_LEN { None } else { pool().request(capacity) }
}

/// Returns a vector to the pool, or frees it if the pool is disabled.
pub(super) fn recycle(vector: Vec<f32>) {
    if !(MIN_LEN..=MAX_LEN).contains(&vector.capacity()) {
        return;
    }
    let freed = pool().recycle(vector);
    // Free only after the lock is released.
    drop(freed);
}

impl Pool {
    /// Takes the smallest vector of sufficient capacity, at most an eighth larger than required: it may be held for long.
    fn request(&mut self, required: usize) -> Option<Vec<f32>> {
        self.requests += 1;
        let capacity = |(_, vector): &(u64, Vec<f32>)| vector.capacity();
        let suitable = |pooled| (required..=required + required / 8).contains(&capacity(pooled));
        let found = self.vectors.iter().enumerate().filter(|(_, pooled)| suitable(pooled));
        let (index, _) = found.min_by_key(|(_, pooled)| capacity(pooled))?;
        Some(self.vectors.remove(index).1)
    }

    /// Adds a vector. Returns the vectors to free: the oldest ones while there are too many, or all if the pool is disabled.
    fn recycle(&mut self, vector: Vec<f32>) -> Vec<(u64, Vec<f32>)> {
        let requests = self.requests;
        self.vectors.push((requests, vector));
        if self.users == 0 {
            return take(&mut self.vectors);
        }
        let mut total = 0;
        let stays = |(since, vector): &&(u64, Vec<f32>)| {
            total += vector.capacity();
            total <= CAPACITY && requests - since <= MAX_AGE
        };
        let staying = self.vectors.iter().rev().take_while(stays).count();
        let first = self.vectors.len() - staying;
        self.vectors.drain(..first).collect()
    }
}

/// A fixed-length vector of 32-bit elements from the pool. New elements have unspecified values. Dropping it returns its memory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PooledVec<T: Pod>(Vec<T>);

impl<T: Pod> PooledVec<T> {
    /// Returns a vector of this length.
    pub(super) fn new(len: usize) -> Self {
        Self(cast_vec(unspecified(len)))
    }
}

impl<T: Pod> Default for PooledVec<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Pod> Drop for PooledVec<T> {
    fn drop(&mut self) {
        recycle(cast_vec(take(&mut self.0)));
    }
}

impl<T: Pod> Deref for PooledVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pod> DerefMut for PooledVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

/// A [`PooledVec`] that starts at a cache line, which makes loads of whole lines faster. A clone may not be aligned.
#[derive(Clone, Debug)]
pub(super) struct AlignedVec<T: Pod> {
    storage: PooledVec<T>,
    start: usize,
    len: usize,
}

impl<T: Pod> AlignedVec<T> {
    /// Bytes of a cache line.
    const LINE: usize = 64;

    /// Returns a vector of this length.
    pub(super) fn new(len: usize) -> Self {
        let storage = PooledVec::<T>::new(len + Self::LINE / size_of::<T>());
        let start = storage.as_ptr().align_offset(Self::LINE).min(storage.len() - len);
        Self { storage, start, len }
    }

    /// Changes the length. All elements have unspecified values afterwards.
    pub(super) fn resize_unspecified(&mut self, len: usize) {
        if self.start + len <= self.storage.len() {
            self.len = len;
        } else {
            *self = Self::new(len);
        }
    }
}

impl<T: Pod> Default for AlignedVec<T> {
    fn default() -> Self {
        Self { storage: PooledVec::default(), start: 0, len: 0 }
    }
}

impl<T: Pod> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.storage[self.start..][..self.len]
    }
}

impl<T: Pod> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.storage[self.start..][..self.len]
    }
}

/// Turns a vector into a tensor's storage without a copy. Dropping the storage returns large vectors to the pool.
pub(super) fn into_bytes(values: Vec<f32>) -> Bytes {
    if values.capacity() < MIN_LEN {
        return Bytes::from_elems(values);
    }
    let len = size_of_val(values.as_slice());
    // SAFETY: the first `len` bytes of the allocation are the vector's elements, which are initialised.
    unsafe { Bytes::from_controller(Box::new(PooledAllocation(values)), len) }
}

/// The allocation of a tensor.
struct PooledAllocation(Vec<f32>);

impl Drop for PooledAllocation {
    fn drop(&mut self) {
        recycle(take(&mut self.0));
    }
}

impl AllocationController for PooledAllocation {
    fn alloc_align(&self) -> usize {
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Native
    }

    unsafe fn memory_mut(&mut self, _: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        // SAFETY: the slice is the vector's allocation. The caller promises to write only initialised bytes.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.capacity()) })
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        // SAFETY: the slice is the vector's allocation, and `MaybeUninit` needs no initialised bytes.
        Ok(unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.capacity()) })
    }

    fn capacity(&self) -> usize {
        self.0.capacity() * size_of::<f32>()
    }

    fn try_detach(&mut self) -> Option<NonNull<u8>> {
        // The caller turns the allocation into a vector again, with `capacity` and `alloc_align`.
        NonNull::new(ManuallyDrop::new(take(&mut self.0)).as_mut_ptr().cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reused_while_the_pool_has_users() {
        let mut pool = Pool { users: 1, requests: 0, vectors: Vec::new() };
        let len = 3 * MIN_LEN + 5;
        let vector = vec![1.5; len];
        let start = vector.as_ptr();
        assert!(pool.recycle(vector).is_empty());
        assert!(pool.request(len + 1).is_none() && pool.request(len / 2).is_none(), "too small, and far too large");
        let vector = pool.request(len - 2).expect("a vector was returned before");
        assert_eq!((vector.as_ptr(), vector.len()), (start, len));

        // Vectors that served no request for long are freed, and the oldest ones if there are too many.
        assert!(pool.recycle(vector).is_empty());
        (0..=MAX_AGE).for_each(|_| assert!(pool.request(1).is_none()));
        assert_eq!(pool.recycle(vec![0.0; MIN_LEN]).len(), 1);
        let many = CAPACITY / MAX_LEN + 1;
        let freed: usize = (0..many).map(|_| pool.recycle(Vec::with_capacity(MAX_LEN)).len()).sum();
        assert_eq!((freed, pool.vectors.len()), (2, many - 1));

        pool.users = 0;
        assert_eq!(pool.recycle(vec![0.0; MIN_LEN]).len(), many);
        assert!(pool.vectors.is_empty());
    }

    #[test]
    fn tensors_become_vectors_without_a_copy_and_can_be_changed() {
        let mut bytes = into_bytes(vec![2.0; MIN_LEN + 7]);
        let start = bytes.as_ptr();
        bytes[..4].copy_from_slice(&3.0f32.to_ne_bytes());
        let copy = bytes.clone();
        let vector = bytes.try_into_vec::<f32>().expect("the elements are f32");
        assert_eq!((vector.as_ptr().cast(), vector.len(), vector[0], vector[1]), (start, MIN_LEN + 7, 3.0, 2.0));
        assert!(copy.as_ptr() != start && copy[..] == *bytemuck::cast_slice::<f32, u8>(&vector));
    }
}
