//! Whether the process was started as one of several ranks.

/// The place of a process among those that a launcher started together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Launch {
    /// The launcher.
    pub launcher: Launcher,
    /// Number of the process.
    pub rank: usize,
    /// Number of processes, if the launcher says.
    pub size: Option<usize>,
    /// Number of the process on its node, if the launcher says.
    pub local_rank: Option<usize>,
}

/// A program that starts the ranks of MPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Launcher {
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// `mpiexec` of MPICH, Intel MPI or MVAPICH, or `srun --mpi=pmi2`.
    Pmi,
    /// `srun --mpi=pmix`, or another launcher with PMIx.
    Pmix,
}

impl Launch {
    /// Returns the place of this process, or `None` if no launcher of MPI started it. `variable` returns environment
    /// variables, as in `|name| std::env::var(name).ok()`.
    ///
    /// A batch script of Slurm is not a rank: only `srun` with one of its MPI plugins starts ranks, and sets the variables
    /// of PMI or PMIx.
    pub fn detect(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
        let first = |names: &[&str]| names.iter().find_map(|name| number(name));
        let slurm = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"];
        let (launcher, rank, size) = if let Some(rank) = number("OMPI_COMM_WORLD_RANK") {
            (Launcher::OpenMpi, rank, number("OMPI_COMM_WORLD_SIZE"))
        } else if let Some(rank) = number("PMI_RANK") {
            (Launcher::Pmi, rank, number("PMI_SIZE"))
        } else {
            (Launcher::Pmix, number("PMIX_RANK")?, first(&slurm))
        };
        let local_rank = first(&[
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "MPI_LOCALRANKID",
            "MV2_COMM_WORLD_LOCAL_RANK",
            "SLURM_LOCALID",
        ]);
        Some(Self { launcher, rank, size, local_rank })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(variables: &[(&str, &str)]) -> Option<Launch> {
        Launch::detect(|name| {
            let found = variables.iter().find(|(key, _)| *key == name)?;
            Some(found.1.to_string())
        })
    }

    #[test]
    fn launchers_are_recognised_by_their_variables() {
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("PMIX_RANK", "3"),
        ];
        let launch = detect(&open_mpi).unwrap();
        let expected =
            Launch { launcher: Launcher::OpenMpi, rank: 3, size: Some(4), local_rank: Some(1) };
        assert_eq!(launch, expected);
        let mpich = detect(&[("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "0")]);
        let expected =
            Launch { launcher: Launcher::Pmi, rank: 0, size: Some(2), local_rank: Some(0) };
        assert_eq!(mpich, Some(expected));
        let slurm = [
            ("PMIX_RANK", "5"),
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_LOCALID", "1"),
        ];
        let expected =
            Launch { launcher: Launcher::Pmix, rank: 5, size: Some(8), local_rank: Some(1) };
        assert_eq!(detect(&slurm), Some(expected));
    }

    #[test]
    fn a_batch_script_is_not_a_rank() {
        assert_eq!(detect(&[]), None);
        assert_eq!(detect(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]), None);
        assert_eq!(detect(&[("OMPI_COMM_WORLD_RANK", "x")]), None);
    }
}
