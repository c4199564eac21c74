//! Tests of order, resume, bad rows and dropped loaders.

use super::*;
use opensora_parallel::{Group, threads::run_ranks_within};
use std::{
    collections::HashSet,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::channel,
    },
    time::Duration,
};

/// How long ranks may wait for each other, or a test for all ranks.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rows of `row + 100 * epoch`, of which some are bad.
struct Numbers {
    rows: usize,
    bad: HashSet<usize>,
    panics: HashSet<usize>,
}

impl Numbers {
    fn new(rows: usize, bad: &[usize]) -> Self {
        Self { rows, bad: bad.iter().copied().collect(), panics: HashSet::new() }
    }
}

impl Source for Numbers {
    type Item = u64;

    fn len(&self) -> usize {
        self.rows
    }

    fn read(&self, row: usize, epoch: u64) -> Result<u64, DataError> {
        assert!(!self.panics.contains(&row), "a bad decoder");
        if self.bad.contains(&row) {
            return Err(DataError::row(row, self.describe(row), "bad"));
        }
        Ok(row as u64 + 100 * epoch)
    }

    fn describe(&self, row: usize) -> String {
        format!("number-{row}")
    }
}

/// Slow rows that count their reads.
#[derive(Default)]
struct Slow {
    reads: AtomicUsize,
}

impl Source for Slow {
    type Item = ();

    fn len(&self) -> usize {
        1000
    }

    fn read(&self, _row: usize, _epoch: u64) -> Result<(), DataError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    }

    fn describe(&self, row: usize) -> String {
        format!("number-{row}")
    }
}

fn config(workers: usize, skip_bad: usize) -> LoaderConfig {
    let (batch_size, prefetch, seed, shuffle) = (4, 3, 9, true);
    LoaderConfig { batch_size, workers, prefetch, seed, shuffle, skip_bad, skip_list: None }
}

fn batches(source: Numbers, config: LoaderConfig, start: u64, count: usize) -> Vec<Batch<u64>> {
    let loader = Loader::new(Arc::new(source), config, start).unwrap();
    loader.take(count).map(Result::unwrap).collect()
}

/// Returns the results of `read` on several ranks. It runs on a thread of its own, so that a rank that waits for ever
/// fails the test.
fn on_ranks<R: Send + 'static>(
    ranks: usize,
    read: impl Fn(Part) -> R + Send + Sync + 'static,
) -> Vec<R> {
    let (send, found) = channel();
    let part = |group: Group| Part { index: group.rank(), count: group.size(), group };
    std::thread::spawn(move || {
        let _ = send.send(run_ranks_within(PATIENCE, ranks, |group| read(part(group))));
    });
    found.recv_timeout(PATIENCE).expect("all ranks return")
}

/// Checks that the ranks of `parts` have read their parts of the batches in `whole`.
fn assert_parts_of(parts: &[Vec<Batch<u64>>], whole: &[Batch<u64>], case: &str) {
    for (index, whole) in whole.iter().enumerate() {
        let parts: Vec<_> = parts.iter().map(|batches| &batches[index]).collect();
        let items: Vec<u64> = parts.iter().flat_map(|part| part.items.iter().copied()).collect();
        assert_eq!(items, whole.items, "{case}, batch {index}");
        for part in parts {
            let (found, wanted) = ((&part.rows, part.next_slot), (&whole.rows, whole.next_slot));
            assert_eq!(found, wanted, "{case}, batch {index}");
        }
    }
}

#[test]
fn the_order_does_not_depend_on_the_workers_and_can_start_at_any_batch() {
    let alone = batches(Numbers::new(10, &[3, 7]), config(0, 5), 0, 9);
    for workers in [1, 2, 5] {
        assert_eq!(batches(Numbers::new(10, &[3, 7]), config(workers, 5), 0, 9), alone);
    }
    for first in [1, 4, 8] {
        let start = alone[first - 1].next_slot;
        let rest = batches(Numbers::new(10, &[3, 7]), config(2, 5), start, 9 - first);
        assert_eq!(rest, alone[first..]);
    }
    // Every good row once in an epoch.
    let mut epoch: Vec<u64> = alone.iter().flat_map(|b| b.items.clone()).take(8).collect();
    epoch.sort_unstable();
    assert_eq!(epoch, [0, 1, 2, 4, 5, 6, 8, 9]);
}

