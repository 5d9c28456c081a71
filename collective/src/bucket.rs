//! Many small tensors in one buffer, so that one call carries them all.

use std::mem;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::alloc::Buffer;
use crate::communicator::{Communicator, Labelled};
use crate::error::Result;
use crate::pending::Pending;
use crate::reduce::{Element, ReduceOp, Reducible};

/// Tensors one behind the other in one buffer: many small ones cost one call, not one each.
///
/// All ranks make theirs with the same lengths. [`as_mut_slice`](Self::as_mut_slice) is all of it,
/// for a call other than all-reduce.
///
/// ```
/// # use allfold::{Bucket, Communicator, ReduceOp, Result};
/// # fn main() -> Result<()> {
/// # let world = Communicator::single();
/// let gradients = [vec![0.5f32; 64 * 10], vec![0.25; 10]];
/// let mut bucket = Bucket::new(gradients.iter().map(Vec::len));
/// for (view, gradient) in bucket.views_mut().zip(&gradients) {
///     view.copy_from_slice(gradient);
/// }
/// bucket.all_reduce(&world, ReduceOp::Avg)?;
/// assert_eq!(bucket.view(1), [0.25; 10]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, PartialEq)]
pub struct Bucket<T: Element> {
    values: Buffer<T>,
    /// Where each tensor ends; the last is the length of `values`.
    ends: Vec<usize>,
}

/// A bucket whose all-reduce is under way; [`wait`](Self::wait) or `.await` gives it back.
///
/// Dropped or leaked, it is as a [`Pending`]: the call is made, the bucket is lost.
#[must_use = "the result is only in the bucket that `wait` or `.await` gives back"]
pub struct PendingBucket<T: Element> {
    call: Pending<Buffer<T>>,
    ends: Vec<usize>,
}

/// Where a bucket is added up: on a [`Communicator`], or on a [`Labelled`] one.
pub trait AllReduce: sealed::AllReduce {}

impl AllReduce for Communicator {}
impl AllReduce for Labelled<'_> {}

impl<T: Element> Bucket<T> {
    /// Room for tensors of these lengths, in elements, each of them zero. A length may be 0.
    ///
    /// # Panics
    /// As [`Vec::with_capacity`], where all of them are more than fits in memory.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        Self::within(&Communicator::single(), lengths)
    }

    /// The same in memory of [`Communicator::alloc`]: calls on `world` need no copy of it where its
    /// ranks share memory.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn within(world: &Communicator, lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut length = 0usize;
        let end = |tensor| {
            // More than fits is more than any buffer holds.
            length = length.saturating_add(tensor);
            length
        };
        let ends = lengths.into_iter().map(end).collect();
        Self { values: world.alloc(length), ends }
    }

    /// Deals tensors of these lengths, in elements, to buckets of up to `limit_bytes`: the ranges
    /// of tensors, in order, that belong together; none is empty.
    ///
    /// A bucket ends before the tensor that would take it beyond the limit; so one tensor may be
    /// larger than the limit, and then only empty ones come before it in its bucket. Equal lengths
    /// and limits give equal buckets, so that all ranks make the same calls.
    ///
    /// ```
    /// # use allfold::Bucket;
    /// assert_eq!(Bucket::<f32>::deal([4, 6, 1, 100, 3], 40), [0..2, 2..3, 3..4, 4..5]);
    /// ```
    pub fn deal(lengths: impl IntoIterator<Item = usize>, limit_bytes: usize) -> Vec<Range<usize>> {
        let mut buckets: Vec<Range<usize>> = Vec::new();
        let mut filled = 0usize;
        for (tensor, length) in lengths.into_iter().enumerate() {
            let bytes = length.saturating_mul(size_of::<T>());
            let together = filled.saturating_add(bytes);
            match buckets.last_mut() {
                Some(bucket) if filled == 0 || together <= limit_bytes => {
                    bucket.end = tensor + 1;
                    filled = together;
                }
                _ => {
                    buckets.push(tensor..tensor + 1);
                    filled = bytes;
                }
            }
        }
        buckets
    }

    /// The tensor in this place.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn view(&self, tensor: usize) -> &[T] {
        &self.values[self.range(tensor)]
    }

    /// The tensor in this place.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn view_mut(&mut self, tensor: usize) -> &mut [T] {
        let range = self.range(tensor);
        &mut self.values[range]
    }

    /// All tensors in order.
    pub fn views(&self) -> impl ExactSizeIterator<Item = &[T]> {
        let mut rest = &*self.values;
        self.lengths().map(move |length| {
            let (own, behind) = rest.split_at(length);
            rest = behind;
            own
        })
    }

    /// All tensors in order.
    pub fn views_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [T]> {
        let Self { values, ends } = self;
        let mut rest = &mut **values;
        lengths(ends).map(move |length| {
            let (own, behind) = mem::take(&mut rest).split_at_mut(length);
            rest = behind;
            own
        })
    }

    /// The lengths of the tensors, in elements, in order.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = usize> {
        lengths(&self.ends)
    }

    /// The elements of all tensors.
    pub fn as_slice(&self) -> &[T] {
        &self.values
    }

    /// The elements of all tensors.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.values
    }

    /// Every rank's bucket becomes the combination of all ranks' buckets, in one
    /// [`all_reduce`](Communicator::all_reduce).
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn all_reduce(&mut self, world: &impl AllReduce, op: ReduceOp) -> Result<()>
    where
        T: Reducible,
    {
        world.reduce_now(&mut self.values, op)
    }

    /// Starts an [`all_reduce`](Self::all_reduce); the program goes on meanwhile.
    ///
    /// # Errors
    /// As there, from here or from [`PendingBucket::wait`]. After an error from here the bucket is
    /// lost.
    #[track_caller]
    pub fn start_all_reduce(self, world: &impl AllReduce, op: ReduceOp) -> Result<PendingBucket<T>>
    where
        T: Reducible,
    {
        let Self { values, ends } = self;
        Ok(PendingBucket { call: world.reduce_meanwhile(values, op)?, ends })
    }

    fn range(&self, tensor: usize) -> Range<usize> {
        let start = tensor.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[tensor]
    }
}

