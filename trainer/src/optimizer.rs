//! The optimisers of `train`: sgd, adagrad and adamw, with a state that can be saved and put back.
//! candle's own hide theirs.

mod adagrad;
mod adamw;
mod sgd;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::{Add, Div, Mul, Sub};

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, DType, Device, InplaceOp2, Layout, Result as Candle, Shape, Tensor, Var, WithDType,
};
use candle_nn::Optimizer;

use crate::error::{Error, Result};
use crate::options::OptimizerKind;
use crate::parameters::with_elements;

/// What an optimiser is to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// By which rule.
    pub kind: OptimizerKind,
    /// The learning rate.
    pub lr: f64,
    /// The part of the last step that sgd keeps; the others have no use for it.
    pub momentum: f64,
}

/// An optimiser of named parameters, for [`Distributed`](crate::Distributed).
///
/// On the host it reads and writes f32 and f64 in place, in one pass and without allocating; on a GPU
/// it computes by candle's operations, and its state is there. f16 and bf16 are computed in f32 and
/// rounded once a step, their state is f32.
pub struct Optimiser {
    config: OptimizerConfig,
    /// Steps done.
    steps: u64,
    parameters: Vec<Parameter>,
}

/// A parameter and what the rule remembers of it.
struct Parameter {
    name: String,
    var: Var,
    state: RefCell<State>,
}

/// One list of numbers for each name in [`OptimizerKind::states`], as long as the parameter.
enum State {
    F32(Vec<Vec<f32>>),
    F64(Vec<Vec<f64>>),
    /// Of a parameter that is on a GPU, and there.
    Tensors(Vec<Tensor>),
}

/// A step's rule for the elements of one parameter.
#[derive(Clone, Copy)]
enum Rule {
    Sgd(sgd::Rule),
    Adagrad(adagrad::Rule),
    Adamw(adamw::Rule),
}

impl OptimizerConfig {
    /// A rule with its usual learning rate and momentum.
    pub fn new(kind: OptimizerKind) -> Self {
        Self { kind, lr: kind.default_lr(), momentum: DEFAULT_MOMENTUM }
    }
}

impl Optimiser {
    /// An optimiser of these parameters, of which those that are no floating-point numbers are
    /// left alone.
    ///
    /// # Errors
    /// A state that candle cannot make.
    pub fn new(config: OptimizerConfig, parameters: &[(String, Var)]) -> Result<Self> {
        let parameters = parameters
            .iter()
            .filter(|(_, var)| var.dtype().is_float())
            .map(|(name, var)| {
                let state = RefCell::new(State::new(config.kind, var)?);
                Ok(Parameter { name: name.clone(), var: var.clone(), state })
            })
            .collect::<Result<_>>()?;
        Ok(Self { config, steps: 0, parameters })
    }

    /// The state by name, copied: `adamw.steps`, the number of steps done, and for each parameter
    /// such as `adamw.first.dense1.weight`.
    ///
    /// # Errors
    /// candle's own.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let kind = self.config.kind;
        let steps = Tensor::new(&[self.steps as i64], &Device::Cpu)?;
        let mut all = vec![(steps_name(kind), steps)];
        for parameter in &self.parameters {
            let state = parameter.state.borrow();
            let shape = parameter.var.shape();
            for (number, state_name) in kind.states().iter().enumerate() {
                let tensor = match &*state {
                    State::F32(lists) => Tensor::from_slice(&lists[number], shape, &Device::Cpu)?,
                    State::F64(lists) => Tensor::from_slice(&lists[number], shape, &Device::Cpu)?,
                    State::Tensors(tensors) => tensors[number].to_device(&Device::Cpu)?,
                };
                all.push((name(kind, state_name, &parameter.name), tensor));
            }
        }
        Ok(all)
    }

    /// Puts a state back; the next step then has the bits of an optimiser that was never
    /// interrupted. What it does not know is left alone.
    ///
    /// # Errors
    /// [`Error::OptimizerState`] with what is missing, or is of another shape or type. Nothing
    /// has changed then.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        let kind = self.config.kind;
        let find = |name: String, dtype: DType, shape: &Shape| {
            let wrong = |problem: String| Error::OptimizerState { name: name.clone(), problem };
            let tensor = state.get(&name).ok_or_else(|| wrong("is missing".into()))?;
            if tensor.shape() != shape || tensor.dtype() != dtype {
                let told = |dtype: DType, shape: &Shape| format!("{} {shape:?}", dtype.as_str());
                let found = told(tensor.dtype(), tensor.shape());
                return Err(wrong(format!("is {found}, expected {}", told(dtype, shape))));
            }
            Ok(tensor)
        };
        let steps = find(steps_name(kind), DType::I64, &Shape::from(1))?.to_vec1::<i64>()?[0];
        let steps = u64::try_from(steps).map_err(|_| Error::OptimizerState {
            name: steps_name(kind),
            problem: format!("is {steps}, expected 0 or more"),
        })?;
        let mut restored = Vec::with_capacity(self.parameters.len());
        for Parameter { name: parameter, var, state } in &self.parameters {
            let dtype = if var.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
            let lists = kind
                .states()
                .iter()
                .map(|state| find(name(kind, state, parameter), dtype, var.shape()))
                .collect::<Result<Vec<&Tensor>>>()?;
            let is_tensors = matches!(*state.borrow(), State::Tensors(_));
            restored.push(match dtype {
                _ if is_tensors => State::Tensors(
                    lists.iter().map(|list| list.to_device(var.device())).collect::<Candle<_>>()?,
                ),
                DType::F64 => State::F64(elements(&lists)?),
                _ => State::F32(elements(&lists)?),
            });
        }
        for (parameter, state) in self.parameters.iter_mut().zip(restored) {
            parameter.state = RefCell::new(state);
        }
        self.steps = steps;
        Ok(())
    }
}