#[test]
fn a_bad_row_is_an_error_that_names_it() {
    for workers in [0, 2] {
        let source = Arc::new(Numbers::new(6, &[2]));
        let mut loader = Loader::new(source, config(workers, 0), 0).unwrap();
        let error = loader.find_map(Result::err).unwrap().to_string();
        assert!(error.contains("row 3") && error.contains("number-2"), "{error}");
        assert!(loader.next().is_none());
    }
}

#[test]
fn bad_rows_are_skipped_and_listed_up_to_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("skipped.csv");
    let with_list =
        |skip_bad| LoaderConfig { skip_list: Some(list.clone()), ..config(2, skip_bad) };
    let source = || Arc::new(Numbers::new(10, &[1, 4, 8]));
    let mut loader = Loader::new(source(), with_list(2), 0).unwrap();
    let error = loader.find_map(Result::err).unwrap().to_string();
    assert!(error.contains("more than the 2 bad rows"), "{error}");
    assert_eq!(std::fs::read_to_string(&list).unwrap().lines().count(), 2);

    // Listed rows do not count again.
    let mut loader = Loader::new(source(), with_list(1), 0).unwrap();
    for _ in 0..20 {
        assert!(loader.next().unwrap().is_ok());
    }
    assert_eq!(loader.skipped().keys().copied().collect::<Vec<_>>(), [1, 4, 8]);
    assert_eq!(std::fs::read_to_string(&list).unwrap().lines().count(), 3);
}

#[test]
fn a_source_with_only_bad_rows_is_an_error() {
    let source = Arc::new(Numbers::new(3, &[0, 1, 2]));
    let mut loader = Loader::new(source, config(2, 10), 0).unwrap();
    let error = loader.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("all 3 rows are bad"), "{error}");
    assert!(Loader::new(Arc::new(Numbers::new(0, &[])), config(0, 0), 0).is_err());
}

#[test]
fn a_panic_is_an_error_of_its_row() {
    let source = Numbers { panics: [1].into(), ..Numbers::new(3, &[]) };
    let mut loader = Loader::new(Arc::new(source), config(1, 0), 0).unwrap();
    let error = loader.find_map(Result::err).unwrap().to_string();
    assert!(error.contains("number-1") && error.contains("panicked"), "{error}");
}

#[test]
fn a_batch_longer_than_the_data_skips_a_bad_row_in_every_epoch() {
    let config = LoaderConfig { batch_size: 32, shuffle: false, ..config(2, 1) };
    let batch = &batches(Numbers::new(3, &[1]), config, 0, 1)[0];
    assert_eq!((batch.items.len(), batch.next_slot), (32, 48));
    assert!(!batch.rows.contains(&1));
}

#[test]
fn a_dropped_loader_stops_reading() {
    let source = Arc::new(Slow::default());
    let config = LoaderConfig { prefetch: 50, ..config(2, 0) };
    let mut loader = Loader::new(source.clone(), config, 0).unwrap();
    assert!(loader.next().unwrap().is_ok());
    let before = source.reads.load(Ordering::SeqCst);
    drop(loader);
    // The current samples of both workers, not the 200 requested ones.
    let after = source.reads.load(Ordering::SeqCst) - before;
    assert!(after <= 4, "{after} reads after the end");
}

#[test]
fn incomplete_lines_and_lines_of_other_data_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("skipped.csv");
    // Row 3 is of other data, and a kill cut the line of row 5 within its quotes.
    std::fs::write(&list, "3,number-77,bad\n5,\"number").unwrap();
    let config = LoaderConfig { skip_list: Some(list.clone()), ..config(2, 2) };
    let source = || Arc::new(Numbers::new(10, &[1, 8]));
    let mut loader = Loader::new(source(), config.clone(), 0).unwrap();
    assert!((0..20).all(|_| loader.next().unwrap().is_ok()));
    assert_eq!(loader.skipped().keys().copied().collect::<Vec<_>>(), [1, 8]);
    let again = Loader::new(source(), config, 0).unwrap();
    assert_eq!(again.skipped().keys().copied().collect::<Vec<_>>(), [1, 8]);
}

/// Ten rows, of which the last one fails from epoch 1 on.
struct FailsLater;

impl Source for FailsLater {
    type Item = u64;

    fn len(&self) -> usize {
        10
    }

