//! Damaged tables and prompt files: rows or an error of one line, no panic, in bounded memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/mutate.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the tests across crates, which use all items"
)]
mod mutate;

use mutate::check_reader;
use opensora_files::error_line;
use opensora_manifest::{Manifest, Table, limits::MAX_CAPTION_CHARS, read_prompts, table::TEXT};
use std::path::Path;

const COUNT: usize = 6_000;

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/field");
    std::fs::read(folder.join(name)).unwrap()
}

/// Writes a file anew: some file systems bring one that is truncated and filled again to the disk.
fn write(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}

fn tables() -> Vec<Vec<u8>> {
    let texts = [
        "path,text,num_frames,aes\na.mp4,\"A fox, \"\"red\"\"\nruns\",51,5.5\n/b/c.png,,,\n",
        "\u{feff}video_path;caption;frames\r\na.mp4;\"h\u{fc}bsch; \u{1f98a}\";16.0\r\nb;NaN;nan\r\n",
        "sep=\t\nfile_name\tprompt\nx.mp4\tfog\n\n\"y.mp4\"\t\"sea\"\n",
        "a.mp4,fog,51\rb.mp4,\"sea\",\r",
    ];
    let long =
        format!("path,text\na.mp4,\"{}\"\n{}", "x, ".repeat(3000), "b.mp4,fog\n".repeat(7000));
    let mut seeds: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    seeds.extend(["nan.csv", "nfnan.csv", "semi.csv"].map(fixture));
    // Longer than the chunks in which files are read.
    seeds.push(long.into_bytes());
    seeds
}

#[test]
fn damaged_tables_are_read_or_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.csv");
    let read = |bytes: &[u8]| {
        write(&path, bytes);
        let table = Table::read_with_root(&path, Path::new(""));
        let manifest = Manifest::read(&path);
        if let Ok(table) = &table {
            assert!(table.rows().iter().all(|row| row.len() == table.columns().len()));
            let captions = (0..table.len()).filter_map(|row| table.get(row, TEXT));
            for caption in captions {
                assert!(caption.chars().count() <= MAX_CAPTION_CHARS);
            }
        }
        if let Ok(manifest) = &manifest {
            assert!(!manifest.rows.is_empty());
        }
        table.map(drop).and(manifest.map(drop)).map_err(|error| error_line(&error))
    };
    let rejected = check_reader("tables", &tables(), COUNT, read);
    assert!((COUNT / 10..COUNT * 19 / 20).contains(&rejected), "{rejected}");
}

#[test]
fn damaged_prompt_files_are_read_or_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let mut seeds = tables();
    seeds.push(fixture("bomblank.txt"));
    seeds.push("\u{feff}a red fox\r\n\r\nein h\u{fc}bscher \u{1f98a}\rthe sea\n".into());
    for name in ["damaged.txt", "damaged.csv"] {
        let path = folder.path().join(name);
        let rejected = check_reader(name, &seeds, COUNT, |bytes| {
            write(&path, bytes);
            let prompts = read_prompts(&path).map_err(|error| error_line(&error))?;
            assert!(!prompts.is_empty());
            for prompt in prompts {
                assert!(!prompt.trim().is_empty() && !prompt.contains(['\n', '\r', '\0']));
                assert!(prompt.chars().count() <= MAX_CAPTION_CHARS);
            }
            Ok(())
        });
        assert!((COUNT / 20..COUNT).contains(&rejected), "{name}: {rejected}");
    }
}

/// Files that would fill the memory if a line or a field were read whole.
#[cfg(target_os = "linux")]
#[test]
fn endless_lines_do_not_fill_the_memory() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endless.csv");
    for start in ["", "path,text\na.mp4,", "path,text\na.mp4,\"", "path,text\na.mp4,\"\n"] {
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(start.as_bytes()).unwrap();
        for _ in 0..64 {
            file.write_all(&[b'x'; 1 << 20]).unwrap();
        }
        assert!(Table::read(&path).is_err() && Manifest::read(&path).is_err());
        assert!(read_prompts(&path).is_err());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 40 << 10, "{peak} KiB");
}