impl<T: Element> Clone for Bucket<T> {
    /// The clone lies in memory of the process.
    fn clone(&self) -> Self {
        Self { values: self.values.to_vec().into(), ends: self.ends.clone() }
    }
}

impl<T: Element> Default for Bucket<T> {
    /// One without tensors.
    fn default() -> Self {
        Self { values: Buffer::default(), ends: Vec::new() }
    }
}

impl<T: Element> PendingBucket<T> {
    /// Waits for the end of the call; gives the bucket back.
    ///
    /// # Errors
    /// As [`Bucket::all_reduce`]; [`finish`](Self::finish) gives the bucket back also then.
    pub fn wait(self) -> Result<Bucket<T>> {
        let (bucket, result) = self.finish();
        result.map(|()| bucket)
    }

    /// Waits for the end of the call; gives the bucket back, whose contents are unspecified after
    /// an error.
    pub fn finish(self) -> (Bucket<T>, Result<()>) {
        let (values, result) = self.call.finish();
        (Bucket { values, ends: self.ends }, result)
    }

    /// Whether the call has ended, so that waiting takes no time.
    pub fn is_done(&self) -> bool {
        self.call.is_done()
    }
}

impl<T: Element> Future for PendingBucket<T> {
    type Output = Result<Bucket<T>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.call).poll(context);
        polled.map_ok(|values| Bucket { values, ends: mem::take(&mut self.ends) })
    }
}

fn lengths(ends: &[usize]) -> impl ExactSizeIterator<Item = usize> {
    let mut start = 0;
    ends.iter().map(move |&end| end - mem::replace(&mut start, end))
}

mod sealed {
    use super::{Buffer, Communicator, Labelled, Pending, ReduceOp, Reducible, Result};

    /// The calls that a bucket makes.
    pub trait AllReduce {
        #[track_caller]
        fn reduce_now<T: Reducible>(&self, values: &mut [T], op: ReduceOp) -> Result<()>;

        #[track_caller]
        fn reduce_meanwhile<T: Reducible>(
            &self,
            values: Buffer<T>,
            op: ReduceOp,
        ) -> Result<Pending<Buffer<T>>>;
    }

