//! Gradients travel in buckets: several parameters in one buffer, one all-reduce a bucket.

use std::mem;

use allfold::{Communicator, PendingBucket, ReduceOp, Reducible, bf16, f16};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var, WithDType};

use crate::error::{Error, Result};
use crate::parameters::with_elements;
use crate::tally::{NUMBERS, Riders};

/// A buffer for some parameters, reused from step to step.
pub(crate) trait Bucket: Send {
    /// The number of parameters in it.
    fn len(&self) -> usize;

    /// Whether it has room for riders. One of f16 or bf16 has not: from 2048 and 256 on these do
    /// not hold every whole number. Nor does f16 hold a sum over many samples, so that what is
    /// added must be divided by the samples of all ranks already.
    fn carries_riders(&self) -> bool;

    /// Adds `scale` times a gradient of this rank to those that its parameter `member` has had
    /// since the last step.
    fn add(&mut self, member: usize, gradient: &Tensor, scale: f64) -> Result<()>;

    /// Starts adding up the buffers of all ranks, with zeros where this one has no gradient; until
    /// [`wait`](Self::wait) this one is away.
    fn start_all_reduce(&mut self, world: &Communicator, label: u64, riders: Riders) -> Result<()>;

    /// The same, on this thread: where there is nothing to do meanwhile, that spares a hand-over.
    fn all_reduce(&mut self, world: &Communicator, label: u64, riders: Riders) -> Result<()>;

    /// Waits until they are added up; nothing where that was not started.
    fn wait(&mut self) -> Result<()>;

    /// The riders of all ranks, once they are added up, where there is room for them.
    fn riders(&self) -> Option<Riders>;

    /// Hands the summed gradients on, divided by `divisor`; a parameter for which no rank has a
    /// gradient has none here either, so that the optimiser leaves it alone.
    fn unpack(&self, into: &mut GradStore, divisor: f64) -> Result<()>;

    /// Forgets this rank's gradients: the next step begins.
    fn clear(&mut self);

    /// Replaces the parameters by rank 0's.
    fn broadcast_parameters(&mut self, world: &Communicator) -> Result<()>;
}

/// The most bytes of a bucket (one parameter may be larger).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Of the first one: with a small one the first all-reduce begins soon after backward does.
    pub(crate) first: usize,
    pub(crate) others: usize,
}

impl Limits {
    pub(crate) fn new(others: usize) -> Self {
        Self { first: FIRST_LIMIT.min(others), others }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(LIMIT)
    }
}

/// Deals parameters to buckets in the order given, which should be that in which backward reaches
/// them: last layer first. Every rank must give the same. A bucket ends at its limit and where the
/// element type changes.
///
/// # Errors
/// [`Error::Parameter`] where the element type cannot be added up.
pub(crate) fn deal(
    world: &Communicator,
    parameters: &[&(String, Var)],
    limits: Limits,
) -> Result<Vec<Box<dyn Bucket>>> {
    let mut buckets = Vec::new();
    for run in parameters.chunk_by(|(_, one), (_, next)| one.dtype() == next.dtype()) {
        let Some((name, first)) = run.first() else { continue };
        match first.dtype() {
            DType::F16 => deal_typed::<f16>(world, run, limits, &mut buckets),
            DType::BF16 => deal_typed::<bf16>(world, run, limits, &mut buckets),
            DType::F32 => deal_typed::<f32>(world, run, limits, &mut buckets),
            DType::F64 => deal_typed::<f64>(world, run, limits, &mut buckets),
            other => {
                let problem = format!("gradients of type {} cannot be added up", other.as_str());
                return Err(Error::Parameter { name: name.clone(), problem });
            }
        }
    }
    Ok(buckets)
}

