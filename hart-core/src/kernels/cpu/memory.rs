//! Memory of large vectors, used again for the next ones: fresh pages cost the system more than many a kernel that fills them.

use std::mem::{ManuallyDrop, MaybeUninit, take};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{AllocationProperty, Bytes};
use burn_std::{AccessError, AccessPolicy, AllocationController};
use bytemuck::{Pod, cast_vec};

/// Numbers from which on memory is kept: the C library uses smaller pieces again by itself ...
const LARGE: usize = 64 * 1024;
/// ... and up to which: larger ones would take too much of what memory there may be.
const LARGEST: usize = 10 * 1024 * 1024;
/// Numbers that are kept at most.
const MOST: usize = 32 * 1024 * 1024;
/// Vectors that are wanted before one that none of them needed goes: about those of one block of the transformer.
const PATIENCE: u64 = 24;

static KEPT: Mutex<Kept> = Mutex::new(Kept { users: 0, wanted: 0, vectors: Vec::new() });

struct Kept {
    users: usize,
    /// Vectors that were wanted so far.
    wanted: u64,
    /// With how many were wanted before; the one that was kept last comes last.
    vectors: Vec<(u64, Vec<f32>)>,
}

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While there is one, memory is kept; when there is none any more, the system has it back.
#[derive(Debug)]
pub(crate) struct Reuse(());

impl Reuse {
    pub(crate) fn begin() -> Self {
        kept().users += 1;
        Self(())
    }
}

impl Drop for Reuse {
    fn drop(&mut self) {
        let mut kept = kept();
        kept.users -= 1;
        let old = if kept.users == 0 { take(&mut kept.vectors) } else { Vec::new() };
        drop(kept);
        if !old.is_empty() {
            drop(old);
            trim();
        }
    }
}

/// Lets the system have what the C library keeps of free memory: keys and values of a large picture lie in pieces that it would hold on to
/// while the picture is decoded.
fn trim() {
    // SAFETY: nothing that is in use is touched.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// An empty vector with room for so many numbers.
pub(super) fn room(numbers: usize) -> Vec<f32> {
    let mut vector = find(numbers).unwrap_or_default();
    vector.clear();
    vector.reserve_exact(numbers);
    vector
}

/// So many numbers of any value.
pub(super) fn numbers(count: usize) -> Vec<f32> {
    match find(count) {
        Some(mut vector) => {
            vector.resize(count, 0.0);
            vector
        }
        None => vec![0.0; count],
    }
}

fn find(numbers: usize) -> Option<Vec<f32>> {
    if numbers < LARGE { None } else { kept().find(numbers) }
}

/// Keeps a vector that is no longer needed, where somebody may want it.
pub(super) fn give_back(vector: Vec<f32>) {
    if !(LARGE..=LARGEST).contains(&vector.capacity()) {
        return;
    }
    let old = kept().keep(vector);
    // When others can go on.
    drop(old);
}

impl Kept {
    /// The smallest that is large enough, but not much larger: what is long held should not take more than it needs.
    fn find(&mut self, numbers: usize) -> Option<Vec<f32>> {
        self.wanted += 1;
        let capacity = |(_, vector): &(u64, Vec<f32>)| vector.capacity();
        let found = self.vectors.iter().enumerate().filter(|(_, kept)| (numbers..=numbers + numbers / 8).contains(&capacity(kept)));
        let (index, _) = found.min_by_key(|(_, kept)| capacity(kept))?;
        Some(self.vectors.remove(index).1)
    }

    /// Adds a vector; those that have waited longest come back where there are too many, and all where nobody wants any.
    fn keep(&mut self, vector: Vec<f32>) -> Vec<(u64, Vec<f32>)> {
        let wanted = self.wanted;
        self.vectors.push((wanted, vector));
        if self.users == 0 {
            return take(&mut self.vectors);
        }
        let mut numbers = 0;
        let stays = |(since, vector): &&(u64, Vec<f32>)| {
            numbers += vector.capacity();
            numbers <= MOST && wanted - since <= PATIENCE
        };
        let stay = self.vectors.iter().rev().take_while(stays).count();
        let first = self.vectors.len() - stay;
        self.vectors.drain(..first).collect()
    }
}

/// Numbers of 32 bits, of any value at first, whose memory is given back when they are dropped.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Buffer<T: Pod>(Vec<T>);

impl<T: Pod> Buffer<T> {
    pub(super) fn new(count: usize) -> Self {
        Self(cast_vec(numbers(count)))
    }
}

impl<T: Pod> Default for Buffer<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        give_back(cast_vec(take(&mut self.0)));
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

/// The same from a cache line's beginning on, where registers are filled line by line. Nothing but speed depends on it.
#[derive(Clone, Debug)]
pub(super) struct Lines<T: Pod> {
    numbers: Buffer<T>,
    start: usize,
    count: usize,
}

impl<T: Pod> Lines<T> {
    const LINE: usize = 64;

    pub(super) fn new(count: usize) -> Self {
        let numbers = Buffer::<T>::new(count + Self::LINE / size_of::<T>());
        let start = numbers.as_ptr().align_offset(Self::LINE).min(numbers.len() - count);
        Self { numbers, start, count }
    }

    /// Makes it so long, of any value.
    pub(super) fn set_len(&mut self, count: usize) {
        if self.start + count <= self.numbers.len() {
            self.count = count;
        } else {
            *self = Self::new(count);
        }
    }
}

impl<T: Pod> Default for Lines<T> {
    fn default() -> Self {
        Self { numbers: Buffer::default(), start: 0, count: 0 }
    }
}

impl<T: Pod> Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.numbers[self.start..][..self.count]
    }
}

