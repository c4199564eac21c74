//! Checks of ranks that are processes of MPI; `scripts/mpi-tests.sh` runs them.
//!
//! | command | what it does |
//! |---|---|
//! | `check` | compares all collectives, bit for bit, with ranks that are threads |
//! | `large` | exchanges more than 2^31 bytes (about 10 GiB of memory on two ranks) |
//! | `speed` | times collectives, and a sum on a second thread during a computation |
//! | `compute` | rank 0 computes for twice the watchdog's limit, while the others wait |
//! | `work` | computes and adds without end, to be killed or stopped |
//! | `abort`, `panic`, `return` | rank 1 fails in this way, while the others wait |
//! | `deadlock` | ranks call different collectives |
//!
//! ```sh
//! cargo build -p opensora-parallel --features mpi --example mpi_check
//! mpirun -n 4 target/debug/examples/mpi_check check
//! ```

use burn::tensor::{Device, Tensor};
use opensora_parallel::{
    Group, Meter, Mpi, MpiOptions, Reduction,
    tensor::{all_gather, all_reduce, all_to_all, reduce_scatter},
    threads::run_ranks,
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().ok_or("no command")?;
    let limit = match arguments.next() {
        Some(seconds) => Duration::from_secs_f64(seconds.parse()?),
        None => Duration::from_secs(20),
    };
    let mpi = Mpi::init(MpiOptions::default().with_watchdog(Some(limit)))?;
    let group = mpi.world();
    match command.as_str() {
        "check" => check(&group),
        "large" => large(&group),
        "speed" => speed(&group),
        "compute" => {
            if group.rank() == 0 {
                compute(2 * limit);
            }
            group.barrier();
            say(&group, "computed");
        }
        "work" => loop {
            println!("rank {} process {}", group.rank(), std::process::id());
            compute(Duration::from_millis(300));
            group.all_reduce(Reduction::Sum, &mut vec![1.0; 100_000]);
        },
        "abort" | "panic" | "return" => {
            if group.rank() == 1 {
                match command.as_str() {
                    "abort" => group.abort("clip.mp4: found no video stream"),
                    "panic" => panic!("a bug"),
                    _ => return Err("an error of main".into()),
                }
            }
            group.barrier();
        }
        "deadlock" => {
            let same = group.split(0, group.rank());
            if group.rank() == 0 { group.barrier() } else { same.barrier() }
        }
        _ => return Err(format!("no command {command}").into()),
    }
    mpi.finish();
    Ok(())
}

fn say(group: &Group, line: &str) {
    if group.rank() == 0 {
        println!("{line}");
    }
}

/// Computes for `time`.
fn compute(time: Duration) {
    let began = Instant::now();
    let mut x = 1.0f64;
    while began.elapsed() < time {
        for _ in 0..10_000 {
            x = black_box(x * 1.000_001 + 1e-9);
        }
    }
}

/// Returns a digest of the results of collectives over buffers of many lengths.
fn collectives(group: Group) -> u64 {
    let (rank, size) = (group.rank(), group.size());
    let mut digest = DefaultHasher::new();
    let numbers = |count: usize| -> Vec<f32> {
        (0..count).map(|i| ((i % 9973 * 7 + rank * 13) as f32).sin()).collect()
    };
    let half = group.split(rank % 2, size - rank);
    for length in [0, 1, 5, 1000, 4097, 40_001] {
        for group in [&group, &half] {
            let size = group.size();
            let mut sum = numbers(length);
            group.all_reduce(Reduction::Sum, &mut sum);
            let mut max = numbers(length);
            group.all_reduce(Reduction::Max, &mut max);
            let mut norm = [f64::from(sum.iter().sum::<f32>()), rank as f64];
            group.all_reduce_f64(Reduction::Sum, &mut norm);
            let mut part = vec![0.0; length];
            group.reduce_scatter(&numbers(length * size), &mut part);
            let sent: Vec<u8> = (0..length * size).map(|i| (i * 3 + rank) as u8).collect();
            let mut gathered = vec![0; length * size];
            group.all_gather(&sent[..length], &mut gathered);
            let mut exchanged = vec![0; length * size];
            group.all_to_all(&sent, &mut exchanged);
            let mut copied = exchanged.clone();
            group.broadcast(size - 1, &mut copied);
            for numbers in [sum, max, part] {
                numbers.iter().for_each(|x| x.to_bits().hash(&mut digest));
            }
            norm.map(f64::to_bits).hash(&mut digest);
            [gathered, exchanged, copied].hash(&mut digest);
        }
        group.barrier();
    }
    // In several pieces.
    let mut sum = numbers(2_200_001);
    group.all_reduce(Reduction::Sum, &mut sum);
    sum.iter().for_each(|x| x.to_bits().hash(&mut digest));
    for numbers in gradients(&group) {
        numbers.iter().for_each(|x| x.to_bits().hash(&mut digest));
    }
    digest.finish()
}

