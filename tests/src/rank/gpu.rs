//! A rank with a GPU, or with what stands in for one.

use std::fmt::Debug;
use std::sync::Arc;

use allfold::nccl::Gpu;
use allfold::nccl::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use allfold::nccl::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, ValidAsZeroBits,
};
use allfold::{Communicator, ReduceOp, Reducible, Result, bf16, f16};

use super::{say, unknown};

/// Does what `words` say.
pub(super) fn act(words: &[&str]) -> Result<()> {
    let world = Communicator::from_env_or_single()?;
    let gpu = match words {
        // With a context of the program's own.
        ["own-context"] => {
            let context = CudaContext::new(world.local_rank());
            let context = context.unwrap_or_else(|error| fail(&format!("{error}")));
            Gpu::connect_with(world, &context)?
        }
        _ => Gpu::connect(world)?,
    };
    match words {
        ["own-context"] => sum(&gpu, "blocking", 1000)?,
        ["kinds"] => kinds(&gpu)?,
        // Sums until something ends it; `queued`: ten at a time on a stream.
        ["forever", way] => forever(&gpu, way)?,
        // At the third call this rank's buffer is longer.
        ["fail", rank] if gpu.communicator().rank().to_string() == *rank => {
            return Err(gpu.fail("out of memory"));
        }
        ["fail", _] => forever(&gpu, "queued")?,
        ["differ", rank, way] => differ(&gpu, rank, way)?,
        // This rank's third call is another one; so many that are alike follow before the wait; with
        // `no-wait` more of them, until heartbeats find it.
        ["ahead", rank, count, wait] => ahead(&gpu, rank, count, *wait == "wait")?,
        // This rank makes the third call on the host.
        ["on-host", rank] => on_host(&gpu, rank)?,
        // Closes after five calls.
        ["close", rank] if gpu.communicator().rank().to_string() == *rank => {
            (0..5).try_for_each(|_| sum(&gpu, "blocking", 1000))?;
        }
        ["close", _] => forever(&gpu, "blocking")?,
        // Two ranks that send to each other, one after the other.
        ["cross"] => {
            let (peer, ones) = (1 - gpu.communicator().rank(), device(&gpu, &[1.0f32; 10]));
            let mut other = device(&gpu, &[0.0f32; 10]);
            gpu.send(&ones, peer)?;
            gpu.recv(&mut other, peer)?;
        }
        // The other rank receives, and waits for it, what this one has only queued.
        ["scatter"] => {
            let (rank, mut buffer) = (gpu.communicator().rank(), device(&gpu, &[7.0f32; 10]));
            let stream = gpu.stream().clone();
            match rank {
                0 => gpu.on(&stream).group(|calls| calls.send(&buffer, 1))?,
                _ => gpu.recv(&mut buffer, 0)?,
            }
            gpu.wait(&stream)?;
        }
        // Rank 1 waits for a call at once, and the others later.
        ["ways"] if gpu.communicator().rank() == 1 => sum(&gpu, "blocking", 1000)?,
        ["ways"] => sum(&gpu, "grouped", 1000)?,
        // Two communicators, which rank 1 uses first in the other order.
        ["opposite"] => return opposite(gpu),
        // Not closed.
        ["drop"] => {
            sum(&gpu, "queued", 1000)?;
            drop(gpu);
            say("dropped");
            return Ok(());
        }
        ["two-streams"] => two_streams(&gpu)?,
        ["calls", count] => {
            for _ in 0..count.parse().unwrap_or(1) {
                sum(&gpu, "blocking", 1000)?;
            }
        }
        // More calls on a stream than are kept in mind, without waiting for any.
        ["queue", count] => {
            let mut buffer = device(&gpu, &[1.0f32; 10]);
            let stream = gpu.stream().clone();
            for _ in 0..count.parse().unwrap_or(1) {
                gpu.on(&stream).all_reduce(&mut buffer, ReduceOp::Max)?;
            }
            gpu.wait(&stream)?;
            check("queue", &host(&gpu, &buffer), &[1.0f32; 10]);
        }
        ["mistakes"] => mistakes(&gpu),
        // Rank 0 sends what nobody receives, and closes.
        ["unmatched"] => {
            let ones = device(&gpu, &[1.0f32; 10]);
            if gpu.communicator().rank() == 0 {
                gpu.on(gpu.stream()).send(&ones, 1)?;
            }
        }
        ["nested"] => nested(&gpu)?,
        // This rank panics between two calls of a group, and goes on.
        ["panic-in-group", rank] => panic_in_group(&gpu, rank)?,
        words => return Err(unknown(words)),
    }
    let of = gpu.index();
    gpu.close()?;
    say(&format!("closed gpu {of}"));
    Ok(())
}

