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
    deal(&single(), &Nccl::default(), &parameters, limits)
        .unwrap()
        .iter()
        .map(|bucket| bucket.len())
        .collect()
}

/// Puts all parameters into one bucket.
type Make = fn(&[(String, Var)]) -> Box<dyn Bucket>;

/// All parameters in one bucket.
fn whole(parameters: &[(String, Var)]) -> Box<dyn Bucket> {
    let parameters: Vec<_> = parameters.iter().collect();
    let [bucket] = deal(&single(), &Nccl::default(), &parameters, Limits::default())
        .unwrap()
        .try_into()
        .ok()
        .unwrap();
    bucket
}

/// The same on the host as it is on a GPU.
fn as_on_a_gpu(parameters: &[(String, Var)]) -> Box<dyn Bucket> {
    let parameters: Vec<_> = parameters.iter().collect();
    Box::new(Tensors::new(&Nccl::default(), &parameters))
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
    let Err(error) = deal(&single(), &Nccl::default(), &parameters, Limits::default()) else {
        panic!("u32 was taken");
    };
    let expected = "parameter `p1`: gradients of type u32 cannot be added up";
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn gradients_on_the_host_add_up_and_come_back_divided() {
    gradients_add_up_and_come_back_divided(whole);
}

#[test]
fn gradients_on_a_gpu_add_up_and_come_back_divided() {
    gradients_add_up_and_come_back_divided(as_on_a_gpu);
}

fn gradients_add_up_and_come_back_divided(make: Make) {
    let parameters = parameters(&[(DType::F64, 2), (DType::F64, 1), (DType::F64, 0)]);
    let gradient = Tensor::new(&[3.0f64, -6.0], &Device::Cpu).unwrap();
    let mut bucket = make(&parameters);
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
        let mut buckets = deal(world, &Nccl::default(), &parameters, Limits::default()).unwrap();
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

/// Two ranks, of which the second lacks a gradient, in both kinds of buckets.
#[test]
fn a_bucket_of_tensors_has_the_sums_of_one_on_the_host() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let [host, gpu] = [whole as Make, as_on_a_gpu].map(|make| {
            let worlds = Communicator::in_memory(2).unwrap();
            std::thread::scope(|scope| {
                let step = |world: Communicator| {
                    let parameters = parameters(&[(dtype, 3), (dtype, 0), (dtype, 2)]);
                    let mut bucket = make(&parameters);
                    bucket.broadcast_parameters(&world).unwrap();
                    let rank = world.rank();
                    let gradient = Tensor::new(&[0.5, -3.0, 7.0], &Device::Cpu).unwrap();
                    let gradient = (gradient.to_dtype(dtype).unwrap() * (rank + 1) as f64).unwrap();
                    bucket.add(0, &gradient, 3.0).unwrap();
                    bucket.add(0, &gradient, 1.0).unwrap();
                    if rank == 0 {
                        let gradient = gradient.narrow(0, 1, 2).unwrap();
                        bucket.add(2, &gradient, 2.0).unwrap();
                    }
                    bucket.all_reduce(&world, 7, riders(3 + rank)).unwrap();
                    let mut mean = GradStore::default();
                    bucket.unpack(&mut mean, 4.0).unwrap();
                    let mean_of = |at: usize| {
                        let mean: &Tensor = mean.get(&parameters[at].1 as &Tensor)?;
                        Some(mean.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap())
                    };
                    (bucket.riders(), mean_of(0), mean_of(1), mean_of(2))
                };
                let ranks: Vec<_> =
                    worlds.into_iter().map(|world| scope.spawn(move || step(world))).collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
            })
        });
        assert_eq!(host, gpu);
        assert_eq!(host[0], host[1]);
        assert_eq!(host[0].1, Some(vec![1.5, -9.0, 21.0]));
        assert_eq!((&host[0].2, &host[0].3), (&None, &Some(vec![-1.5, 3.5])));
        let samples = host[0].0.map(|riders| riders.tally.samples);
        assert_eq!(samples, (!is_half(dtype)).then_some(7));
    }
}
