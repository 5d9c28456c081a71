//! Gradients travel in buckets: several parameters in one buffer, one all-reduce a bucket.

use std::mem;

use allfold::{Communicator, PendingBucket, ReduceOp, Reducible, bf16, f16};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var, WithDType};

use crate::error::{Error, Result};
use crate::parameters::with_elements;
use crate::tally::{NUMBERS, Tally};

/// A buffer for some parameters, reused from step to step.
pub(crate) trait Bucket: Send {
    /// Whether it has room for a tally. One of f16 or bf16 has not: from 2048 and 256 on these do
    /// not hold every whole number. Nor does f16 hold a sum over many samples, so that what is
    /// packed must be divided by the samples of all ranks already.
    fn carries_tally(&self) -> bool;

    /// Writes this rank's gradients, `scale` times, zeros where it has none, and its tally.
    fn pack(&mut self, gradients: Option<&GradStore>, scale: f64, tally: Tally) -> Result<()>;

    /// Starts adding up the buffers of all ranks; until [`wait`](Self::wait) this one is away.
    fn start_all_reduce(&mut self, world: &Communicator, label: u64) -> Result<()>;

    /// Waits until they are added up; nothing where that was not started.
    fn wait(&mut self) -> Result<()>;

    /// The tally of all ranks, once they are added up, where there is room for it.
    fn tally(&self) -> Option<Tally>;

    /// Hands the summed gradients on, divided by the number of samples in the tally; a parameter
    /// for which no rank has a gradient has none here either, so that the optimiser leaves it
    /// alone.
    fn unpack(&self, into: &mut GradStore) -> Result<()>;

    /// Replaces the parameters by rank 0's.
    fn broadcast_parameters(&mut self, world: &Communicator) -> Result<()>;
}

/// Deals the parameters to buckets, last parameter first: backward reaches the last layers first,
/// and every rank must make the same calls. A bucket ends at `limit` bytes (one parameter may be
/// larger) and where the element type changes.
///
/// # Errors
/// [`Error::Parameter`] where the element type cannot be added up.
pub(crate) fn deal(parameters: &[(String, Var)], limit: usize) -> Result<Vec<Box<dyn Bucket>>> {
    let backward: Vec<&(String, Var)> = parameters.iter().rev().collect();
    let mut buckets = Vec::new();
    for run in backward.chunk_by(|(_, one), (_, next)| one.dtype() == next.dtype()) {
        let Some((name, first)) = run.first() else { continue };
        match first.dtype() {
            DType::F16 => deal_typed::<f16>(run, limit, &mut buckets),
            DType::BF16 => deal_typed::<bf16>(run, limit, &mut buckets),
            DType::F32 => deal_typed::<f32>(run, limit, &mut buckets),
            DType::F64 => deal_typed::<f64>(run, limit, &mut buckets),
            other => {
                let problem = format!("gradients of type {} cannot be added up", other.as_str());
                return Err(Error::Parameter { name: name.clone(), problem });
            }
        }
    }
    Ok(buckets)
}

/// Deals parameters of one type.
fn deal_typed<T: WithDType + Reducible + Default>(
    run: &[&(String, Var)],
    limit: usize,
    buckets: &mut Vec<Box<dyn Bucket>>,
) {
    let lengths = run.iter().map(|(_, var)| var.elem_count());
    for members in allfold::Bucket::<T>::deal(lengths, limit) {
        let members = run[members].iter().map(|(_, var)| var.clone()).collect();
        buckets.push(Box::new(Typed::<T>::new(members)));
    }
}

struct Typed<T> {
    /// Last parameter first.
    members: Vec<Var>,
    /// A view for each member, its gradient and behind that how many ranks have one; then a view
    /// for the tally, empty where it is not carried. Without any view while it is under way.
    values: allfold::Bucket<T>,
    under_way: Option<PendingBucket<T>>,
}

impl<T: WithDType + Reducible + Default> Typed<T> {
    fn new(members: Vec<Var>) -> Self {
        Self { values: room(&members), members, under_way: None }
    }
}

impl<T: WithDType + Reducible + Default> Bucket for Typed<T> {
    fn carries_tally(&self) -> bool {
        !is_half(T::DTYPE)
    }

