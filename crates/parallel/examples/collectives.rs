//! Times the collectives over the ranks of MPI, for `scripts/scaling_calibration.py`.
//!
//! ```sh
//! cargo build --release -p opensora-parallel --features mpi --example collectives
//! mpirun -n 4 target/release/examples/collectives
//! ```
//!
//! Prints a line of JSON for each collective and size: the median seconds of a call, and `bytes`, the whole buffer of a
//! rank: the sum, the concatenation, or what an all-to-all sends.

#[cfg(not(feature = "mpi"))]
fn main() {
    eprintln!("error: built without the feature mpi");
    std::process::exit(1);
}

#[cfg(feature = "mpi")]
fn main() -> Result<(), opensora_parallel::MpiError> {
    let mpi = opensora_parallel::Mpi::init(opensora_parallel::MpiOptions::default())?;
    timing::all(&*mpi.world());
    mpi.finish();
    Ok(())
}

#[cfg(feature = "mpi")]
mod timing {
    use opensora_parallel::{Communicator, Reduction};
    use std::time::Instant;

    /// Bytes of the smallest and of the largest buffer, as powers of two.
    const SIZES: std::ops::RangeInclusive<u32> = 12..=24;
    /// Calls before the timed ones, in which connections are made.
    const WARM_UP: usize = 2;

    /// Times all collectives at all sizes.
    pub(crate) fn all(group: &dyn Communicator) {
        let ranks = group.size();
        for size in SIZES {
            // Every part has the same length, and whole numbers.
            let part = (1usize << size).div_ceil(4 * ranks);
            let (mut whole, mut own) = (vec![1.0f32; part * ranks], vec![1.0f32; part]);
            let bytes = 4 * whole.len();
            let (mut sent, mut received) = (vec![1u8; bytes], vec![0u8; bytes]);
            report(group, "all_reduce", bytes, &mut || {
                group.all_reduce(Reduction::Max, &mut whole);
            });
            report(group, "reduce_scatter", bytes, &mut || group.reduce_scatter(&whole, &mut own));
            report(group, "all_gather", bytes, &mut || {
                group.all_gather(&sent[..4 * part], &mut received);
            });
            report(group, "all_to_all", bytes, &mut || group.all_to_all(&sent, &mut received));
            sent.fill(2);
        }
    }

    /// Prints the median time of `call` on rank 0.
    fn report(group: &dyn Communicator, collective: &str, bytes: usize, call: &mut dyn FnMut()) {
        // Small calls need more samples.
        let timed = if bytes < 1 << 20 { 51 } else { 11 };
        let mut seconds = Vec::with_capacity(timed);
        for turn in 0..WARM_UP + timed {
            group.barrier();
            let began = Instant::now();
            call();
            if turn >= WARM_UP {
                seconds.push(began.elapsed().as_secs_f64());
            }
        }
        seconds.sort_by(f64::total_cmp);
        if group.rank() == 0 {
            let (ranks, median) = (group.size(), seconds[timed / 2]);
            println!(
                "{{\"ranks\":{ranks},\"collective\":\"{collective}\",\"bytes\":{bytes},\"seconds\":{median:e}}}"
            );
        }
    }
}
