//! A bucket of gradients that lie on a GPU, and stay there.

use allfold::Communicator;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

use super::{Bucket, check_shape, is_half};
use crate::error::Result;
use crate::nccl::Nccl;
use crate::parameters::on_host;
use crate::tally::{NUMBERS, Riders};

/// Its members are added up as one tensor, by operations of candle's: their gradients, then for
/// each member how many ranks have one, then the riders.
pub(super) struct Tensors {
    nccl: Nccl,
    members: Vec<Var>,
    dtype: DType,
    device: Device,
    /// This rank's gradients since the last step.
    sums: Vec<Option<Tensor>>,
    /// Of all ranks, once they are added up.
    values: Option<Tensor>,
    /// What of them is not gradients.
    counts: Vec<f64>,
    is_under_way: bool,
    /// That of its sum in the queue of the GPU.
    number: u64,
}

impl Tensors {
    /// For members of one type on one device.
    pub(super) fn new(nccl: &Nccl, members: &[&(String, Var)]) -> Self {
        let members: Vec<Var> = members.iter().map(|(_, var)| var.clone()).collect();
        let first = members.first();
        Self {
            nccl: nccl.clone(),
            dtype: first.map_or(DType::F32, |var| var.dtype()),
            device: first.map_or(Device::Cpu, |var| var.device().clone()),
            sums: vec![None; members.len()],
            members,
            values: None,
            counts: Vec::new(),
            is_under_way: false,
            number: 0,
        }
    }

    /// All in one tensor: zeros where this rank has no gradient, who has which, and the riders.
    fn complete(&self, riders: Riders) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(self.members.len() + 1);
        for (var, sum) in self.members.iter().zip(&self.sums) {
            match (var.elem_count(), sum) {
                (0, _) => {}
                (_, Some(sum)) => parts.push(sum.clone()),
                (count, None) => parts.push(Tensor::zeros(count, self.dtype, &self.device)?),
            }
        }
        let present = self.sums.iter().map(|sum| f64::from(u8::from(sum.is_some())));
        let mut counts: Vec<f64> = present.collect();
        if self.carries_riders() {
            counts.extend(riders.to_numbers());
        }
        let counts = Tensor::new(counts, &Device::Cpu)?.to_dtype(self.dtype)?;
        parts.push(counts.to_device(&self.device)?);
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// The type in which a factor is exact enough.
    fn wide(&self) -> DType {
        if is_half(self.dtype) { DType::F32 } else { self.dtype }
    }
}

impl Bucket for Tensors {
    fn len(&self) -> usize {
        self.members.len()
    }

    fn carries_riders(&self) -> bool {
        !is_half(self.dtype)
    }

    fn add(&mut self, member: usize, gradient: &Tensor, scale: f64) -> Result<()> {
        let (Some(var), Some(sum)) = (self.members.get(member), self.sums.get(member)) else {
            return Ok(());
        };
        check_shape(var, gradient)?;
        // CUDA runs no kernel on nothing.
        if var.elem_count() == 0 {
            return Ok(());
        }
        let gradient = gradient.detach().to_device(&self.device)?.flatten_all()?;
        let scaled = (gradient.to_dtype(self.wide())? * scale)?.to_dtype(self.dtype)?;
        self.sums[member] = Some(match sum {
            Some(sum) => (sum + scaled)?,
            None => scaled,
        });
        Ok(())
    }

    fn start_all_reduce(&mut self, world: &Communicator, label: u64, riders: Riders) -> Result<()> {
        let values = self.complete(riders)?;
        let started = self.nccl.all_reduce(world, label, &values);
        self.number = self.nccl.queued();
        // Kept also where that failed: what was queued may still be at work on it.
        self.values = Some(values);
        self.is_under_way = true;
        started
    }

    fn all_reduce(&mut self, world: &Communicator, label: u64, riders: Riders) -> Result<()> {
        self.start_all_reduce(world, label, riders)?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_under_way) {
            return Ok(());
        }
        self.nccl.wait_for(self.number)?;
        if let Some(values) = &self.values {
            let counts = self.members.len() + if self.carries_riders() { NUMBERS } else { 0 };
            let counts = values.narrow(0, values.elem_count() - counts, counts)?;
            self.counts = on_host(&counts)?.to_dtype(DType::F64)?.to_vec1()?;
        }
        Ok(())
    }

    fn riders(&self) -> Option<Riders> {
        if !self.carries_riders() {
            return None;
        }
        let mut numbers = [0.0; NUMBERS];
        let riders = self.counts.iter().skip(self.members.len());
        for (number, &value) in numbers.iter_mut().zip(riders) {
            *number = value;
        }
        Some(Riders::from_numbers(numbers))
    }

    fn unpack(&self, into: &mut GradStore, divisor: f64) -> Result<()> {
        let Some(values) = &self.values else { return Ok(()) };
        let mut start = 0;
        for (var, &present) in self.members.iter().zip(&self.counts) {
            let count = var.elem_count();
            if present > 0.0 {
                let sum = values.narrow(0, start, count)?.to_dtype(self.wide())?;
                let mean = (sum / divisor)?.to_dtype(self.dtype)?;
                into.insert(var, mean.reshape(var.shape())?);
            }
            start += count;
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.sums.fill(None);
        self.is_under_way = false;
        self.values = None;
        self.counts.clear();
    }

    fn broadcast_parameters(&mut self, world: &Communicator) -> Result<()> {
        for var in self.members.iter().filter(|var| var.elem_count() > 0) {
            self.nccl.broadcast(world, var)?;
        }
        self.nccl.wait()
    }
}