    macro_rules! all_reduce {
        ($($type:ty),*) => { $(
            impl AllReduce for $type {
                fn reduce_now<T: Reducible>(&self, values: &mut [T], op: ReduceOp) -> Result<()> {
                    self.all_reduce(values, op)
                }

                fn reduce_meanwhile<T: Reducible>(
                    &self,
                    values: Buffer<T>,
                    op: ReduceOp,
                ) -> Result<Pending<Buffer<T>>> {
                    self.start_all_reduce(values, op)
                }
            }
        )* };
    }
    all_reduce!(Communicator, Labelled<'_>);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    /// What `rank` returns on each of `size` ranks.
    fn on_ranks<R: Send>(size: usize, rank: impl Fn(Communicator) -> R + Sync) -> Vec<R> {
        let worlds = Communicator::in_memory(size).unwrap();
        std::thread::scope(|scope| {
            let rank = &rank;
            let threads: Vec<_> =
                worlds.into_iter().map(|world| scope.spawn(move || rank(world))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Tensor i of rank r holds 10 r + i.
    fn filled(world: &Communicator, lengths: &[usize]) -> Bucket<i32> {
        let mut bucket = Bucket::new(lengths.iter().copied());
        for (tensor, view) in bucket.views_mut().enumerate() {
            view.fill((10 * world.rank() + tensor) as i32);
        }
        bucket
    }

    #[test]
    fn every_tensor_comes_back_in_its_view() {
        let lengths = [3, 0, 1, 40_000];
        let buckets = on_ranks(3, |world| {
            let mut now = filled(&world, &lengths);
            now.all_reduce(&world, ReduceOp::Sum).unwrap();
            let mut labelled = filled(&world, &lengths);
            labelled.all_reduce(&world.labelled(7), ReduceOp::Sum).unwrap();
            let first = filled(&world, &lengths).start_all_reduce(&world, ReduceOp::Sum).unwrap();
            let second = filled(&world, &lengths);
            let second = second.start_all_reduce(&world.labelled(8), ReduceOp::Sum).unwrap();
            let second = second.wait().unwrap();
            assert!(first.is_done(), "calls end in order");
            [now, labelled, first.wait().unwrap(), second]
        });
        for bucket in buckets.into_iter().flatten() {
            assert_eq!(bucket.lengths().collect::<Vec<_>>(), lengths);
            for (tensor, length) in lengths.into_iter().enumerate() {
                assert_eq!(bucket.view(tensor), vec![30 + 3 * tensor as i32; length]);
            }
        }
    }

    #[test]
    fn a_bucket_can_be_awaited() {
        on_ranks(2, |world| {
            let task = async {
                let bucket = filled(&world, &[2, 1]);
                bucket.start_all_reduce(&world, ReduceOp::Max)?.await
            };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let bucket = runtime.block_on(task).unwrap();
            assert_eq!(bucket.views().collect::<Vec<_>>(), [&[10, 10][..], &[11]]);
        });
    }

    #[test]
    fn a_failed_call_gives_the_bucket_back_and_names_the_program() {
        let ends = on_ranks(2, |world| {
            let lengths = [3, 4 + world.rank()];
            let bucket = filled(&world, &lengths);
            let (pending, line) = (bucket.start_all_reduce(&world, ReduceOp::Sum), line!());
            let (bucket, result) = pending.unwrap().finish();
            assert_eq!(bucket.lengths().collect::<Vec<_>>(), lengths);
            assert_eq!(bucket.as_slice().len(), 7 + world.rank());
            (result.unwrap_err(), line)
        });
        for (error, line) in ends {
            let ErrorKind::Mismatch { first, second, .. } = error.kind() else {
                panic!("{error}");
            };
            for call in [first, second] {
                assert!(call.ends_with(&format!("bucket.rs:{line})")), "{error}");
            }
        }
    }

    #[test]
    fn a_bucket_without_tensors_is_a_call_too() {
        on_ranks(2, |world| {
            let mut bucket = Bucket::<f32>::default();
            bucket.all_reduce(&world, ReduceOp::Sum).unwrap();
            assert_eq!(bucket, Bucket::new([]));
            assert_eq!(bucket.views().len(), 0);
        });
    }

    #[test]
    fn a_bucket_begins_with_empty_tensors_and_the_first_that_is_not() {
        let deal = |lengths: &[usize]| Bucket::<f32>::deal(lengths.iter().copied(), 40);
        assert!(deal(&[]).is_empty());
        assert_eq!(deal(&[0, 0, 11, 1]), [0..3, 3..4]);
        assert_eq!(deal(&[0, 11, 0, 10, 0]), [0..2, 2..5]);
        assert_eq!(deal(&[usize::MAX, usize::MAX, 1]), [0..1, 1..2, 2..3]);
    }

    proptest! {
        #[test]
        fn views_are_the_whole_in_order(lengths in prop::collection::vec(0usize..20, 0..12)) {
            let mut bucket = Bucket::<u64>::new(lengths.iter().copied());
            prop_assert_eq!(bucket.lengths().collect::<Vec<_>>(), &lengths[..]);
            prop_assert_eq!(bucket.as_slice(), vec![0; lengths.iter().sum()]);
            for (place, element) in bucket.as_mut_slice().iter_mut().enumerate() {
                *element = place as u64;
            }
            prop_assert_eq!(bucket.views().len(), lengths.len());
            let flat: Vec<u64> = bucket.views().flatten().copied().collect();
            prop_assert_eq!(bucket.as_slice(), flat);
            for (tensor, view) in bucket.clone().views_mut().enumerate() {
                prop_assert_eq!(bucket.view(tensor), &*view);
                prop_assert_eq!(bucket.view_mut(tensor), view);
            }
        }

        #[test]
        fn every_tensor_is_dealt_to_one_bucket_as_full_as_may_be(
            lengths in prop::collection::vec(0usize..40, 0..40), limit in 0usize..400,
        ) {
            let buckets = Bucket::<f64>::deal(lengths.iter().copied(), limit);
            let bytes = |range: Range<usize>| lengths[range].iter().sum::<usize>() * 8;
            let mut next = 0;
            for bucket in buckets {
                prop_assert_eq!(bucket.start, next, "in order, none left out");
                prop_assert!(!bucket.is_empty());
                next = bucket.end;
                let before_last = bytes(bucket.start..bucket.end - 1);
                prop_assert!(bytes(bucket.clone()) <= limit || before_last == 0);
                if next < lengths.len() {
                    let filled = bytes(bucket.clone());
                    prop_assert!(filled > 0 && bytes(bucket.start..next + 1) > limit);
                }
            }
            prop_assert_eq!(next, lengths.len());
        }
    }
}
