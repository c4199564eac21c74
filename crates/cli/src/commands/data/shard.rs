//! The shard of a data step: `--shard`, or the place of the process in a job array and among MPI ranks.
//!
//! | launcher | index | count |
//! |---|---|---|
//! | Slurm job array | `SLURM_ARRAY_TASK_ID` | `SLURM_ARRAY_TASK_COUNT`, with `_MIN`, `_MAX` and `_STEP` |
//! | Kubernetes Indexed Job | `JOB_COMPLETION_INDEX` | [`ARRAY_SIZE`]; Kubernetes sets none |
//! | Open MPI | `OMPI_COMM_WORLD_RANK` | `OMPI_COMM_WORLD_SIZE` |
//! | MPICH, Intel MPI, `srun` with PMI | `PMI_RANK` | `PMI_SIZE` |
//! | `srun` | `SLURM_PROCID` | `SLURM_STEP_NUM_TASKS` |
//!
//! An array of 4 tasks with 2 ranks each makes 8 shards. The number of tasks of a Slurm job (`SLURM_NTASKS`)
//! is not read: it is set in a batch script and in the shell of `salloc` as well, where only one process runs.
//!
//! Sources: the manual pages sbatch(1) and srun(1) of Slurm, "Output environment variables"; the Kubernetes
//! documentation of Jobs, "Completion mode"; the manual page mpirun(1) of Open MPI.

use opensora::prepare::{PrepareError, Shard};
use std::{ffi::OsString, fmt, str::FromStr};

/// Number of tasks of the job array, for launchers that do not tell it, and for a part of an array that runs
/// again.
pub(crate) const ARRAY_SIZE: &str = "OPENSORA_ARRAY_SIZE";

const SLURM_ARRAY: &str = "SLURM_ARRAY_TASK_ID";
const KUBERNETES: &str = "JOB_COMPLETION_INDEX";

/// Environment variables of the rank and the number of ranks, in order of precedence. `mpirun` inside a Slurm job
/// starts its daemons with `srun`, and the ranks inherit the daemons' `SLURM_PROCID`; so MPI's variables come first.
const RANKS: [[&str; 2]; 3] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
    ["PMI_RANK", "PMI_SIZE"],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"],
];

/// Value of `--shard`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GivenShard(Shard);

impl FromStr for GivenShard {
    type Err = PrepareError;

    fn from_str(text: &str) -> Result<Self, PrepareError> {
        if text == "none" { Ok(Self(Shard::WHOLE)) } else { text.parse().map(Self) }
    }
}

/// The shard of a process and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The shard.
    pub(crate) shard: Shard,
    /// Environment variables of the index; empty for a shard given by `--shard` and for the whole table.
    pub(crate) from: Vec<&'static str>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {} (from {})", self.shard, self.from.join(" and "))
    }
}

/// Error: the environment variables are malformed or contradictory, or do not determine a shard.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ShardError {
    /// A variable that is not a whole number in its range.
    #[error("{name} is '{found}', expected {expected}; --shard I/N or none overrides it")]
    Value {
        /// The variable.
        name: &'static str,
        /// Its value.
        found: String,
        /// The expected values.
        expected: String,
    },
    /// An index without a count.
    #[error("{index} is set, but {count} is not: set it, or give --shard I/N or none")]
    Missing {
        /// The variable of the index.
        index: &'static str,
        /// The variable of the count.
        count: &'static str,
    },
    /// A count without an index.
    #[error("{ARRAY_SIZE} is set, but this process is not a task of a job array")]
    NoArray,
    /// Variables of two kinds of job arrays.
    #[error("{SLURM_ARRAY} and {KUBERNETES} are both set: give --shard I/N or none")]
    TwoArrays,
    /// Slurm array with gaps in its indices, with one task, or that begins above 1: probably some tasks of an array
    /// that are run again.
    #[error(
        "the Slurm array of {count} tasks from {min} to {max} does not tell the number of shards: set \
         {ARRAY_SIZE} (indices then count from 0), or give --shard I/N or none"
    )]
    PartOfArray {
        /// Number of tasks.
        count: usize,
        /// Smallest index.
        min: usize,
        /// Largest index.
        max: usize,
    },
}

