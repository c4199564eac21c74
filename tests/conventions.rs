//! Rules of the workspace that no lint checks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Methods of tensors that read a device: `nn/src/read.rs` explains why nothing else calls them.
const READS: [&str; 12] = [
    ".into_data()",
    ".to_data()",
    ".try_into_data()",
    ".try_to_data()",
    ".into_data_async(",
    ".to_data_async(",
    ".into_scalar",
    ".try_into_scalar",
    ".to_data_as::<",
    ".into_data_as::<",
    ".to_vec_as::<",
    ".sync()",
];

/// Files that may call them: the helper itself, and kernels on flex tensors, which are host memory.
const MAY_READ: [&str; 2] = ["crates/nn/src/read.rs", "crates/nn/src/kernels/flex.rs"];

/// Files beside tensors that are synced to disk.
const FILES: [&str; 2] = ["crates/files/src/", "crates/video/src/writer.rs"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Returns every source file of the crates with its path below the workspace, without tests (folders of that name and
/// modules at the end of a file).
fn sources() -> Vec<(String, String)> {
    let root = workspace();
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = ["crates", "examples"].map(|name| root.join(name)).into();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !matches!(name.as_str(), "tests" | "benches" | "target") {
                    open.push(path);
                }
            } else if name.ends_with(".rs") && !matches!(name.as_str(), "tests.rs" | "testing.rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("\nmod tests").next().unwrap().to_string();
                let path = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
                found.push((path, code));
            }
        }
    }
    assert!(found.len() > 200, "only {} files: the walk is wrong", found.len());
    found
}

#[test]
fn devices_are_read_in_one_place() {
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        if MAY_READ.contains(&path.as_str()) {
            continue;
        }
        for (line, text) in code.lines().enumerate() {
            let is_comment = text.trim_start().starts_with("//");
            let is_file =
                text.contains(".sync()") && FILES.iter().any(|file| path.starts_with(file));
            if !is_comment && !is_file && READS.iter().any(|read| text.contains(read)) {
                wrong.push(format!("{path}:{}: {}", line + 1, text.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "use opensora_nn::read:\n{}", wrong.join("\n"));
}
