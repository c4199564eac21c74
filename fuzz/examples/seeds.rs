//! Writes the seeds of every reader to `corpus/NAME/` below the working directory.

// Instrumented code calls the fuzzer's runtime.
use fuzz as _;
use std::{fs, path::Path};

fn main() -> std::io::Result<()> {
    for reader in opensora_tests::readers::all() {
        let folder = Path::new("corpus").join(reader.name);
        fs::create_dir_all(&folder)?;
        for (index, seed) in reader.seeds().iter().enumerate() {
            fs::write(folder.join(format!("seed-{index}")), seed)?;
        }
    }
    Ok(())
}
