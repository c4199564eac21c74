//! Tests of files and folders that appear complete or not at all.

use super::*;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_failure_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    write_atomically(&path, |temporary| fs::write(temporary, "first")).unwrap();
    let error = write_atomically(&path, |temporary| {
        fs::write(temporary, "half")?;
        Err(io::Error::other("full"))
    });
    assert_eq!(error.unwrap_err().to_string(), "full");
    assert_eq!(fs::read_to_string(&path).unwrap(), "first");
    write_atomically(&path, |temporary| {
        // A writer that replaces the file instead of filling it.
        fs::remove_file(temporary)?;
        fs::write(temporary, "second")
    })
    .unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "second");
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn a_file_that_is_dropped_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let mut file = AtomicFile::create(&path, Existing::Replace).unwrap();
    file.try_write().unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!(names(folder.path()).len(), 1);
    drop(file);
    assert!(names(folder.path()).is_empty());

    let mut file = AtomicFile::create(&path, Existing::Replace).unwrap();
    file.try_write().unwrap();
    file.write_all(b"whole").unwrap();
    assert!(!path.exists());
    file.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"whole");
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn an_existing_target_is_refused_early_and_late() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let late = AtomicFile::create(&path, Existing::Refuse).unwrap();
    fs::write(&path, "old").unwrap();
    let early = AtomicFile::create(&path, Existing::Refuse).unwrap_err();
    for error in [early, late.commit().unwrap_err()] {
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");

    let inner = folder.path().join("folder");
    let late = AtomicFolder::create(&inner, Existing::Refuse).unwrap();
    fs::create_dir(&inner).unwrap();
    let early = AtomicFolder::create(&inner, Existing::Refuse).unwrap_err();
    for error in [early, late.commit().unwrap_err()] {
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
    fs::remove_dir(&inner).unwrap();
    let new = AtomicFolder::create(&inner, Existing::Refuse).unwrap();
    fs::write(new.temporary_path().join("a"), "a").unwrap();
    new.commit().unwrap();
    assert_eq!(names(&inner), ["a"]);
    assert_eq!(names(folder.path()), ["file", "folder"]);
}

#[test]
fn folders_appear_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("folder");
    for round in 0..2 {
        let building = AtomicFolder::create(&path, Existing::Replace).unwrap();
        fs::create_dir(building.temporary_path().join("inner")).unwrap();
        fs::write(building.temporary_path().join("inner/a"), "a").unwrap();
        if round == 0 {
            assert!(!path.exists());
            drop(building);
            assert!(names(folder.path()).is_empty());
            // An empty folder is replaced.
            fs::create_dir(&path).unwrap();
        } else {
            building.commit().unwrap();
        }
    }
    assert_eq!(names(&path.join("inner")), ["a"]);
    let full = AtomicFolder::create(&path, Existing::Replace).unwrap();
    assert!(full.commit().is_err());
    assert_eq!(names(folder.path()), ["folder"]);
    assert_eq!(names(&path), ["inner"]);
}

#[test]
fn targets_of_another_kind_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kind = |path: &Path| AtomicFile::create(path, Existing::Replace).unwrap_err().kind();
    assert_eq!(kind(folder.path()), io::ErrorKind::IsADirectory);
    assert_eq!(kind(Path::new("..")), io::ErrorKind::InvalidFilename);
    let missing = AtomicFile::create(&folder.path().join("none/a"), Existing::Replace).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    assert!(!missing.to_string().contains(PREFIX), "{missing}");
    if cfg!(unix) {
        assert_eq!(kind(Path::new("/dev/null")), io::ErrorKind::InvalidInput);
    }
    fs::write(folder.path().join("file"), "").unwrap();
    let file = AtomicFolder::create(&folder.path().join("file"), Existing::Replace).unwrap_err();
    assert_eq!(file.kind(), io::ErrorKind::NotADirectory);
}

#[test]
fn old_leftovers_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    std::mem::forget(AtomicFile::create(&folder.path().join("a"), Existing::Replace).unwrap());
    let inner = AtomicFolder::create(&folder.path().join("b"), Existing::Replace).unwrap();
    fs::write(inner.temporary_path().join("x"), "x").unwrap();
    std::mem::forget(inner);
    fs::write(folder.path().join("mine.part"), "").unwrap();
    remove_leftovers(folder.path(), Duration::from_secs(3600)).unwrap();
    assert_eq!(names(folder.path()).len(), 3);
    remove_leftovers(folder.path(), Duration::ZERO).unwrap();
    assert_eq!(names(folder.path()), ["mine.part"]);
    remove_leftovers(&folder.path().join("none"), Duration::ZERO).unwrap();
}

#[cfg(unix)]
#[test]
fn rights_are_those_of_any_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
    fs::write(at("plain"), "").unwrap();
    fs::create_dir(at("plain-folder")).unwrap();
    write_atomically(&at("file"), |temporary| fs::write(temporary, "x")).unwrap();
    write_atomically(&at("replaced"), |temporary| {
        let private = tempfile::NamedTempFile::new_in(folder.path())?;
        private.persist(temporary).map(drop).map_err(|error| error.error)
    })
    .unwrap();
    AtomicFolder::create(&at("folder"), Existing::Replace).unwrap().commit().unwrap();
    assert_eq!(mode("file"), mode("plain"));
    assert_eq!(mode("replaced"), mode("plain"));
    assert_eq!(mode("folder"), mode("plain-folder"));
}