fn forever(gpu: &Gpu, way: &str) -> Result<()> {
    sum(gpu, way, 1000)?;
    say("started");
    loop {
        sum(gpu, way, 1000)?;
    }
}

fn opposite(first: Gpu) -> Result<()> {
    let own = first.communicator().rank();
    let split = first.communicator().split(Some(0), own as u32)?;
    let split = split.unwrap_or_else(Communicator::single);
    let second = Gpu::connect_with(split, first.context())?;
    let mut buffer = device(&first, &[1.0f32; 10]);
    let stream = first.stream().clone();
    let order = if own == 1 { [&second, &first] } else { [&first, &second] };
    for gpu in order {
        gpu.on(&stream).all_reduce(&mut buffer, ReduceOp::Sum)?;
    }
    order.into_iter().try_for_each(|gpu| gpu.wait(&stream))
}

fn two_streams(gpu: &Gpu) -> Result<()> {
    let streams = [fresh(gpu), fresh(gpu)];
    let mut buffers = [device(gpu, &[1.0f32; 1000]), device(gpu, &[2.0f32; 1000])];
    for (stream, buffer) in streams.iter().zip(&mut buffers) {
        gpu.on(stream).all_reduce(buffer, ReduceOp::Sum)?;
    }
    gpu.synchronize()?;
    let size = gpu.communicator().size() as f32;
    check("the first", &host(gpu, &buffers[0]), &[size; 1000]);
    check("the second", &host(gpu, &buffers[1]), &[2.0 * size; 1000]);
    Ok(())
}

fn differ(gpu: &Gpu, rank: &str, way: &str) -> Result<()> {
    for call in 0..5 {
        let is_other = call == 2 && gpu.communicator().rank().to_string() == rank;
        sum(gpu, way, if is_other { 1001 } else { 1000 })?;
    }
    Ok(())
}

fn ahead(gpu: &Gpu, rank: &str, count: &str, waits: bool) -> Result<()> {
    let stream = gpu.stream().clone();
    let on = gpu.on(&stream);
    let [mut buffer, mut longer] = [1000, 1001].map(|length| device(gpu, &vec![1.0f32; length]));
    let alike = |buffer: &mut CudaSlice<f32>| on.all_reduce(buffer, ReduceOp::Max);
    for _ in 0..2 {
        alike(&mut buffer)?;
    }
    match gpu.communicator().rank().to_string() == rank {
        true => on.all_reduce(&mut longer, ReduceOp::Sum)?,
        false => on.all_reduce(&mut buffer, ReduceOp::Sum)?,
    }
    for _ in 0..count.parse().unwrap_or(1) {
        alike(&mut buffer)?;
    }
    if waits {
        return gpu.wait(&stream);
    }
    loop {
        gpu.settle();
        alike(&mut buffer)?;
    }
}

fn on_host(gpu: &Gpu, rank: &str) -> Result<()> {
    for call in 0..5 {
        if call == 2 && gpu.communicator().rank().to_string() == rank {
            gpu.communicator().all_reduce(&mut [1.0f32; 1000], ReduceOp::Sum)?;
        } else {
            sum(gpu, "blocking", 1000)?;
        }
    }
    Ok(())
}