/// Returns output and gradient of a chain of collectives over tensors.
fn gradients(group: &Group) -> [Vec<f32>; 2] {
    let (rank, size) = (group.rank(), group.size());
    let device = Device::flex().autodiff();
    let shape = [2, 3 * size, 5 * size, 7];
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| ((i + 31 * rank) as f32).sin()).collect();
    let x = Tensor::<1>::from_floats(values.as_slice(), &device).reshape(shape).require_grad();
    let y = all_to_all(x.clone(), 1, 2, group).exp();
    let y = all_to_all(y, 2, 1, group);
    let y = y.clone() * all_reduce(y.mean_dim(1), group);
    let y = reduce_scatter(y, 2, group).sin();
    let y = all_gather(y, 2, group);
    let gradients = (y.clone() * x.clone()).sum().backward();
    [y.inner(), x.grad(&gradients).expect("a gradient")]
        .map(|tensor| tensor.into_data().try_to_vec::<f32>().expect("f32"))
}

fn check(group: &Group) {
    let meter = Meter::default();
    let found = collectives(meter.measure(group.clone()));
    let mut all = vec![0; 8 * group.size()];
    group.all_gather(&found.to_ne_bytes(), &mut all);
    if group.rank() == 0 {
        let threads = run_ranks(group.size(), collectives);
        for (rank, (found, expected)) in all.chunks(8).zip(threads).enumerate() {
            assert!(found == expected.to_ne_bytes(), "rank {rank} differs from a thread");
        }
    }
    group.barrier();
    let traffic = meter.traffic();
    assert!(group.size() == 1 || traffic.calls > 0);
    say(group, &format!("{} ranks equal threads ({} calls)", group.size(), traffic.calls));
}

fn large(group: &Group) {
    let (rank, size) = (group.rank(), group.size());
    let part = (1usize << 31) / size + 12_345;
    let pattern =
        |index: usize, rank: usize| (index.wrapping_mul(2_654_435_761) >> 7) as u8 ^ rank as u8;
    let input: Vec<u8> = (0..part).map(|index| pattern(index, rank)).collect();
    let mut output = vec![0; part * size];
    group.all_gather(&input, &mut output);
    for (from, received) in output.chunks(part).enumerate() {
        assert!(received.iter().enumerate().all(|(index, &x)| x == pattern(index, from)));
    }
    if rank != 0 {
        output.fill(0);
    }
    group.broadcast(0, &mut output);
    for (from, received) in output.chunks(part).enumerate() {
        assert!(received.iter().enumerate().all(|(index, &x)| x == pattern(index, from)));
    }
    say(group, &format!("{} bytes gathered and broadcast", part * size));
}

fn speed(group: &Group) {
    let seconds = |call: &mut dyn FnMut()| {
        let mut times: Vec<_> = (0..7)
            .map(|_| {
                group.barrier();
                let began = Instant::now();
                call();
                began.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[3]
    };
    let size = group.size();
    for bytes in [8 * size, 1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26] {
        let count = bytes / 4 / size * size;
        let (mut numbers, mut part) = (vec![1.0f32; count], vec![0.0f32; count / size]);
        let (sent, mut received) = (vec![1u8; count * 4], vec![0u8; count * 4]);
        let all_reduce = seconds(&mut || group.all_reduce(Reduction::Sum, &mut numbers));
        let reduce_scatter = seconds(&mut || group.reduce_scatter(&numbers, &mut part));
        let all_gather =
            seconds(&mut || group.all_gather(&sent[..count * 4 / size], &mut received));
        let all_to_all = seconds(&mut || group.all_to_all(&sent, &mut received));
        let times = [all_reduce, reduce_scatter, all_gather, all_to_all].map(|s| s * 1e6);
        let [a, b, c, d] = times;
        say(
            group,
            &format!(
                "{:9} bytes: all_reduce {a:9.1} us, reduce_scatter {b:9.1} us, \
                 all_gather {c:9.1} us, all_to_all {d:9.1} us",
                count * 4
            ),
        );
    }
    let mut numbers = vec![1.0f32; 1 << 24];
    let alone = seconds(&mut || group.all_reduce(Reduction::Sum, &mut numbers));
    let time = Duration::from_secs_f64(alone);
    let overlapped = seconds(&mut || {
        thread::scope(|scope| {
            scope.spawn(|| group.all_reduce(Reduction::Sum, &mut numbers));
            compute(time);
        });
    });
    say(
        group,
        &format!(
            "64 MiB: sum {:.1} ms; beside {:.1} ms of computation {:.1} ms",
            alone * 1e3,
            alone * 1e3,
            overlapped * 1e3
        ),
    );
}