#[cfg(unix)]
#[test]
fn links_are_replaced_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("victim"), "old").unwrap();
    std::os::unix::fs::symlink(at("victim"), at("link")).unwrap();
    write_atomically(&at("link"), |temporary| fs::write(temporary, "new")).unwrap();
    assert_eq!(fs::read_to_string(at("victim")).unwrap(), "old");
    assert_eq!(fs::read_to_string(at("link")).unwrap(), "new");

    // A link that points nowhere is something that exists.
    std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
    let error = AtomicFile::create(&at("dangling"), Existing::Refuse).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert!(!at("nowhere").exists());
}

#[test]
fn files_are_read_and_written_through_their_handle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let mut file = AtomicFile::create(&path, Existing::Replace).unwrap();
    assert_eq!(file.target(), path);
    assert_eq!(file.temporary_path().parent(), Some(folder.path()));
    file.write_all(b"abcdef").unwrap();
    assert_eq!(file.seek(io::SeekFrom::Start(2)).unwrap(), 2);
    let mut rest = String::new();
    assert_eq!(file.read_to_string(&mut rest).unwrap(), 4);
    assert_eq!(rest, "cdef");
    assert_eq!(file.stream_position().unwrap(), 6);
    let inner = AtomicFolder::create(&folder.path().join("folder"), Existing::Replace).unwrap();
    assert_eq!(inner.target(), folder.path().join("folder"));
}

#[test]
fn failures_of_the_disk_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let mut file = AtomicFile::create(&path, Existing::Replace).unwrap();
    file.sync().unwrap();
    // A handle without the right to write.
    file.file = File::open(file.temporary_path()).unwrap();
    assert!(file.try_write().is_err());
    // The temporary file is gone.
    fs::remove_file(file.temporary_path()).unwrap();
    assert_eq!(file.sync().unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(file.commit().is_err() && !path.exists());
    // A file in place of the folder to clean.
    fs::write(&path, "").unwrap();
    assert!(remove_leftovers(&path, Duration::ZERO).is_err());
}

#[test]
fn only_a_file_that_is_there_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "").unwrap();
    remove_if_present(&path).unwrap();
    assert!(!path.exists());
    remove_if_present(&path).unwrap();
    // Other failures are errors.
    assert!(remove_if_present(folder.path()).is_err());
}

#[test]
fn used_temporary_names_are_skipped() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static REMOVED: AtomicUsize = AtomicUsize::new(0);
    let remove = |_: &Path| {
        REMOVED.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let attempts = AtomicUsize::new(0);
    let create = |path: &Path| match attempts.fetch_add(1, Ordering::SeqCst) {
        0 => Err(io::ErrorKind::AlreadyExists.into()),
        _ => Ok(path.to_path_buf()),
    };
    let (temporary, path) = Temporary::create(Path::new("file"), create, remove).unwrap();
    assert_eq!((attempts.load(Ordering::SeqCst), &temporary.path), (2, &path));
    assert!(path.is_absolute());
    temporary.keep();
    assert_eq!(REMOVED.load(Ordering::SeqCst), 0);
    drop(Temporary::create(Path::new("file"), |_| Ok(()), remove).unwrap());
    assert_eq!(REMOVED.load(Ordering::SeqCst), 1);
    let denied = |_: &Path| io::Result::<()>::Err(io::ErrorKind::PermissionDenied.into());
    let error = Temporary::create(Path::new("file"), denied, remove).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn a_folder_whose_removal_was_interrupted_is_a_leftover() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("job");
    let leftover = root.path().join(format!("{PREFIX}job{SUFFIX}"));
    fs::create_dir_all(path.join("inner")).unwrap();
    remove_folder(&path).unwrap();
    assert_eq!(remove_folder(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    // Interrupted after the rename: a later call continues, and so does the removal of leftovers.
    fs::create_dir_all(leftover.join("inner")).unwrap();
    remove_folder(&path).unwrap();
    assert!(!leftover.exists());
    // A file in place of the folder: the leftover of another removal stays.
    fs::create_dir_all(leftover.join("inner")).unwrap();
    fs::write(&path, "").unwrap();
    assert!(remove_folder(&path).is_err());
    assert!(leftover.exists());
    fs::remove_file(&path).unwrap();
    remove_leftovers(root.path(), Duration::ZERO).unwrap();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn without_hard_links_the_name_is_claimed_first() {
    let folder = tempfile::tempdir().unwrap();
    let (temporary, target) = (folder.path().join("temporary"), folder.path().join("target"));
    // Folders have no hard links. The file that claims the name cannot be replaced by one, and is removed.
    fs::create_dir(&temporary).unwrap();
    let error = rename_new(&temporary, &target).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    assert_eq!(names(folder.path()), ["temporary"]);
    // Nobody's name is taken.
    fs::write(&target, "old").unwrap();
    assert_eq!(rename_new(&temporary, &target).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&target).unwrap(), "old");
}

#[test]
fn places_for_files_are_checked_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "old").unwrap();
    fs::create_dir(path("sub")).unwrap();
    check_writable(&path("file")).unwrap();
    check_writable(&path("new")).unwrap();
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "old");
    assert_eq!(names(folder.path()), ["file", "sub"], "nothing is left");
    for check in [check_writable, check_file_path] {
        assert_eq!(check(&path("sub")).unwrap_err().kind(), io::ErrorKind::IsADirectory);
    }
    // Only the second check needs the folder.
    check_file_path(&path("missing/file")).unwrap();
    let error = check_writable(&path("missing/file")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}