/// One sum of ones, checked; or several on a stream, of which the last is checked; or two in a group.
fn sum(gpu: &Gpu, way: &str, length: usize) -> Result<()> {
    let mut buffer = device(gpu, &vec![1.0f32; length]);
    let size = gpu.communicator().size() as f32;
    match way {
        "queued" => {
            let stream = gpu.stream().clone();
            for _ in 0..10 {
                gpu.on(&stream).all_reduce(&mut buffer, ReduceOp::Max)?;
            }
            gpu.on(&stream).all_reduce(&mut buffer, ReduceOp::Sum)?;
            gpu.wait(&stream)?;
        }
        "grouped" => {
            let (stream, mut other) = (gpu.stream().clone(), device(gpu, &[1.0f32; 10]));
            let on = gpu.on(&stream);
            on.group(|calls| {
                calls.all_reduce(&mut buffer, ReduceOp::Sum)?;
                calls.all_reduce(&mut other, ReduceOp::Sum)
            })?;
            on.wait()?;
        }
        _ => gpu.all_reduce(&mut buffer, ReduceOp::Sum)?,
    }
    check("sum", &host(gpu, &buffer), &vec![size; length]);
    Ok(())
}

/// Arguments that fit together on no rank: none of them is a call.
fn mistakes(gpu: &Gpu) {
    let size = gpu.communicator().size();
    let mut short = device(gpu, &[1.0f32; 3]);
    let long = device(gpu, &vec![1.0f32; 3 * size + 1]);
    let own = gpu.communicator().rank();
    let other = CudaContext::new(gpu.index())
        .and_then(|context| context.default_stream().clone_htod(&[1.0f32; 3]));
    let mut foreign = other.unwrap_or_else(|error| fail(&format!("{error}")));
    let captured = fresh(gpu);
    let begun = captured.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED);
    begun.unwrap_or_else(|error| fail(&format!("{error}")));
    let refused: [Result<()>; 7] = [
        gpu.all_reduce_into(&long, &mut short, ReduceOp::Sum),
        gpu.reduce_scatter(&long, &mut short, ReduceOp::Sum),
        gpu.broadcast(&mut short, size),
        gpu.reduce(&mut short, ReduceOp::Sum, size),
        gpu.send(&long, own),
        gpu.all_reduce(&mut foreign, ReduceOp::Sum),
        gpu.on(&captured).all_reduce(&mut short, ReduceOp::Sum),
    ];
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    captured.end_capture(flags).unwrap_or_else(|error| fail(&format!("{error}")));
    for error in refused.into_iter().filter_map(Result::err) {
        say(&format!("refused: {error}"));
    }
}

/// Calls in the middle of a group, and from another thread meanwhile.
fn nested(gpu: &Gpu) -> Result<()> {
    let mut buffer = device(gpu, &[1.0f32; 10]);
    let mut other = device(gpu, &[1.0f32; 10]);
    let stream = gpu.stream().clone();
    let on = gpu.on(&stream);
    on.group(|calls| {
        calls.all_reduce(&mut buffer, ReduceOp::Sum)?;
        let mut refused = vec![
            gpu.all_reduce(&mut other, ReduceOp::Sum),
            on.all_reduce(&mut other, ReduceOp::Sum),
            on.group(|_| Ok(())),
            gpu.wait(&stream),
        ];
        std::thread::scope(|scope| {
            let call = || gpu.all_reduce(&mut other, ReduceOp::Sum);
            refused.extend(scope.spawn(call).join());
        });
        for error in refused.into_iter().filter_map(Result::err) {
            say(&format!("refused: {error}"));
        }
        Ok(())
    })?;
    on.wait()?;
    check("nested", &host(gpu, &buffer), &[gpu.communicator().size() as f32; 10]);
    Ok(())
}

fn panic_in_group(gpu: &Gpu, rank: &str) -> Result<()> {
    let mut buffer = device(gpu, &[1.0f32; 10]);
    let stream = gpu.stream().clone();
    // What the panic itself says would look like a mistake of allfold's.
    std::panic::set_hook(Box::new(|_| ()));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        gpu.on(&stream).group(|calls| {
            calls.all_reduce(&mut buffer, ReduceOp::Sum)?;
            if gpu.communicator().rank().to_string() == rank {
                panic!("told to");
            }
            Ok(())
        })
    }));
    if let Ok(result) = caught {
        result?;
    }
    forever(gpu, "blocking")
}