impl<T: Pod> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.numbers[self.start..][..self.count]
    }
}

/// What a tensor holds, given back with it.
pub(super) fn bytes(numbers: Vec<f32>) -> Bytes {
    if numbers.capacity() < LARGE {
        return Bytes::from_elems(numbers);
    }
    let length = size_of_val(numbers.as_slice());
    // SAFETY: so many bytes are those of the vector's numbers.
    unsafe { Bytes::from_controller(Box::new(Held(numbers)), length) }
}

/// Memory of a tensor.
struct Held(Vec<f32>);

impl Drop for Held {
    fn drop(&mut self) {
        give_back(take(&mut self.0));
    }
}

impl AllocationController for Held {
    fn alloc_align(&self) -> usize {
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Native
    }

    unsafe fn memory_mut(&mut self, _: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        // SAFETY: the vector's memory, of which nothing is read; only initialised bytes are written, as the caller promises.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.capacity()) })
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        // SAFETY: the vector's memory, of which nothing is read.
        Ok(unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.capacity()) })
    }

    fn capacity(&self) -> usize {
        self.0.capacity() * size_of::<f32>()
    }

    fn try_detach(&mut self) -> Option<NonNull<u8>> {
        // Whoever asks makes a vector of it again, of `capacity` bytes and this alignment.
        NonNull::new(ManuallyDrop::new(take(&mut self.0)).as_mut_ptr().cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_while_somebody_wants_it() {
        let mut kept = Kept { users: 1, wanted: 0, vectors: Vec::new() };
        let count = 3 * LARGE + 5;
        let vector = vec![1.5; count];
        let place = vector.as_ptr();
        assert!(kept.keep(vector).is_empty());
        assert!(kept.find(count + 1).is_none() && kept.find(count / 2).is_none(), "too small, and not worth it");
        let vector = kept.find(count - 2).expect("it was kept");
        assert_eq!((vector.as_ptr(), vector.len()), (place, count));

        // What nobody wanted for long goes, and what was kept first where there is too much.
        assert!(kept.keep(vector).is_empty());
        (0..=PATIENCE).for_each(|_| assert!(kept.find(1).is_none()));
        assert_eq!(kept.keep(vec![0.0; LARGE]).len(), 1);
        let many = MOST / LARGEST + 1;
        let gone: usize = (0..many).map(|_| kept.keep(Vec::with_capacity(LARGEST)).len()).sum();
        assert_eq!((gone, kept.vectors.len()), (2, many - 1));

        kept.users = 0;
        assert_eq!(kept.keep(vec![0.0; LARGE]).len(), many);
        assert!(kept.vectors.is_empty());
    }

    #[test]
    fn tensors_become_vectors_without_a_copy_and_can_be_changed() {
        let mut bytes = bytes(vec![2.0; LARGE + 7]);
        let place = bytes.as_ptr();
        bytes[..4].copy_from_slice(&3.0f32.to_ne_bytes());
        let copy = bytes.clone();
        let vector = bytes.try_into_vec::<f32>().expect("the same kind of numbers");
        assert_eq!((vector.as_ptr().cast(), vector.len(), vector[0], vector[1]), (place, LARGE + 7, 3.0, 2.0));
        assert!(copy.as_ptr() != place && copy[..] == *bytemuck::cast_slice::<f32, u8>(&vector));
    }
}