impl Optimizer for Optimiser {
    type Config = OptimizerConfig;

    /// Names the parameters by their places.
    fn new(vars: Vec<Var>, config: OptimizerConfig) -> Candle<Self> {
        let parameters: Vec<(String, Var)> =
            vars.into_iter().enumerate().map(|(at, var)| (at.to_string(), var)).collect();
        Self::new(config, &parameters).map_err(candle_core::Error::wrap)
    }

    fn step(&mut self, gradients: &GradStore) -> Candle<()> {
        self.steps += 1;
        let rule = Rule::of(self.config, self.steps);
        for Parameter { var, state, .. } in &self.parameters {
            let Some(gradient) = gradients.get(var) else { continue };
            if let State::Tensors(state) = &mut *state.borrow_mut() {
                rule.apply_to_tensors(var, gradient, state)?;
                continue;
            }
            let step = Step { rule, state };
            match var.dtype() {
                DType::F32 | DType::F64 => var.inplace_op2(&gradient.contiguous()?, &step)?,
                dtype => {
                    let wide = var.to_dtype(DType::F32)?;
                    wide.inplace_op2(&gradient.to_dtype(DType::F32)?.contiguous()?, &step)?;
                    var.set(&wide.to_dtype(dtype)?)?;
                }
            }
        }
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.config.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.config.lr = lr;
    }
}

impl State {
    fn new(kind: OptimizerKind, var: &Var) -> Result<Self> {
        let (count, start) = (var.elem_count(), kind.start());
        let lists = kind.states().len();
        Ok(match var.dtype() {
            _ if !var.device().is_cpu() => Self::of_tensors(kind, var)?,
            DType::F64 => Self::F64(vec![vec![start; count]; lists]),
            _ => Self::F32(vec![vec![start as f32; count]; lists]),
        })
    }

    fn of_tensors(kind: OptimizerKind, var: &Var) -> Result<Self> {
        let dtype = if var.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        // Made on the host, as `full` on a GPU knows fewer types.
        let start = Tensor::full(kind.start(), var.shape(), &Device::Cpu)?.to_dtype(dtype)?;
        let tensor = |_: &&str| start.to_device(var.device());
        Ok(Self::Tensors(kind.states().iter().map(tensor).collect::<Candle<_>>()?))
    }
}

impl OptimizerKind {
    /// The learning rate where none is asked for.
    pub fn default_lr(self) -> f64 {
        match self {
            Self::Adamw => 0.01,
            Self::Sgd | Self::Adagrad => 0.1,
        }
    }

    /// What is remembered of each element.
    pub(crate) fn states(self) -> &'static [&'static str] {
        match self {
            Self::Sgd => &["momentum"],
            Self::Adagrad => &["accumulator"],
            Self::Adamw => &["first", "second"],
        }
    }

    /// What it is before the first step.
    fn start(self) -> f64 {
        match self {
            Self::Sgd | Self::Adamw => 0.0,
            Self::Adagrad => adagrad::INITIAL,
        }
    }
}