/// Every collective, type and operation, in every way in which it can be made.
fn kinds(gpu: &Gpu) -> Result<()> {
    of_type::<i8>(gpu)?;
    of_type::<u8>(gpu)?;
    of_type::<i32>(gpu)?;
    of_type::<u32>(gpu)?;
    of_type::<i64>(gpu)?;
    of_type::<u64>(gpu)?;
    of_type::<f16>(gpu)?;
    of_type::<bf16>(gpu)?;
    of_type::<f32>(gpu)?;
    of_type::<f64>(gpu)?;
    for calls in gpu.communicator().stats().calls {
        say(&format!("{} {} {}", calls.collective, calls.algorithm, calls.calls));
    }
    Ok(())
}

/// A type of which small whole numbers are exact.
trait Number: Reducible + DeviceRepr + ValidAsZeroBits + PartialEq + Debug {
    fn of(number: usize) -> Self;
}

macro_rules! numbers {
    ($($kind:ty: $of:expr;)*) => { $(impl Number for $kind {
        fn of(number: usize) -> Self {
            $of(number)
        }
    })* };
}
numbers! {
    i8: |n| n as i8; u8: |n| n as u8; i32: |n| n as i32; u32: |n| n as u32;
    i64: |n| n as i64; u64: |n| n as u64; f32: |n| n as f32; f64: |n| n as f64;
    f16: |n| f16::from_f64(n as f64); bf16: |n| bf16::from_f64(n as f64);
}