    fn read(&self, row: usize, epoch: u64) -> Result<u64, DataError> {
        match (row, epoch) {
            (9, 1..) => Err(DataError::row(row, self.describe(row), "bad")),
            _ => Ok(row as u64 + 100 * epoch),
        }
    }

    fn describe(&self, row: usize) -> String {
        format!("number-{row}")
    }
}

#[test]
fn a_resume_skips_a_listed_row_from_the_slot_at_which_it_failed() {
    let folder = tempfile::tempdir().unwrap();
    for workers in [0, 2] {
        let list = folder.path().join(format!("{workers}.csv"));
        let skip_list = Some(list.clone());
        let config = LoaderConfig { shuffle: false, skip_list, ..config(workers, 1) };
        let read = |start: u64, count: usize| -> Vec<Batch<u64>> {
            let loader = Loader::new(Arc::new(FailsLater), config.clone(), start).unwrap();
            loader.take(count).map(Result::unwrap).collect()
        };
        let whole = read(0, 9);
        assert_eq!(whole[2].rows, [8, 9, 0, 1]);
        assert_eq!(whole[4].rows, [6, 7, 8, 0]);
        let listed = "10,number-9,row 10: number-9: bad,19\n";
        assert_eq!(std::fs::read_to_string(&list).unwrap(), listed);

        // A run that was killed after the last of these batches resumes after the first one.
        let start = whole[0].next_slot;
        assert_eq!(read(start, 8), whole[1..]);
        let parts = on_ranks(2, move |part| {
            let loader = Loader::new(Arc::new(FailsLater), config.clone(), start).unwrap();
            loader.with_part(part).unwrap().take(8).map(Result::unwrap).collect::<Vec<_>>()
        });
        assert_parts_of(&parts, &whole[1..], &format!("two ranks, {workers} workers"));
        assert_eq!(std::fs::read_to_string(&list).unwrap(), listed);
    }
}

#[test]
fn a_listed_row_that_fails_before_its_slot_does_not_count_again() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("skipped.csv");
    std::fs::write(&list, "3,number-2,bad,1000\n").unwrap();
    let source = || Numbers::new(10, &[2, 7]);
    let with_list = LoaderConfig { skip_list: Some(list.clone()), ..config(2, 1) };
    let wanted = batches(source(), config(2, 2), 0, 6);
    for _ in 0..2 {
        assert_eq!(batches(source(), with_list.clone(), 0, 6), wanted);
        assert_eq!(std::fs::read_to_string(&list).unwrap().lines().count(), 3);
    }
}

#[test]
fn only_errors_of_rows_are_skipped() {
    struct Damaged;
    impl Source for Damaged {
        type Item = ();
        fn len(&self) -> usize {
            9
        }
        fn read(&self, _row: usize, _epoch: u64) -> Result<(), DataError> {
            Err(DataError::Cache { path: "cache".into(), reason: "damaged".into(), source: None })
        }
        fn describe(&self, row: usize) -> String {
            format!("number-{row}")
        }
    }
    let mut loader = Loader::new(Arc::new(Damaged), config(2, 5), 0).unwrap();
    let error = loader.next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::Cache { .. }), "{error}");
    assert!(loader.skipped().is_empty());
}

#[test]
fn settings_out_of_range_are_rejected() {
    let plain = config(1, 0);
    for (wrong, start) in [
        (LoaderConfig { batch_size: 0, ..plain.clone() }, 0),
        (LoaderConfig { prefetch: usize::MAX, ..plain.clone() }, 0),
        (LoaderConfig { workers: 1 << 20, ..plain.clone() }, 0),
        (plain, u64::MAX),
    ] {
        let error = Loader::new(Arc::new(Numbers::new(5, &[])), wrong, start).err().unwrap();
        assert!(matches!(error, DataError::Setting(_)), "{error}");
    }
}

