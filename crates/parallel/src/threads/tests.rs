use super::*;

/// Returns the message of the panic of `run`.
fn panic_of(run: impl FnOnce() + Send) -> String {
    let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().unwrap().to_string(),
    }
}

#[test]
fn sums_and_maxima_are_over_all_ranks() {
    let results = run_ranks(4, |group| {
        let rank = group.rank() as f32;
        let (mut sum, mut max) = ([rank, 10.0 * rank], [-rank, rank]);
        group.all_reduce(Reduction::Sum, &mut sum);
        group.all_reduce(Reduction::Max, &mut max);
        let mut norm = [f64::from(rank), 0.5];
        group.all_reduce_f64(Reduction::Sum, &mut norm);
        (sum, max, norm)
    });
    assert_eq!(results, [([6.0, 60.0], [0.0, 3.0], [6.0, 2.0]); 4]);
}

#[test]
fn parts_move_to_their_ranks() {
    let results = run_ranks(3, |group| {
        let rank = group.rank();
        let mut scattered = [0.0; 2];
        group.reduce_scatter(&[0, 1, 2, 3, 4, 5].map(|i| (i * (rank + 1)) as f32), &mut scattered);
        let mut gathered = [0; 6];
        group.all_gather(&[rank as u8, 7], &mut gathered);
        let mut exchanged = [0; 3];
        group.all_to_all(&[0, 1, 2].map(|to| (10 * rank + to) as u8), &mut exchanged);
        let mut word = if rank == 1 { *b"one" } else { *b"???" };
        group.broadcast(1, &mut word);
        group.barrier();
        (scattered, gathered, exchanged, word)
    });
    for (rank, (scattered, gathered, exchanged, word)) in results.into_iter().enumerate() {
        assert_eq!(scattered, [2 * rank, 2 * rank + 1].map(|i| (6 * i) as f32));
        assert_eq!(gathered, [0, 7, 1, 7, 2, 7]);
        assert_eq!(exchanged, [0, 1, 2].map(|from| (10 * from + rank) as u8));
        assert_eq!(&word, b"one");
    }
}

#[test]
fn groups_split_by_color_in_the_order_of_keys() {
    let results = run_ranks(4, |group| {
        let rank = group.rank();
        let row = group.split(rank / 2, 10 - rank);
        let column = group.split(rank % 2, rank);
        let mut sums = [rank as f32];
        row.all_reduce(Reduction::Sum, &mut sums);
        column.all_reduce(Reduction::Sum, &mut sums);
        (row.rank(), row.size(), column.rank(), sums)
    });
    // Rows are {0, 1} and {2, 3} in reverse order.
    assert_eq!(results, [(1, 2, 0, [6.0]), (0, 2, 0, [6.0]), (1, 2, 1, [6.0]), (0, 2, 1, [6.0])]);
}

#[test]
fn many_rounds_do_not_mix() {
    let results = run_ranks(3, |group| {
        let mut total = 0.0;
        for round in 0..500 {
            let mut number = [(round * (group.rank() + 1)) as f32];
            group.all_reduce(Reduction::Sum, &mut number);
            assert_eq!(number, [6.0 * round as f32]);
            total += number[0];
        }
        total
    });
    assert_eq!(results, [748_500.0; 3]);
}

#[test]
fn a_panic_of_one_rank_is_the_panic_of_all() {
    let began = Instant::now();
    let message = panic_of(|| {
        run_ranks(3, |group| {
            let half = group.split(group.rank() % 2, 0);
            assert_ne!(group.rank(), 1, "a bad rank");
            half.barrier();
            group.barrier();
        });
    });
    assert!(message.contains("a bad rank"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn ranks_that_disagree_do_not_hang() {
    let returned = panic_of(|| {
        run_ranks(2, |group| {
            if group.rank() == 0 {
                group.barrier();
            }
        });
    });
    assert_eq!(returned, "rank 0 waits in Barrier for rank 1, which has returned");
    let mismatched = panic_of(|| {
        run_ranks(2, |group| {
            group.all_gather(&[1; 4][..2 + group.rank()], &mut [0; 6][..4 + 2 * group.rank()]);
        });
    });
    let expected = "rank 1 calls AllGather { bytes: 3 } while rank 0 calls AllGather { bytes: 2 }";
    assert_eq!(mismatched, expected);
    let late = panic_of(|| {
        run_ranks_within(Duration::from_millis(50), 2, |group| {
            if group.rank() == 1 {
                thread::sleep(Duration::from_millis(500));
            }
            group.barrier();
        });
    });
    assert_eq!(late, "rank 0 has waited 50ms in Barrier");
}