impl Rule {
    /// The rule of a step, counted from 1.
    fn of(OptimizerConfig { kind, lr, momentum }: OptimizerConfig, step: u64) -> Self {
        match kind {
            OptimizerKind::Sgd => Self::Sgd(sgd::Rule { lr, momentum }),
            OptimizerKind::Adagrad => Self::Adagrad(adagrad::Rule { lr }),
            OptimizerKind::Adamw => Self::Adamw(adamw::Rule::new(lr, step)),
        }
    }

    fn apply<T: Number>(self, values: &mut [T], gradient: &[T], state: &mut [Vec<T>]) {
        match (self, state) {
            (Self::Sgd(rule), [momentum]) => rule.apply(values, gradient, momentum),
            (Self::Adagrad(rule), [accumulator]) => rule.apply(values, gradient, accumulator),
            (Self::Adamw(rule), [first, second]) => rule.apply(values, gradient, first, second),
            // Lists are made and restored as `states` names them.
            _ => {}
        }
    }
}

impl Rule {
    /// As [`apply`](Self::apply), where the parameter is on a GPU.
    fn apply_to_tensors(self, var: &Var, gradient: &Tensor, state: &mut [Tensor]) -> Candle<()> {
        let Some(dtype) = state.first().map(Tensor::dtype) else { return Ok(()) };
        let [values, gradient] =
            [var.as_tensor(), gradient].map(|tensor| tensor.detach().to_dtype(dtype));
        let (values, gradient) = (values?, gradient?);
        let values = match (self, state) {
            (Self::Sgd(rule), [momentum]) => rule.apply_to_tensors(&values, &gradient, momentum),
            (Self::Adagrad(rule), [accumulator]) => {
                rule.apply_to_tensors(&values, &gradient, accumulator)
            }
            (Self::Adamw(rule), [first, second]) => {
                rule.apply_to_tensors(&values, &gradient, first, second)
            }
            // As in `apply`.
            _ => return Ok(()),
        };
        var.set(&values?.to_dtype(var.dtype())?)
    }
}

/// One parameter's step: candle lends the parameter and the gradient, the state is here.
struct Step<'a> {
    rule: Rule,
    state: &'a RefCell<State>,
}

impl InplaceOp2 for Step<'_> {
    fn name(&self) -> &'static str {
        "optimiser-step"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        values_at: &Layout,
        gradient: &CpuStorage,
        gradient_at: &Layout,
    ) -> Candle<()> {
        let (Some((start, end)), Some((from, to))) =
            (values_at.contiguous_offsets(), gradient_at.contiguous_offsets())
        else {
            candle_core::bail!("a parameter that is not contiguous")
        };
        if values_at.shape() != gradient_at.shape() {
            let (expected, found) = (values_at.shape(), gradient_at.shape());
            candle_core::bail!("a gradient of shape {found:?} for a parameter of {expected:?}")
        }
        match (values, gradient, &mut *self.state.borrow_mut()) {
            (CpuStorage::F32(values), CpuStorage::F32(gradient), State::F32(state)) => {
                self.rule.apply(&mut values[start..end], &gradient[from..to], state)
            }
            (CpuStorage::F64(values), CpuStorage::F64(gradient), State::F64(state)) => {
                self.rule.apply(&mut values[start..end], &gradient[from..to], state)
            }
            _ => candle_core::bail!("a gradient of another type than its parameter"),
        }
        Ok(())
    }
}

/// f32 or f64.
trait Number:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + 'static
{
    fn of(value: f64) -> Self;
    fn sqrt(self) -> Self;
}

impl Number for f32 {
    fn of(value: f64) -> Self {
        value as Self
    }

    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

impl Number for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

fn elements<T: WithDType>(tensors: &[&Tensor]) -> Result<Vec<Vec<T>>> {
    tensors.iter().map(|tensor| with_elements(tensor, <[T]>::to_vec)).collect()
}

fn steps_name(kind: OptimizerKind) -> String {
    format!("{}.steps", crate::settings::name(&kind))
}

fn name(kind: OptimizerKind, state: &str, parameter: &str) -> String {
    format!("{}.{state}.{parameter}", crate::settings::name(&kind))
}

/// Of sgd: what recipes usually take (PyTorch's own default is 0).
pub const DEFAULT_MOMENTUM: f64 = 0.9;

#[cfg(test)]
mod tests;
