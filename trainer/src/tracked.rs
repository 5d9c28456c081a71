//! Parameters that report their gradients while backward goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Device, Layout, Result as Candle, Shape, Tensor, Var,
};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;

use crate::error::{Error, Result};
use crate::reduction::Reduction;

/// What a wrapped optimiser shares with the parameters of its models.
pub(crate) struct Shared {
    reduction: Mutex<Reduction>,
    /// Parameters in the order in which the first model asked for them; none once that is settled.
    asked_for: Mutex<Option<Vec<usize>>>,
    /// The first error of a report. candle would make a text of it.
    error: Mutex<Option<Error>>,
}

impl Shared {
    pub(crate) fn new(reduction: Reduction) -> Self {
        Self {
            reduction: Mutex::new(reduction),
            asked_for: Mutex::new(Some(Vec::new())),
            error: Mutex::default(),
        }
    }

    pub(crate) fn reduction(&self) -> MutexGuard<'_, Reduction> {
        locked(&self.reduction)
    }

    /// The order in which backward reaches the parameters of the first model: against that in
    /// which it asked for them. Those that it has not asked for come first, as in the order of
    /// names where there is no model yet.
    pub(crate) fn settle_order(&self, parameters: usize) -> Vec<usize> {
        let asked_for = locked(&self.asked_for).take().unwrap_or_default();
        let mut is_asked_for = vec![false; parameters];
        for &parameter in &asked_for {
            is_asked_for[parameter] = true;
        }
        let others = (0..parameters).filter(|&parameter| !is_asked_for[parameter]);
        let mut order: Vec<usize> = asked_for.iter().copied().chain(others).collect();
        order.reverse();
        order
    }

    /// The error of a report in the last backward pass.
    pub(crate) fn take_error(&self) -> Option<Error> {
        locked(&self.error).take()
    }
}

/// Hands out parameters, for one model that makes one loss.
pub(crate) struct Tracked {
    parameters: HashMap<String, (usize, Var)>,
    /// None where nothing is reported.
    shared: Option<Arc<Shared>>,
    /// The steps that were done when this was made.
    step: u64,
    /// A parameter that a model asks for twice is one parameter.
    handed_out: Mutex<HashMap<usize, Tensor>>,
}

impl Tracked {
    pub(crate) fn new(
        parameters: &[(String, Var)],
        shared: Option<Arc<Shared>>,
        step: u64,
    ) -> Self {
        let parameters = parameters.iter().enumerate();
        Self {
            parameters: parameters
                .map(|(at, (name, var))| (name.clone(), (at, var.clone())))
                .collect(),
            shared,
            step,
            handed_out: Mutex::default(),
        }
    }

    fn hand_out(&self, parameter: usize, var: &Var) -> Candle<Tensor> {
        let Some(shared) = &self.shared else { return Ok(var.as_tensor().clone()) };
        let mut handed_out = locked(&self.handed_out);
        if let Some(tensor) = handed_out.get(&parameter) {
            return Ok(tensor.clone());
        }
        if let Some(asked_for) = &mut *locked(&shared.asked_for)
            && !asked_for.contains(&parameter)
        {
            asked_for.push(parameter);
        }
        let report = Report { parameter, step: self.step, shared: shared.clone() };
        let tensor = var.apply_op1(report)?;
        handed_out.insert(parameter, tensor.clone());
        Ok(tensor)
    }
}

impl SimpleBackend for Tracked {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, _: &Device) -> Candle<Tensor> {
        let tensor = self.get_unchecked(name, dtype, &Device::Cpu)?;
        if tensor.shape() != &shape {
            return Err(candle_core::Error::UnexpectedShape {
                msg: format!("parameter `{name}`"),
                expected: shape,
                got: tensor.shape().clone(),
            });
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> Candle<Tensor> {
        let Some((parameter, var)) = self.parameters.get(name) else {
            let problem = format!("no parameter `{name}` in the VarMap that was wrapped");
            return Err(candle_core::Error::Msg(problem));
        };
        if var.dtype() != dtype {
            let (is, asked) = (var.dtype().as_str(), dtype.as_str());
            let problem = format!("parameter `{name}` is of type {is}, not {asked}");
            return Err(candle_core::Error::Msg(problem));
        }
        self.hand_out(*parameter, var)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.parameters.contains_key(name)
    }
}

/// The identity, whose backward pass reports the gradient in place of handing it on. candle calls
/// it once, with the whole gradient, as soon as that is known.
struct Report {
    parameter: usize,
    step: u64,
    shared: Arc<Shared>,
}

impl Report {
    fn report(&self, gradient: &Tensor) -> Result<()> {
        let mut reduction = self.shared.reduction();
        if reduction.step() != self.step {
            return Err(Error::StaleModel);
        }
        reduction.ready(self.parameter, gradient)
    }
}

impl CustomOp1 for Report {
    fn name(&self) -> &'static str {
        "gradient-ready"
    }