/// Deals parameters of one type.
fn deal_typed<T: WithDType + Reducible>(
    world: &Communicator,
    run: &[&(String, Var)],
    limits: Limits,
    buckets: &mut Vec<Box<dyn Bucket>>,
) {
    let lengths = |run: &[&(String, Var)]| {
        run.iter().map(|(_, var)| var.elem_count()).collect::<Vec<usize>>()
    };
    let mut rest = run;
    if buckets.is_empty()
        && let Some(first) = allfold::Bucket::<T>::deal(lengths(rest), limits.first).first()
    {
        let (members, others) = rest.split_at(first.end);
        buckets.push(Box::new(Typed::<T>::new(world, members)));
        rest = others;
    }
    for members in allfold::Bucket::<T>::deal(lengths(rest), limits.others) {
        buckets.push(Box::new(Typed::<T>::new(world, &rest[members])));
    }
}

struct Typed<T: Reducible> {
    members: Vec<Var>,
    /// Which of them have had a gradient since the last step; the views of others hold anything.
    filled: Vec<bool>,
    /// A view for each member, its gradient and behind that how many ranks have one; then a view
    /// for the riders, empty where they are not carried. Without any view while it is under way.
    values: allfold::Bucket<T>,
    under_way: Option<PendingBucket<T>>,
}

impl<T: WithDType + Reducible> Typed<T> {
    fn new(world: &Communicator, members: &[&(String, Var)]) -> Self {
        let members: Vec<Var> = members.iter().map(|(_, var)| var.clone()).collect();
        Self {
            values: room(world, &members),
            filled: vec![false; members.len()],
            members,
            under_way: None,
        }
    }

    /// Zeros where this rank has no gradient, who has which, and the riders.
    fn complete(&mut self, riders: Riders) {
        for (&filled, own) in self.filled.iter().zip(self.values.views_mut()) {
            if !filled {
                own.fill(T::zero());
            }
            if let Some(present) = own.last_mut() {
                *present = if filled { T::one() } else { T::zero() };
            }
        }
        let slots = self.values.view_mut(self.members.len());
        for (slot, number) in slots.iter_mut().zip(riders.to_numbers()) {
            *slot = T::from_f64(number);
        }
    }
}

impl<T: WithDType + Reducible> Bucket for Typed<T> {
    fn len(&self) -> usize {
        self.members.len()
    }

    fn carries_riders(&self) -> bool {
        !is_half(T::DTYPE)
    }

    fn add(&mut self, member: usize, gradient: &Tensor, scale: f64) -> Result<()> {
        let (Some(var), Some(filled)) = (self.members.get(member), self.filled.get_mut(member))
        else {
            return Ok(());
        };
        if gradient.dims() != var.dims() {
            return Err(candle_core::Error::Msg(format!(
                "a gradient of shape {:?} for a parameter of shape {:?}",
                gradient.dims(),
                var.dims()
            ))
            .into());
        }
        // A factor of f16 or bf16 would be an error of its own, the same in every gradient.
        let factor = T::from_f64(scale);
        let scaled = |element: T| match is_half(T::DTYPE) {
            true => T::from_f64(element.to_f64() * scale),
            false => element * factor,
        };
        let own = self.values.view_mut(member);
        with_elements(gradient, |elements: &[T]| {
            let pairs = own.iter_mut().zip(elements);
            match *filled {
                false => pairs.for_each(|(slot, &element)| *slot = scaled(element)),
                true => pairs.for_each(|(slot, &element)| *slot += scaled(element)),
            }
        })?;
        *filled = true;
        Ok(())
    }

