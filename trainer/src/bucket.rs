//! Gradients travel in buckets: several parameters in one buffer, one all-reduce a bucket.

mod tensors;

use std::mem;

use allfold::{Communicator, PendingBucket, ReduceOp, Reducible, bf16, f16};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var, WithDType};

use crate::error::{Error, Result};
use crate::nccl::{Nccl, gpu_of};
use crate::parameters::with_elements;
use crate::tally::{NUMBERS, Riders};
use tensors::Tensors;

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
/// element type or the device changes.
///
/// # Errors
/// [`Error::Parameter`] where the element type cannot be added up.
pub(crate) fn deal(
    world: &Communicator,
    nccl: &Nccl,
    parameters: &[&(String, Var)],
    limits: Limits,
) -> Result<Vec<Box<dyn Bucket>>> {
    let mut buckets = Vec::new();
    let kind = |var: &Var| (var.dtype(), gpu_of(var));
    for run in parameters.chunk_by(|(_, one), (_, next)| kind(one) == kind(next)) {
        let Some((name, first)) = run.first() else { continue };
        let by = (world, nccl, limits);
        match first.dtype() {
            DType::F16 => deal_typed::<f16>(by, run, &mut buckets),
            DType::BF16 => deal_typed::<bf16>(by, run, &mut buckets),
            DType::F32 => deal_typed::<f32>(by, run, &mut buckets),
            DType::F64 => deal_typed::<f64>(by, run, &mut buckets),
            other => {
                let problem = format!("gradients of type {} cannot be added up", other.as_str());
                return Err(Error::Parameter { name: name.clone(), problem });
            }
        }
    }
    Ok(buckets)
}

/// Deals parameters of one type on one device.
fn deal_typed<T: WithDType + Reducible>(
    (world, nccl, limits): (&Communicator, &Nccl, Limits),
    run: &[&(String, Var)],
    buckets: &mut Vec<Box<dyn Bucket>>,
) {
    let made = |members: &[&(String, Var)]| -> Box<dyn Bucket> {
        match members.first().is_some_and(|(_, var)| gpu_of(var).is_some()) {
            true => Box::new(Tensors::new(nccl, members)),
            false => Box::new(Typed::<T>::new(world, members)),
        }
    };
    let lengths = |run: &[&(String, Var)]| {
        run.iter().map(|(_, var)| var.elem_count()).collect::<Vec<usize>>()
    };
    let mut rest = run;
    if buckets.is_empty()
        && let Some(first) = allfold::Bucket::<T>::deal(lengths(rest), limits.first).first()
    {
        let (members, others) = rest.split_at(first.end);
        buckets.push(made(members));
        rest = others;
    }
    for members in allfold::Bucket::<T>::deal(lengths(rest), limits.others) {
        buckets.push(made(&rest[members]));
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
        check_shape(var, gradient)?;
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

fn check_shape(var: &Var, gradient: &Tensor) -> Result<()> {
    if gradient.dims() == var.dims() {
        return Ok(());
    }
    let (found, expected) = (gradient.dims(), var.dims());
    let problem = format!("a gradient of shape {found:?} for a parameter of shape {expected:?}");
    Err(candle_core::Error::Msg(problem).into())
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
mod tests;
