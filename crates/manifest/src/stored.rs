//! Table files: format by extension, and relative paths.

use crate::{
    ManifestError, Table, csv_file,
    known::{Purpose, shown},
    table::{PATH, URL},
};
use opensora_files::write_atomically;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Format of a file: Parquet by its extensions, else CSV.
enum Format {
    Csv,
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Self {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let parquet = ["parquet", "pq"].iter().any(|known| ending.eq_ignore_ascii_case(known));
        if parquet { Self::Parquet } else { Self::Csv }
    }
}

/// Reads a table without resolving its paths.
pub(crate) fn read(path: &Path, purpose: Purpose) -> Result<Table, ManifestError> {
    match Format::of(path) {
        Format::Csv => csv_file::read(path, purpose),
        #[cfg(feature = "parquet")]
        Format::Parquet => crate::parquet_file::read(path, purpose),
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => Err(no_parquet(path)),
    }
}

/// A table with the paths to write.
pub(crate) struct Stored<'a> {
    table: &'a Table,
    /// Index of the column of paths, and the fields that replace it.
    paths: Option<(usize, Vec<String>)>,
}

impl<'a> Stored<'a> {
    /// Prepares a table for `file`: paths below `root` become relative to it, other paths absolute.
    pub(crate) fn new(
        table: &'a Table,
        root: Option<&Path>,
        file: &Path,
    ) -> Result<Self, ManifestError> {
        let io = |source| ManifestError::Io { path: file.into(), source };
        let root = root.map(absolute_folder).transpose().map_err(io)?;
        let named = |(row, fields): (usize, &Vec<String>), at: usize| {
            let path = &fields[at];
            if path.is_empty() {
                return Ok(String::new());
            }
            let named = relative(Path::new(path), root.as_deref())
                .map_err(|source| ManifestError::Io { path: path.into(), source })?;
            text(named, row, file)
        };
        let paths = |at| {
            let rows = table.rows().iter().enumerate();
            Ok((at, rows.map(|row| named(row, at)).collect::<Result<_, _>>()?))
        };
        Ok(Self { table, paths: table.column(PATH).map(paths).transpose()? })
    }

    /// Prepares a table whose paths are written unchanged.
    pub(crate) fn as_it_is(table: &'a Table) -> Self {
        Self { table, paths: None }
    }

    pub(crate) fn columns(&self) -> &'a [String] {
        self.table.columns()
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn field(&self, row: usize, column: usize) -> &str {
        match &self.paths {
            Some((at, paths)) if *at == column => &paths[row],
            _ => &self.table.rows()[row][column],
        }
    }
}

/// Writes a table atomically.
pub(crate) fn write(table: &Stored<'_>, path: &Path) -> Result<(), ManifestError> {
    if !table.columns().iter().any(|name| name == PATH || name == URL) {
        // Without such a column, the header would be read as a row.
        let reason = match table.columns() {
            [] => "the table has no columns, expected a column path or url".into(),
            names => format!("found the columns {}, expected a column path or url", shown(names)),
        };
        return Err(ManifestError::Whole { path: path.into(), reason });
    }
    match Format::of(path) {
        Format::Csv => write_atomically(path, |temporary| csv_file::write(table, temporary)),
        #[cfg(feature = "parquet")]
        Format::Parquet => {
            write_atomically(path, |temporary| crate::parquet_file::write(table, temporary))
        }
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => return Err(no_parquet(path)),
    }
    .map_err(|source| ManifestError::Io { path: path.into(), source })
}

#[cfg(not(feature = "parquet"))]
fn no_parquet(path: &Path) -> ManifestError {
    ManifestError::Whole {
        path: path.into(),
        reason: "found a name of a Parquet file, expected CSV: this program was built without the \
                 cargo feature `parquet`"
            .into(),
    }
}

/// Joins `folder` and `path`, without the `./` of the working directory.
pub(crate) fn join(folder: &Path, path: &str) -> PathBuf {
    if folder == Path::new(".") { path.into() } else { folder.join(path) }
}

/// Returns the absolute path of a folder.
pub(crate) fn absolute_folder(folder: &Path) -> io::Result<PathBuf> {
    std::path::absolute(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}

/// Returns a path relative to the absolute folder `root` if the path is below it, else the absolute path.
pub(crate) fn relative(file: &Path, root: Option<&Path>) -> io::Result<PathBuf> {
    let file = std::path::absolute(file)?;
    let below = root.and_then(|root| file.strip_prefix(root).ok());
    Ok(below.map(Path::to_path_buf).unwrap_or(file))
}

/// Resolves the relative paths of a table that was read from `file` against `root`.
pub(crate) fn resolve(table: &mut Table, root: &Path, file: &Path) -> Result<(), ManifestError> {
    let Some(at) = table.column(PATH) else { return Ok(()) };
    for (index, row) in table.rows_mut().iter_mut().enumerate() {
        if !row[at].is_empty() {
            row[at] = text(join(root, &row[at]), index, file)?;
        }
    }
    Ok(())
}

/// Returns a path as a field; an error names the row and the table `file`.
pub(crate) fn text(path: PathBuf, row: usize, file: &Path) -> Result<String, ManifestError> {
    path.into_os_string().into_string().map_err(|path| ManifestError::Row {
        path: file.into(),
        row,
        line: None,
        reason: format!("the path {} is not UTF-8", path.display()),
    })
}