    fn pack(&mut self, gradients: Option<&GradStore>, scale: f64, tally: Tally) -> Result<()> {
        // A factor of f16 or bf16 would be an error of its own, the same in every gradient.
        let scaled = |element: T| match is_half(T::DTYPE) {
            true => T::from_f64(element.to_f64() * scale),
            false => element * T::from_f64(scale),
        };
        for (var, own) in self.members.iter().zip(self.values.views_mut()) {
            own.fill(T::zero());
            let Some(gradient) = gradients.and_then(|gradients| gradients.get(var)) else {
                continue;
            };
            if gradient.dims() != var.dims() {
                return Err(candle_core::Error::Msg(format!(
                    "a gradient of shape {:?} for a parameter of shape {:?}",
                    gradient.dims(),
                    var.dims()
                ))
                .into());
            }
            with_elements(gradient, |elements: &[T]| {
                for (slot, &element) in own.iter_mut().zip(elements) {
                    *slot = scaled(element);
                }
            })?;
            if let Some(present) = own.last_mut() {
                *present = T::one();
            }
        }
        let slots = self.values.view_mut(self.members.len());
        for (slot, number) in slots.iter_mut().zip(tally.to_numbers()) {
            *slot = T::from_f64(number);
        }
        Ok(())
    }

    fn start_all_reduce(&mut self, world: &Communicator, label: u64) -> Result<()> {
        let values = mem::take(&mut self.values);
        match values.start_all_reduce(&world.labelled(label), ReduceOp::Sum) {
            Ok(under_way) => self.under_way = Some(under_way),
            Err(error) => {
                // A call that does not begin keeps the buffer.
                self.values = room(&self.members);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let Some(under_way) = self.under_way.take() else { return Ok(()) };
        let (values, result) = under_way.finish();
        self.values = values;
        Ok(result?)
    }

    fn tally(&self) -> Option<Tally> {
        if !self.carries_tally() {
            return None;
        }
        let mut numbers = [0.0; NUMBERS];
        for (number, &value) in numbers.iter_mut().zip(self.values.view(self.members.len())) {
            *number = value.to_f64();
        }
        Some(Tally::from_numbers(numbers))
    }

    fn unpack(&self, into: &mut GradStore) -> Result<()> {
        let samples = T::from_f64(self.tally().map_or(1.0, |tally| tally.samples as f64));
        for (var, own) in self.members.iter().zip(self.values.views()) {
            let Some((&present, gradient)) = own.split_last() else {
                continue;
            };
            if present > T::zero() {
                let mean: Vec<T> = gradient.iter().map(|&sum| sum / samples).collect();
                into.insert(var, Tensor::from_vec(mean, var.shape(), var.device())?);
            }
        }
        Ok(())
    }

    fn broadcast_parameters(&mut self, world: &Communicator) -> Result<()> {
        for (var, own) in self.members.iter().zip(self.values.views_mut()) {
            with_elements(var, |elements: &[T]| own[..elements.len()].copy_from_slice(elements))?;
        }
        world.broadcast(self.values.as_mut_slice(), 0)?;
        for (var, own) in self.members.iter().zip(self.values.views()) {
            let elements = &own[..var.elem_count()];
            var.set(&Tensor::from_slice(elements, var.shape(), var.device())?)?;
        }
        Ok(())
    }
}

/// A view for each member, one for the tally.
fn room<T: WithDType + Reducible + Default>(members: &[Var]) -> allfold::Bucket<T> {
    let gradients = members.iter().map(|var| var.elem_count() + 1);
    let tally = if is_half(T::DTYPE) { 0 } else { NUMBERS };
    allfold::Bucket::new(gradients.chain([tally]))
}

/// Whether gradients of this type travel as they are, but no tally with them.
fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// Bytes of a bucket. Large enough for full speed, small enough that the first is on its way while
/// the others are packed; the default of PyTorch's DDP.
pub(crate) const BUCKET_LIMIT: usize = 25 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn parameters(types: &[(DType, usize)]) -> Vec<(String, Var)> {
        types
            .iter()
            .enumerate()
            .map(|(at, &(dtype, len))| {
                let var = Var::zeros(len, dtype, &Device::Cpu).unwrap();
                (format!("p{at}"), var)
            })
            .collect()
    }

    fn single() -> Communicator {
        Communicator::single()
    }

    #[test]
    fn buckets_end_at_the_limit_and_where_the_type_changes() {
        use DType::{BF16, F16, F32, F64};
        let count = |types: &[(DType, usize)]| deal(&parameters(types), 40).unwrap().len();
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&[(F32, 5), (F32, 5)]), 1);
        assert_eq!(count(&[(F32, 5), (F32, 6)]), 2);
        assert_eq!(count(&[(F32, 1), (F32, 100), (F32, 1)]), 3);
        assert_eq!(count(&[(F32, 1), (F64, 1), (F64, 1), (F32, 1)]), 3);
        assert_eq!(count(&[(F32, 0), (F32, 0)]), 1);
        assert_eq!(count(&[(F16, 10), (F16, 10), (BF16, 10), (BF16, 11)]), 3);
    }

    #[test]
    fn types_that_cannot_be_added_up_are_named() {
        let Err(error) = deal(&parameters(&[(DType::U32, 3), (DType::F32, 3)]), 40) else {
            panic!("u32 was taken");
        };
        let expected = "parameter `p0`: gradients of type u32 cannot be added up";
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn gradients_come_back_divided_by_the_samples() {
        let parameters = parameters(&[(DType::F64, 2), (DType::F64, 1), (DType::F64, 0)]);
        let gradient = Tensor::new(&[3.0f64, -6.0], &Device::Cpu).unwrap();
        let mut gradients = GradStore::default();
        gradients.insert(&parameters[0].1, gradient);
        let tally = Tally { samples: 4, loss: 2.5, correct: 3 };
        let [bucket] = deal(&parameters, BUCKET_LIMIT).unwrap().try_into().ok().unwrap();
        let mut bucket: Box<dyn Bucket> = bucket;
        // Twice: the buffer is reused.
        for _ in 0..2 {
            bucket.pack(Some(&gradients), 2.0, tally).unwrap();
            bucket.start_all_reduce(&single(), 7).unwrap();
            bucket.wait().unwrap();
            assert_eq!(bucket.tally(), Some(tally));
            let mut mean = GradStore::default();
            bucket.unpack(&mut mean).unwrap();
            let mean_of = |at: usize| mean.get(&parameters[at].1 as &Tensor);
            assert_eq!(mean_of(0).unwrap().to_vec1::<f64>().unwrap(), [1.5, -3.0]);
            assert!(mean_of(1).is_none(), "no rank has this gradient");
        }
        bucket.pack(None, 1.0, Tally::default()).unwrap();
        assert_eq!(bucket.tally(), Some(Tally::default()));
    }

    #[test]
    fn a_gradient_of_another_shape_is_refused() {
        let parameters = parameters(&[(DType::F32, 2)]);
        let mut gradients = GradStore::default();
        let gradient = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        gradients.insert(&parameters[0].1, gradient);
        let mut buckets = deal(&parameters, BUCKET_LIMIT).unwrap();
        let error = buckets[0].pack(Some(&gradients), 1.0, Tally::default());
        let expected = "candle: a gradient of shape [3] for a parameter of shape [2]";
        assert_eq!(error.unwrap_err().to_string(), expected);
    }

    #[test]
    fn starting_waits_for_no_other_rank() {
        let [first, second] = Communicator::in_memory(2).unwrap().try_into().ok().unwrap();
        let deal = || {
            let parameters = parameters(&[(DType::F64, 1), (DType::F32, 1), (DType::F64, 1)]);
            deal(&parameters, BUCKET_LIMIT).unwrap()
        };
        let start = |world: &Communicator| {
            let mut buckets = deal();
            for bucket in &mut buckets {
                let samples = 1 + world.rank();
                bucket.pack(None, 1.0, Tally { samples, ..Tally::default() }).unwrap();
                bucket.start_all_reduce(world, 7).unwrap();
            }
            buckets
        };
        // The other rank makes its calls when this one has made all.
        let mut buckets = start(&first);
        std::thread::scope(|scope| {
            scope.spawn(|| start(&second).iter_mut().for_each(|bucket| bucket.wait().unwrap()));
            for bucket in &mut buckets {
                bucket.wait().unwrap();
                assert_eq!(bucket.tally().unwrap().samples, 3);
            }
        });
    }

    #[test]
    fn a_call_that_does_not_begin_leaves_a_bucket_for_the_next() {
        let [first, second] = Communicator::in_memory(2).unwrap().try_into().ok().unwrap();
        let mut outstanding = Vec::new();
        while let Ok(call) = first.start_barrier() {
            outstanding.push(call);
        }
        let made = || deal(&parameters(&[(DType::F32, 5)]), BUCKET_LIMIT).unwrap();
        let step = |world: &Communicator, buckets: &mut [Box<dyn Bucket>]| {
            buckets[0].pack(None, 1.0, Tally { samples: 1, ..Tally::default() })?;
            buckets[0].start_all_reduce(world, 7)?;
            buckets[0].wait()
        };
        let mut buckets = made();
        let error = step(&first, &mut buckets).unwrap_err();
        assert!(error.to_string().contains("calls are outstanding"), "{error}");
        let calls = outstanding.len();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..calls).for_each(|_| second.barrier().unwrap());
                step(&second, &mut made()).unwrap();
            });
            outstanding.drain(..).for_each(|call| drop(call.wait().unwrap()));
            step(&first, &mut buckets).unwrap();
            assert_eq!(buckets[0].tally().unwrap().samples, 2);
        });
    }
}
