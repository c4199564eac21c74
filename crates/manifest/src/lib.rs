//! Tables of images and videos, and files of prompts.
//!
//! A table is a CSV or Parquet file with one image or video per row: path, caption, number of frames and any
//! other columns. Data preparation reads and writes whole tables ([`Table`]), training reads path, caption and
//! number of frames ([`Manifest`]), and sampling reads prompts ([`read_prompts`]). The readers accept the files
//! of common tools. Errors name the file and line, and the sizes of fields are limited.
//!
//! ```
//! use opensora_manifest::{Manifest, Table};
//!
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("clips.csv");
//! std::fs::write(&path, "video_path;caption;aes\nfox.mp4;a red fox;5.5\nsea.mp4;NaN;6.1\n")?;
//!
//! let clips = Manifest::read(&path)?;
//! assert_eq!(clips.rows[0].path, folder.path().join("fox.mp4"));
//! assert_eq!((&*clips.rows[0].caption, &*clips.rows[1].caption), ("a red fox", ""));
//!
//! let mut table = Table::read(&path)?;
//! table.set(1, "text", "waves on a beach");
//! table.write(&path)?;
//! assert_eq!(
//!     std::fs::read_to_string(&path)?,
//!     "path,text,aes\nfox.mp4,a red fox,5.5\nsea.mp4,waves on a beach,6.1\n"
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Columns
//!
//! Four columns are known. They are found by any of the names below, compared without case, blanks, `_` and
//! `-`. If a table has several names of one column, the first in this list is used, and the others are kept as
//! other columns. Tables are written with the name on the left.
//!
//! | column | names | contents |
//! |---|---|---|
//! | `path` | `path`, `video_path`, `file_path`, `file_name`, `file`, `video_file`, `video`, `video_name`, `clip_path`, `image_path`, `image_file`, `image` | image, video or folder of frames; relative paths are resolved against the table's folder |
//! | `text` | `text`, `caption`, `captions`, `prompt`, `description` | caption, at most 10,000 characters |
//! | `num_frames` | `num_frames`, `frames`, `n_frames`, `frame_count`, `frame` | number of frames, a whole number; `51.0` is read as 51 |
//! | `url` | `url`, `video_url`, `image_url`, `content_url` | URL to download from |
//!
//! A row with a value in `clip_start` or `clip_end` ([`table::CLIP_START`], [`table::CLIP_END`]) is a range of its file
//! in seconds. [`Table`]s keep such rows; [`Manifest`] rejects them, because training reads whole files.
//!
//! Other columns are kept unchanged. A CSV file without a header has the columns `path`,
//! `text` and, if rows have a third field, `num_frames`. A first row that begins with the name of an image or video is
//! no header.
//!
//! # Accepted files
//!
//! | file | result |
//! |---|---|
//! | UTF-8, with or without a byte order mark; LF, CR LF or CR | text |
//! | UTF-16, UTF-32, other bytes, NUL | an error that names encoding or line |
//! | `,`, `;`, tab or `\|` in the first line, Excel's `sep=;` | the delimiter |
//! | an unclosed quote | an error at the line where the quote opens |
//! | blanks, `nan`, `None`, `NULL`, `N/A`, ... ([`value`]) in the four columns above | a missing value: an empty field |
//! | more than the [`limits`] | an error |
//! | JSON, a web page, a Git LFS pointer, an archive | an error that names the format |
//!
//! # Contents
//!
//! | module | contents |
//! |---|---|
//! | [`table`] | tables with all their columns |
//! | [`rows`] | the rows of a table for training |
//! | [`prompts`] | prompt files |
//! | [`value`] | missing values, numbers and counts |
//! | [`text`] | UTF-8 text in chunks, for readers of other formats |
//! | [`layout`] | delimiters and names of columns, for readers of other lists |
//! | [`limits`] | most bytes and characters |
//!
//! Features: `parquet` reads and writes Parquet files that are uncompressed or compressed by
//! Snappy; `parquet-zstd` adds Zstandard and gzip and builds C code.

mod csv_file;
mod error;
mod header;
mod known;
pub mod layout;
pub mod limits;
#[cfg(feature = "parquet")]
mod parquet_file;
pub mod prompts;
pub mod rows;
mod stored;
pub mod table;
pub mod text;
pub mod value;

pub use error::ManifestError;
pub use prompts::read_prompts;
pub use rows::{Manifest, Row};
pub use table::Table;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