    fn start_all_reduce(&mut self, world: &Communicator, label: u64, riders: Riders) -> Result<()> {
        self.complete(riders);
        let values = mem::take(&mut self.values);
        match values.start_all_reduce(&world.labelled(label), ReduceOp::Sum) {
            Ok(under_way) => self.under_way = Some(under_way),
            Err(error) => {
                // A call that does not begin keeps the buffer.
                self.values = room(world, &self.members);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn all_reduce(&mut self, world: &Communicator, label: u64, riders: Riders) -> Result<()> {
        self.complete(riders);
        Ok(self.values.all_reduce(&world.labelled(label), ReduceOp::Sum)?)
    }

    fn wait(&mut self) -> Result<()> {
        let Some(under_way) = self.under_way.take() else { return Ok(()) };
        let (values, result) = under_way.finish();
        self.values = values;
        Ok(result?)
    }

    fn riders(&self) -> Option<Riders> {
        if !self.carries_riders() {
            return None;
        }
        let mut numbers = [0.0; NUMBERS];
        for (number, &value) in numbers.iter_mut().zip(self.values.view(self.members.len())) {
            *number = value.to_f64();
        }
        Some(Riders::from_numbers(numbers))
    }

    fn unpack(&self, into: &mut GradStore, divisor: f64) -> Result<()> {
        let rounded = T::from_f64(divisor);
        // As in `add`: a rounded divisor would be an error of its own.
        let quotient = |sum: T| match is_half(T::DTYPE) {
            true => T::from_f64(sum.to_f64() / divisor),
            false => sum / rounded,
        };
        for (var, own) in self.members.iter().zip(self.values.views()) {
            let Some((&present, gradient)) = own.split_last() else {
                continue;
            };
            if present > T::zero() {
                let mean: Vec<T> = gradient.iter().map(|&sum| quotient(sum)).collect();
                into.insert(var, Tensor::from_vec(mean, var.shape(), var.device())?);
            }
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.filled.fill(false);
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

/// A view for each member, one for the riders.
fn room<T: WithDType + Reducible>(world: &Communicator, members: &[Var]) -> allfold::Bucket<T> {
    let gradients = members.iter().map(|var| var.elem_count() + 1);
    let riders = if is_half(T::DTYPE) { 0 } else { NUMBERS };
    allfold::Bucket::within(world, gradients.chain([riders]))
}

/// Whether gradients of this type travel as they are, but no riders with them.
fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// Bytes of a bucket. Large enough for full speed, small enough that the first is on its way while
/// backward still works on others; the default of PyTorch's DDP.
const LIMIT: usize = 25 << 20;
/// Bytes of the first bucket, as in PyTorch's DDP.
const FIRST_LIMIT: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;
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

    fn dealt(types: &[(DType, usize)], limits: Limits) -> Vec<usize> {
        let parameters = parameters(types);
        let parameters: Vec<_> = parameters.iter().collect();
        deal(&single(), &parameters, limits).unwrap().iter().map(|bucket| bucket.len()).collect()
    }

    /// All parameters in one bucket.
    fn whole(parameters: &[(String, Var)]) -> Box<dyn Bucket> {
        let parameters: Vec<_> = parameters.iter().collect();
        let [bucket] =
            deal(&single(), &parameters, Limits::default()).unwrap().try_into().ok().unwrap();
        bucket
    }

    fn riders(samples: usize) -> Riders {
        Riders { tally: Tally { samples, loss: 2.5, correct: 3 }, stops: 1 }
    }

    #[test]
    fn buckets_end_at_the_limit_and_where_the_type_changes() {
        use DType::{BF16, F16, F32, F64};
        let dealt_40 = |types: &[(DType, usize)]| dealt(types, Limits::new(40)).len();
        assert_eq!(dealt_40(&[]), 0);
        assert_eq!(dealt_40(&[(F32, 5), (F32, 5)]), 1);
        assert_eq!(dealt_40(&[(F32, 5), (F32, 6)]), 2);
        assert_eq!(dealt_40(&[(F32, 1), (F32, 100), (F32, 1)]), 3);
        assert_eq!(dealt_40(&[(F32, 1), (F64, 1), (F64, 1), (F32, 1)]), 3);
        assert_eq!(dealt_40(&[(F32, 0), (F32, 0)]), 1);
        assert_eq!(dealt_40(&[(F16, 10), (F16, 10), (BF16, 10), (BF16, 11)]), 3);
    }

    #[test]
    fn the_first_bucket_is_smaller() {
        let limits = Limits { first: 20, others: 40 };
        assert_eq!(dealt(&[(DType::F32, 5); 9], limits), [1, 2, 2, 2, 2]);
        assert_eq!(dealt(&[(DType::F32, 2); 9], limits), [2, 5, 2]);
    }

    #[test]
    fn types_that_cannot_be_added_up_are_named() {
        let parameters = parameters(&[(DType::F32, 3), (DType::U32, 3)]);
        let parameters: Vec<_> = parameters.iter().collect();
        let Err(error) = deal(&single(), &parameters, Limits::default()) else {
            panic!("u32 was taken");
        };
        let expected = "parameter `p1`: gradients of type u32 cannot be added up";
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn gradients_add_up_and_come_back_divided() {
        let parameters = parameters(&[(DType::F64, 2), (DType::F64, 1), (DType::F64, 0)]);
        let gradient = Tensor::new(&[3.0f64, -6.0], &Device::Cpu).unwrap();
        let mut bucket = whole(&parameters);
        // Twice: the buffer is reused.
        for _ in 0..2 {
            bucket.add(0, &gradient, 2.0).unwrap();
            bucket.add(0, &gradient, 1.0).unwrap();
            bucket.start_all_reduce(&single(), 7, riders(6)).unwrap();
            bucket.wait().unwrap();
            assert_eq!(bucket.riders(), Some(riders(6)));
            let mut mean = GradStore::default();
            bucket.unpack(&mut mean, 6.0).unwrap();
            let mean_of = |at: usize| mean.get(&parameters[at].1 as &Tensor);
            assert_eq!(mean_of(0).unwrap().to_vec1::<f64>().unwrap(), [1.5, -3.0]);
            assert!(mean_of(1).is_none(), "no rank has this gradient");
            bucket.clear();
        }
        bucket.start_all_reduce(&single(), 7, Riders::default()).unwrap();
        bucket.wait().unwrap();
        let mut mean = GradStore::default();
        bucket.unpack(&mut mean, 1.0).unwrap();
        assert!(mean.get(&parameters[0].1 as &Tensor).is_none(), "that of the step before");
    }

    #[test]
    fn a_gradient_of_another_shape_is_refused() {
        let mut bucket = whole(&parameters(&[(DType::F32, 2)]));
        let gradient = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let expected = "candle: a gradient of shape [3] for a parameter of shape [2]";
        assert_eq!(bucket.add(0, &gradient, 1.0).unwrap_err().to_string(), expected);
    }

    #[test]
    fn starting_waits_for_no_other_rank() {
        let [first, second] = Communicator::in_memory(2).unwrap().try_into().ok().unwrap();
        let start = |world: &Communicator| {
            let parameters = parameters(&[(DType::F64, 1), (DType::F32, 1), (DType::F64, 1)]);
            let parameters: Vec<_> = parameters.iter().collect();
            let mut buckets = deal(world, &parameters, Limits::default()).unwrap();
            for bucket in &mut buckets {
                bucket.start_all_reduce(world, 7, riders(1 + world.rank())).unwrap();
            }
            buckets
        };
        // The other rank makes its calls when this one has made all.
        let mut buckets = start(&first);
        std::thread::scope(|scope| {
            scope.spawn(|| start(&second).iter_mut().for_each(|bucket| bucket.wait().unwrap()));
            for bucket in &mut buckets {
                bucket.wait().unwrap();
                assert_eq!(bucket.riders().unwrap().tally.samples, 3);
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
        let made = || whole(&parameters(&[(DType::F32, 5)]));
        let step = |world: &Communicator, bucket: &mut Box<dyn Bucket>| {
            bucket.start_all_reduce(world, 7, riders(1))?;
            bucket.wait()
        };
        let mut bucket = made();
        let error = step(&first, &mut bucket).unwrap_err();
        assert!(error.to_string().contains("calls are outstanding"), "{error}");
        let calls = outstanding.len();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..calls).for_each(|_| second.barrier().unwrap());
                step(&second, &mut made()).unwrap();
            });
            outstanding.drain(..).for_each(|call| call.wait().unwrap());
            step(&first, &mut bucket).unwrap();
            assert_eq!(bucket.riders().unwrap().tally.samples, 2);
        });
    }
}