    /// A copy: candle has no operation that shares its input and calls back.
    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Candle<(CpuStorage, Shape)> {
        use CpuStorage::{BF16, F16, F32, F64};
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a parameter that is not contiguous");
        };
        let copy = match storage {
            F16(elements) => F16(elements[start..end].to_vec()),
            BF16(elements) => BF16(elements[start..end].to_vec()),
            F32(elements) => F32(elements[start..end].to_vec()),
            F64(elements) => F64(elements[start..end].to_vec()),
            _ => candle_core::bail!("a parameter whose gradients cannot be added up"),
        };
        Ok((copy, layout.shape().clone()))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Candle<(CudaStorage, Shape)> {
        match layout.contiguous_offsets() {
            Some((0, _)) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => candle_core::bail!("a parameter that is not contiguous, or a part of a tensor"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Candle<Option<Tensor>> {
        self.report(gradient).map(|()| None).map_err(|error| {
            let text = error.to_string();
            locked(&self.shared.error).get_or_insert(error);
            candle_core::Error::Msg(text)
        })
    }
}

/// After a panic of another thread the error of the world says more than a poisoned lock.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Limits;
    use crate::reduction::Pass;
    use crate::tally::{Riders, Tally};
    use allfold::Communicator;
    use candle_nn::VarBuilder;

    /// The identity, which looks when backward comes by.
    struct Look(Arc<Shared>, Mutex<std::sync::mpsc::Sender<bool>>);

    impl CustomOp1 for Look {
        fn name(&self) -> &'static str {
            "look"
        }

        fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Candle<(CpuStorage, Shape)> {
            Ok((storage.clone(), layout.shape().clone()))
        }

        fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Candle<Option<Tensor>> {
            let is_under_way = self.0.reduction().is_under_way();
            locked(&self.1).send(is_under_way).unwrap();
            Ok(Some(gradient.clone()))
        }
    }

    #[test]
    fn a_bucket_is_on_its_way_while_backward_goes_on() {
        let var = || Var::ones(2, DType::F32, &Device::Cpu).unwrap();
        let parameters = [("first".to_string(), var()), ("last".to_string(), var())];
        let limits = Limits { first: 8, others: 8 };
        let world = Communicator::single();
        let reduction = Reduction::new(world, &parameters, &[1, 0], limits).unwrap();
        let shared = Arc::new(Shared::new(reduction));
        let tracked = Tracked::new(&parameters, Some(shared.clone()), 0);
        let vars = VarBuilder::from_backend(Box::new(tracked), DType::F32, Device::Cpu);
        let (send, seen) = std::sync::mpsc::channel();
        let look = Look(shared.clone(), Mutex::new(send));
        let first = vars.get(2, "first").unwrap().sqr().unwrap().apply_op1(look).unwrap();
        let loss = (first * vars.get(2, "last").unwrap()).unwrap().sum_all().unwrap();

        let own = Tally { samples: 1, ..Tally::default() };
        let riders = Riders { tally: own, stops: 0 };
        shared.reduction().begin(Pass { step: 0, scale: 1.0, riders, own, is_last: true }).unwrap();
        let store = loss.backward().unwrap();
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [true]);
        assert!(store.get(&parameters[0].1 as &Tensor).is_none(), "it was reported");
        let (mean, _) = shared.reduction().finish().unwrap();
        let gradient = mean.get(&parameters[0].1 as &Tensor).unwrap();
        assert_eq!(gradient.to_vec1::<f32>().unwrap(), [2.0; 2]);
    }
}