/// A rank whose bad row is not the first of a batch meets it again after the first one was skipped.
#[test]
fn several_ranks_may_meet_bad_rows_in_one_batch() {
    for (bad, ranks) in
        [(vec![0, 3], 2), (vec![0, 3], 3), (vec![0, 1, 2, 3], 2), (vec![1, 2, 6, 7], 4)]
    {
        for workers in 0..=2 {
            let case = format!("bad rows {bad:?}, {ranks} ranks, {workers} workers");
            let config = LoaderConfig { shuffle: false, ..config(workers, bad.len()) };
            let whole = batches(Numbers::new(10, &bad), config.clone(), 0, 6);
            let bad = bad.clone();
            let parts = on_ranks(ranks, move |part| {
                let source = Arc::new(Numbers::new(10, &bad));
                let loader = Loader::new(source, config.clone(), 0).unwrap();
                let loader = loader.with_part(part).unwrap();
                loader.take(6).map(Result::unwrap).collect::<Vec<_>>()
            });
            assert_parts_of(&parts, &whole, &case);
        }
    }
}

#[test]
fn ranks_skip_the_rows_that_rank_0_lists() {
    let folder = tempfile::tempdir().unwrap();
    let lists = [0, 1, 2].map(|rank| folder.path().join(format!("{rank}.csv")));
    // Rank 1 has no list, as in a folder that is not shared; that of rank 2 is longer.
    std::fs::write(&lists[0], "3,number-2,\"bad, and slow\"\n5,number-4,bad\n").unwrap();
    std::fs::write(&lists[2], "3,number-2,bad\n8,number-7,bad\n").unwrap();
    let with_list = |list: &PathBuf| LoaderConfig { skip_list: Some(list.clone()), ..config(1, 2) };
    let bad = [2, 4, 6];
    let parts = {
        let configs = lists.each_ref().map(with_list);
        on_ranks(3, move |part| {
            let config = configs[part.group.rank()].clone();
            let loader = Loader::new(Arc::new(Numbers::new(10, &bad)), config, 0).unwrap();
            let mut loader = loader.with_part(part).unwrap();
            let found: Vec<_> = loader.by_ref().take(6).map(Result::unwrap).collect();
            (found, loader.skipped().clone())
        })
    };
    // Rank 0 adds the third row to its list, which is now that of one process.
    let text = std::fs::read_to_string(&lists[0]).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(!lists[1].exists());
    let (parts, skipped): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    assert_parts_of(&parts, &batches(Numbers::new(10, &bad), config(0, 3), 0, 6), "three lists");
    assert_eq!(skipped[0].keys().copied().collect::<Vec<_>>(), bad);
    assert_eq!(skipped[0][&2], Skipped { slot: 0, reason: "bad, and slow".into() });
    assert!(skipped.iter().all(|rows| *rows == skipped[0]), "{skipped:?}");
}

#[test]
fn ranks_with_different_numbers_of_rows_are_an_error_on_all() {
    let errors = on_ranks(3, |part| {
        let rows = if part.group.rank() == 1 { 9 } else { 10 };
        let loader = Loader::new(Arc::new(Numbers::new(rows, &[])), config(0, 0), 0).unwrap();
        loader.with_part(part).err().unwrap()
    });
    assert!(matches!(errors[1], DataError::OtherData { found: 9, expected: 10 }), "{}", errors[1]);
    for other in [&errors[0], &errors[2]] {
        let expected = format!("rank 1: {}", errors[1]);
        assert_eq!(other.to_string(), expected);
    }
}

/// Rows of whose names the last one is that of a rank.
struct Named(&'static str);

impl Source for Named {
    type Item = usize;

    fn len(&self) -> usize {
        2
    }

    fn read(&self, row: usize, _epoch: u64) -> Result<usize, DataError> {
        Ok(row)
    }

    fn describe(&self, row: usize) -> String {
        format!("row {}: {}", row + 1, if row == 0 { "first" } else { self.0 })
    }
}

#[test]
fn ranks_with_other_rows_are_an_error_on_all() {
    let parts = |names: [&'static str; 3]| {
        on_ranks(3, move |part| {
            let source = Arc::new(Named(names[part.group.rank()]));
            let loader = Loader::new(source, config(0, 0), 0).unwrap();
            loader.with_part(part).map(drop)
        })
    };
    assert!(parts(["last", "last", "last"]).iter().all(Result::is_ok));
    let errors = parts(["last", "last", "other"]).into_iter().map(Result::unwrap_err);
    let errors: Vec<DataError> = errors.collect();
    assert!(matches!(errors[2], DataError::OtherRows { rows: 2 }), "{}", errors[2]);
    let line = "the 2 rows differ from those of rank 0: all ranks must read the same data";
    let lines = errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(lines, [format!("rank 2: {line}"), format!("rank 2: {line}"), line.into()]);
}