fn of_type<T: Number>(gpu: &Gpu) -> Result<()> {
    for length in [1, 5, 1_000, 300_001] {
        for op in ReduceOp::ALL {
            for way in [Way::Blocking, Way::Queued, Way::Grouped] {
                of_op::<T>(gpu, length, *op, way)?;
            }
        }
        moves::<T>(gpu, length)?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Way {
    Blocking,
    Queued,
    Grouped,
}

/// What rank `rank` brings, such that the results of no operation leave the smallest type.
fn brought<T: Number>(op: ReduceOp, rank: usize, index: usize) -> T {
    match op {
        ReduceOp::Prod => T::of(1 + (rank + index) % 2),
        _ => T::of(index % 5 * 2 + rank * 2),
    }
}

fn reduced<T: Number>(op: ReduceOp, size: usize, index: usize) -> T {
    let of = index % 5 * 2;
    T::of(match op {
        ReduceOp::Sum => size * of + size * (size - 1),
        ReduceOp::Avg => of + size - 1,
        ReduceOp::Min => of,
        ReduceOp::Max => of + 2 * (size - 1),
        _ => (0..size).map(|rank| 1 + (rank + index) % 2).product(),
    })
}

fn of_op<T: Number>(gpu: &Gpu, length: usize, op: ReduceOp, way: Way) -> Result<()> {
    let (rank, size) = (gpu.communicator().rank(), gpu.communicator().size());
    let given: Vec<T> = (0..length).map(|index| brought(op, rank, index)).collect();
    let whole: Vec<T> = (0..length).map(|index| reduced(op, size, index)).collect();
    let blocks: Vec<T> = (0..length * size).map(|index| brought(op, rank, index)).collect();
    let own = rank * length..(rank + 1) * length;
    let block: Vec<T> = own.map(|index| reduced(op, size, index)).collect();
    let root = length % size;

    let input = device(gpu, &given);
    let mut in_place = device(gpu, &given);
    let mut output = device(gpu, &vec![T::of(0); length]);
    let many = device(gpu, &blocks);
    let mut part = device(gpu, &vec![T::of(0); length]);
    let mut at_root = device(gpu, &given);
    let stream = fresh(gpu);
    match way {
        Way::Blocking => {
            gpu.all_reduce(&mut in_place, op)?;
            gpu.all_reduce_into(&input, &mut output, op)?;
            gpu.reduce_scatter(&many, &mut part, op)?;
            gpu.reduce(&mut at_root, op, root)?;
        }
        Way::Queued => {
            let on = gpu.on(&stream).labelled(length as u64);
            on.all_reduce(&mut in_place, op)?;
            on.all_reduce_into(&input, &mut output, op)?;
            on.reduce_scatter(&many, &mut part, op)?;
            on.reduce(&mut at_root, op, root)?;
            on.wait()?;
        }
        Way::Grouped => {
            let on = gpu.on(&stream);
            on.group(|calls| {
                calls.all_reduce(&mut in_place, op)?;
                calls.all_reduce_into(&input, &mut output, op)?;
                calls.reduce_scatter(&many, &mut part, op)?;
                calls.reduce(&mut at_root, op, root)
            })?;
            on.wait()?;
        }
    }
    check("all_reduce", &host(gpu, &in_place), &whole);
    check("all_reduce_into", &host(gpu, &output), &whole);
    check("reduce_scatter", &host(gpu, &part), &block);
    let want = if rank == root { &whole } else { &given };
    check("reduce", &host(gpu, &at_root), want);
    Ok(())
}

fn moves<T: Number>(gpu: &Gpu, length: usize) -> Result<()> {
    let (rank, size) = (gpu.communicator().rank(), gpu.communicator().size());
    let of = |rank: usize| {
        let number = move |index: usize| T::of(index % 7 + rank * 10);
        (0..length).map(number).collect::<Vec<T>>()
    };
    let own = device(gpu, &of(rank));
    let mut all = device(gpu, &vec![T::of(0); length * size]);
    gpu.all_gather(&own, &mut all)?;
    let want: Vec<T> = (0..size).flat_map(of).collect();
    check("all_gather", &host(gpu, &all), &want);

    let root = length % size;
    let mut from_root = device(gpu, &of(rank));
    gpu.broadcast(&mut from_root, root)?;
    check("broadcast", &host(gpu, &from_root), &of(root));

    // The same by addresses.
    let stream = fresh(gpu);
    let mut again = device(gpu, &of(rank));
    {
        let (at, _until) = again.device_ptr_mut(&stream);
        // SAFETY: it is the whole of a slice that outlives the wait.
        unsafe { gpu.on(&stream).broadcast_at::<T>(at, length, root) }?;
    }
    gpu.wait(&stream)?;
    check("broadcast_at", &host(gpu, &again), &of(root));
    let mut sums = device(gpu, &vec![T::of(1); length]);
    {
        let (from, _input) = own.device_ptr(&stream);
        let (into, _output) = sums.device_ptr_mut(&stream);
        // SAFETY: as above.
        unsafe { gpu.on(&stream).all_reduce_at::<T>(from, into, length, ReduceOp::Min) }?;
    }
    gpu.wait(&stream)?;
    check("all_reduce_at", &host(gpu, &sums), &of(0));

    if size > 1 {
        let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
        let mut from_before = device(gpu, &vec![T::of(0); length]);
        let on = gpu.on(&stream);
        on.group(|calls| {
            calls.send(&own, next)?;
            calls.recv(&mut from_before, before)
        })?;
        on.wait()?;
        check("a ring of messages", &host(gpu, &from_before), &of(before));
        match rank {
            0 => gpu.send(&own, 1)?,
            1 => gpu.recv(&mut from_before, 0)?,
            _ => {}
        }
        if rank == 1 {
            check("a message", &host(gpu, &from_before), &of(0));
        }
    }
    Ok(())
}

fn fresh(gpu: &Gpu) -> Arc<CudaStream> {
    gpu.context().new_stream().unwrap_or_else(|error| fail(&format!("{error}")))
}

fn device<T: Number>(gpu: &Gpu, values: &[T]) -> CudaSlice<T> {
    let copied = gpu.stream().clone_htod(values);
    copied.unwrap_or_else(|error| fail(&format!("{error}")))
}

fn host<T: Number>(gpu: &Gpu, buffer: &CudaSlice<T>) -> Vec<T> {
    let copied = gpu.stream().clone_dtoh(buffer);
    copied.unwrap_or_else(|error| fail(&format!("{error}")))
}

fn check<T: Number>(what: &str, have: &[T], want: &[T]) {
    if let Some(index) = (0..want.len()).find(|index| have.get(*index) != want.get(*index)) {
        let kind = std::any::type_name::<T>();
        fail(&format!(
            "{what} of {} {kind}: {:?} in place of {:?} at {index}",
            want.len(),
            have.get(index),
            want[index]
        ));
    }
}

fn fail(problem: &str) -> ! {
    eprintln!("{problem}");
    std::process::exit(1)
}