/// An index below a count, and the variable of the index.
type Place = (usize, usize, &'static str);

/// Returns the shard `given` by `--shard`, else the shard of the environment, else the whole table. `variable` returns
/// the value of an environment variable.
///
/// # Errors
/// Returns an error if the environment is contradictory or malformed.
pub(crate) fn choose(
    given: Option<GivenShard>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Choice, ShardError> {
    if let Some(GivenShard(shard)) = given {
        return Ok(Choice { shard, from: Vec::new() });
    }
    let environment = Environment(variable);
    let (mut index, mut count, mut from) = (0, 1, Vec::new());
    for place in [environment.array()?, environment.rank()?] {
        // A single task is the usual case outside arrays: nothing to say.
        if let Some((part, parts, name)) = place.filter(|(_, parts, _)| *parts > 1) {
            (index, count) = (index * parts + part, count * parts);
            from.push(name);
        }
    }
    // The index is below the count by construction.
    let shard = Shard::new(index, count).unwrap_or(Shard::WHOLE);
    Ok(Choice { shard, from })
}

struct Environment<F>(F);

impl<F: Fn(&str) -> Option<OsString>> Environment<F> {
    /// Returns the number in a variable; `None` if it is not set or empty.
    fn number(&self, name: &'static str) -> Result<Option<usize>, ShardError> {
        let Some(value) = (self.0)(name).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let text = value.to_string_lossy();
        // Products of two counts do not overflow.
        let number = text.trim().parse().ok().filter(|&number: &usize| number <= 1 << 30);
        number.map(Some).ok_or_else(|| ShardError::Value {
            name,
            found: text.into_owned(),
            expected: "a whole number".into(),
        })
    }

    /// Returns the place `index` of `count`, or an error if `index` is not below `count`.
    fn place(index: usize, count: usize, name: &'static str) -> Result<Place, ShardError> {
        if index < count {
            return Ok((index, count, name));
        }
        let expected = format!("less than {count}, the number of tasks");
        Err(ShardError::Value { name, found: index.to_string(), expected })
    }

    /// Returns the place in a job array.
    fn array(&self) -> Result<Option<Place>, ShardError> {
        let (slurm, kubernetes) = (self.number(SLURM_ARRAY)?, self.number(KUBERNETES)?);
        let (index, name) = match (slurm, kubernetes) {
            (Some(_), Some(_)) => return Err(ShardError::TwoArrays),
            (Some(index), None) => (index, SLURM_ARRAY),
            (None, Some(index)) => (index, KUBERNETES),
            (None, None) if self.number(ARRAY_SIZE)?.is_some() => return Err(ShardError::NoArray),
            (None, None) => return Ok(None),
        };
        if let Some(count) = self.number(ARRAY_SIZE)? {
            return Self::place(index, count, name).map(Some);
        }
        if name == KUBERNETES {
            return Err(ShardError::Missing { index: name, count: ARRAY_SIZE });
        }
        self.slurm_array(index).map(Some)
    }

    /// Returns the place in a Slurm array, which begins at 0 or 1 and may have a step.
    fn slurm_array(&self, index: usize) -> Result<Place, ShardError> {
        const COUNT: &str = "SLURM_ARRAY_TASK_COUNT";
        let missing = ShardError::Missing { index: SLURM_ARRAY, count: COUNT };
        let count = self.number(COUNT)?.ok_or(missing)?;
        let min = self.number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
        let step = self.number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
        let last = min + count.saturating_sub(1) * step;
        let max = self.number("SLURM_ARRAY_TASK_MAX")?.unwrap_or(last);
        // Whole arrays begin at 0 or 1 by convention. A part that begins there as well looks like a whole array.
        if count < 2 || min > 1 || max != last {
            return Err(ShardError::PartOfArray { count, min, max });
        }
        if index < min || !(index - min).is_multiple_of(step) {
            let expected = format!("one of {min} to {max} in steps of {step}");
            return Err(ShardError::Value {
                name: SLURM_ARRAY,
                found: index.to_string(),
                expected,
            });
        }
        Self::place((index - min) / step, count, SLURM_ARRAY)
    }

    /// Returns the rank among the processes that were started together.
    fn rank(&self) -> Result<Option<Place>, ShardError> {
        for [index, count] in RANKS {
            match (self.number(index)?, self.number(count)?) {
                (Some(rank), Some(ranks)) => return Self::place(rank, ranks, index).map(Some),
                // The script of a Slurm job has a number, but is not one of several tasks.
                (Some(_), None) if index == "SLURM_PROCID" => return Ok(None),
                (Some(_), None) => return Err(ShardError::Missing { index, count }),
                (None, _) => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(given: Option<&str>, variables: &[(&str, &str)]) -> Result<String, String> {
        let variable = |name: &str| {
            variables.iter().find(|(set, _)| *set == name).map(|(_, value)| value.into())
        };
        let given = given.map(|text| text.parse().unwrap());
        match choose(given, variable) {
            Ok(choice) if choice.from.is_empty() => Ok(choice.shard.to_string()),
            Ok(choice) => Ok(choice.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn slurm_array(
        id: &str,
        count: &str,
        min: &str,
        max: &str,
        step: &str,
    ) -> [(&'static str, String); 5] {
        [
            ("SLURM_ARRAY_TASK_ID", id.into()),
            ("SLURM_ARRAY_TASK_COUNT", count.into()),
            ("SLURM_ARRAY_TASK_MIN", min.into()),
            ("SLURM_ARRAY_TASK_MAX", max.into()),
            ("SLURM_ARRAY_TASK_STEP", step.into()),
        ]
    }

    fn in_array(values: [&str; 5], more: &[(&str, &str)]) -> Result<String, String> {
        let [id, count, min, max, step] = values;
        let array = slurm_array(id, count, min, max, step);
        let array = array.iter().map(|(name, value)| (*name, value.as_str()));
        chosen(None, &array.chain(more.iter().copied()).collect::<Vec<_>>())
    }

    #[test]
    fn the_option_overrides_the_environment() {
        let array = [("SLURM_ARRAY_TASK_ID", "broken"), ("OMPI_COMM_WORLD_RANK", "1")];
        assert_eq!(chosen(Some("3/8"), &array), Ok("3/8".into()));
        assert_eq!(chosen(Some("none"), &array), Ok("0/1".into()));
        assert!("3/3".parse::<GivenShard>().is_err() && "None".parse::<GivenShard>().is_err());
    }

    #[test]
    fn slurm_arrays_begin_at_0_or_1_and_may_have_steps() {
        let shard = |text: &str| Ok(format!("shard {text} (from SLURM_ARRAY_TASK_ID)"));
        assert_eq!(in_array(["3", "8", "0", "7", "1"], &[]), shard("3/8"));
        assert_eq!(in_array(["1", "8", "1", "8", "1"], &[]), shard("0/8"));
        assert_eq!(in_array(["8", "8", "1", "8", "1"], &[]), shard("7/8"));
        // --array=1-16:4
        assert_eq!(in_array(["9", "4", "1", "13", "4"], &[]), shard("2/4"));
        // Older releases of Slurm set fewer variables.
        let few = [("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_TASK_COUNT", "4")];
        assert_eq!(chosen(None, &few), shard("3/4"));
    }

    /// A user who starts some tasks of an array again must not get other rows than the first time.
    #[test]
    fn a_part_of_an_array_needs_the_size_of_the_array() {
        for values in [
            ["3", "1", "3", "3", "1"],
            ["3", "2", "3", "5", "1"],
            ["0", "1", "0", "0", "1"],
            // --array=3-4 and --array=2-6:2
            ["3", "2", "3", "4", "1"],
            ["4", "3", "2", "6", "2"],
        ] {
            let error = in_array(values, &[]).unwrap_err();
            assert!(error.contains("OPENSORA_ARRAY_SIZE"), "{error}");
            assert!(error.contains("give --shard I/N or none"), "{error}");
            let found = in_array(values, &[("OPENSORA_ARRAY_SIZE", "8")]);
            let wanted = format!("shard {}/8 (from SLURM_ARRAY_TASK_ID)", values[0]);
            assert_eq!(found, Ok(wanted));
        }
        let error = in_array(["8", "1", "8", "8", "1"], &[("OPENSORA_ARRAY_SIZE", "8")]);
        assert_eq!(
            error.unwrap_err(),
            "SLURM_ARRAY_TASK_ID is '8', expected less than 8, the number of tasks; --shard I/N or none \
             overrides it"
        );
    }

    #[test]
    fn kubernetes_needs_the_number_of_completions() {
        let index = ("JOB_COMPLETION_INDEX", "2");
        let found = chosen(None, &[index, ("OPENSORA_ARRAY_SIZE", "5")]);
        assert_eq!(found, Ok("shard 2/5 (from JOB_COMPLETION_INDEX)".into()));
        assert_eq!(
            chosen(None, &[index]).unwrap_err(),
            "JOB_COMPLETION_INDEX is set, but OPENSORA_ARRAY_SIZE is not: set it, or give --shard I/N or \
             none"
        );
        assert_eq!(
            chosen(None, &[("OPENSORA_ARRAY_SIZE", "5")]).unwrap_err(),
            "OPENSORA_ARRAY_SIZE is set, but this process is not a task of a job array"
        );
    }

    #[test]
    fn ranks_of_mpi_and_tasks_of_srun_are_shards() {
        let mpi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
        assert_eq!(chosen(None, &mpi), Ok("shard 1/4 (from OMPI_COMM_WORLD_RANK)".into()));
        let pmi = [("PMI_RANK", "0"), ("PMI_SIZE", "2")];
        assert_eq!(chosen(None, &pmi), Ok("shard 0/2 (from PMI_RANK)".into()));
        let srun = [("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "6")];
        assert_eq!(chosen(None, &srun), Ok("shard 5/6 (from SLURM_PROCID)".into()));
        // mpirun inside a Slurm job: the variables of srun are those of the helper of a node.
        let inside = [mpi[0], mpi[1], ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2")];
        assert_eq!(chosen(None, &inside), Ok("shard 1/4 (from OMPI_COMM_WORLD_RANK)".into()));
    }

    #[test]
    fn an_array_of_ranks_has_a_shard_for_each_rank() {
        let srun = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
        let found = in_array(["3", "4", "0", "3", "1"], &srun);
        assert_eq!(found, Ok("shard 7/8 (from SLURM_ARRAY_TASK_ID and SLURM_PROCID)".into()));
        // One task in each element of the array, as `sbatch --array=0-3` starts it by srun.
        let one = [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")];
        let found = in_array(["3", "4", "0", "3", "1"], &one);
        assert_eq!(found, Ok("shard 3/4 (from SLURM_ARRAY_TASK_ID)".into()));
    }

    #[test]
    fn a_single_process_takes_all_rows() {
        let whole = Ok("0/1".to_string());
        assert_eq!(chosen(None, &[]), whole);
        // The script of `sbatch --ntasks=8` and the shell of `salloc --ntasks=8`, without srun.
        assert_eq!(chosen(None, &[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), whole);
        assert_eq!(chosen(None, &[("SLURM_NTASKS", "8")]), whole);
        // The interactive step of `salloc`, and mpirun -n 1.
        assert_eq!(chosen(None, &[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")]), whole);
        let one = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")];
        assert_eq!(chosen(None, &one), whole);
        assert_eq!(chosen(None, &[("JOB_COMPLETION_INDEX", "")]), whole);
    }

    #[test]
    fn malformed_and_contradictory_variables_are_errors() {
        for (variables, wanted) in [
            (
                vec![("OMPI_COMM_WORLD_RANK", "one"), ("OMPI_COMM_WORLD_SIZE", "4")],
                "OMPI_COMM_WORLD_RANK is 'one', expected a whole number",
            ),
            (vec![("PMI_RANK", "4"), ("PMI_SIZE", "4")], "PMI_RANK is '4', expected less than 4"),
            (vec![("PMI_RANK", "0"), ("PMI_SIZE", "0")], "PMI_RANK is '0', expected less than 0"),
            (vec![("PMI_RANK", "-1"), ("PMI_SIZE", "2")], "PMI_RANK is '-1'"),
            (
                vec![("OMPI_COMM_WORLD_RANK", "1")],
                "OMPI_COMM_WORLD_RANK is set, but OMPI_COMM_WORLD_SIZE is not",
            ),
            (
                vec![("SLURM_ARRAY_TASK_ID", "1")],
                "SLURM_ARRAY_TASK_ID is set, but SLURM_ARRAY_TASK_COUNT is not",
            ),
            (
                vec![("SLURM_ARRAY_TASK_ID", "1"), ("JOB_COMPLETION_INDEX", "1")],
                "SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX are both set",
            ),
        ] {
            let error = chosen(None, &variables).unwrap_err();
            assert!(error.starts_with(wanted), "{error}");
        }
        let error = in_array(["6", "4", "1", "13", "4"], &[]).unwrap_err();
        assert!(error.contains("expected one of 1 to 13 in steps of 4"), "{error}");
    }
}
