//! Contact sheets of clips and their captions, as PNG or HTML.
//!
//! Each clip is shown as three frames, at 20 %, 50 % and 80 % of its length, with its caption below. A PNG
//! sheet is one image, whose font has Latin, Greek and Cyrillic letters and boxes for all others. An HTML
//! sheet is one page with embedded images and no requests, in which browsers show captions of any script.
//!
//! | module | contents |
//! |---|---|
//! | `sheet` | the PNG |
//! | `page` | the HTML |

mod page;
mod sheet;

pub use crate::look::Unreadable;

use crate::{Observer, PrepareError, RowError, Summary, look, source::Header};
use opensora_files::write_atomically;
use opensora_manifest::{
    Table,
    table::{PATH, TEXT},
};
use opensora_video::{
    Frames,
    pillow::{Filter, Resize},
    sheet::{SheetOptions, contact_sheet},
};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Positions of the frames in a clip.
const PLACES: [f64; 3] = [0.2, 0.5, 0.8];
/// Maximum height and width of a frame on the sheet.
const THUMBNAIL: [usize; 2] = [162, 288];

/// Options of a preview: which rows are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Number of rows; all rows if the table has fewer.
    pub count: usize,
    /// Seed of the random choice of rows.
    pub seed: u64,
}

impl Default for Job {
    /// Returns the defaults: 16 rows.
    fn default() -> Self {
        Self { count: 16, seed: 42 }
    }
}

impl Job {
    /// Returns the chosen rows of a table of `rows` rows, in order.
    fn rows(self, rows: usize) -> Vec<usize> {
        let mut keyed: Vec<([u8; 32], usize)> = (0..rows)
            .map(|row| {
                let mut hash = Sha256::new();
                hash.update(self.seed.to_le_bytes());
                hash.update((row as u64).to_le_bytes());
                (hash.finalize().into(), row)
            })
            .collect();
        if self.count < rows {
            keyed.select_nth_unstable(self.count);
            keyed.truncate(self.count);
        }
        let mut chosen: Vec<usize> = keyed.into_iter().map(|(_, row)| row).collect();
        chosen.sort_unstable();
        chosen
    }
}

/// Row counts of a written sheet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Number of rows of the table.
    pub input: usize,
    /// Number of rows on the sheet.
    pub rows: usize,
    /// The rows on the sheet whose file cannot be read; the sheet shows the reason.
    pub unreadable: Vec<Unreadable>,
}

impl Report {
    /// Returns the row counts.
    pub fn summary(&self) -> Summary {
        Summary { input: self.input, output: self.rows, failed: self.unreadable.len() }
    }
}

/// A row of the sheet: caption, frames and header.
struct Entry<'a, Picture> {
    /// Row of the table, counted from 1.
    row: usize,
    /// File name without folders, which could reveal private information on a shared sheet.
    name: String,
    /// Empty if the row has none.
    caption: &'a str,
    /// The frames side by side and the header, or why the file cannot be read.
    look: Result<(Picture, Header), String>,
}

impl<Picture> Entry<'_, Picture> {
    /// Returns one line with number, name and header.
    fn headline(&self) -> String {
        let mut line = format!("{}. {}", self.row, self.name);
        if let Ok((_, header)) = &self.look {
            line.push_str(&format!(", {}x{}", header.width, header.height));
            if let Some(fps) = header.fps {
                line.push_str(&format!(", {} fps", (fps * 100.0).round() / 100.0));
            }
            if let Some(frames) = header.num_frames.filter(|frames| *frames > 1) {
                line.push_str(&format!(", {frames} frames"));
            }
            if let Some(seconds) = header.duration {
                line.push_str(&format!(", {seconds:.1} s"));
            }
        }
        line
    }
}

/// File format of a sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Png,
    Html,
}

impl Format {
    fn of(path: &Path) -> Result<Self, PrepareError> {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        match ending.to_ascii_lowercase().as_str() {
            "png" => Ok(Self::Png),
            "html" | "htm" => Ok(Self::Html),
            _ => Err(PrepareError::Spec {
                field: "out",
                found: path.display().to_string(),
                expected: "a file that ends in .png or .html",
            }),
        }
    }
}

/// Writes a sheet of some rows of a table to `out`, as PNG or HTML by its extension. A row whose file
/// cannot be read is shown with the reason.
///
/// # Errors
/// Returns an error if the table has no rows, there are more rows than fit into a PNG, the extension
/// is unknown, the file cannot be written, or the observer stops the work. An existing file then stays
/// unchanged.
pub fn run(
    job: &Job,
    table: &Table,
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Report, PrepareError> {
    let format = Format::of(out)?;
    let rows = job.rows(table.len());
    let count = |expected| {
        let found = format!("{} of {} rows", job.count, table.len());
        Err(PrepareError::Spec { field: "count", found, expected })
    };
    if rows.is_empty() {
        return count("at least one row to show");
    }
    if format == Format::Png && rows.len() > sheet::MOST {
        return count("at most 40 for a PNG, or a file that ends in .html");
    }
    match format {
        Format::Png => {
            let entries = look(table, &rows, Ok, observer)?;
            sheet::save(&entries, out)?;
            Ok(report(table, &entries))
        }
        Format::Html => {
            let entries = look(table, &rows, |strip| page::picture(&strip), observer)?;
            let page = page::page(&entries);
            write_atomically(out, |temporary| std::fs::write(temporary, page))
                .map_err(PrepareError::io(out))?;
            Ok(report(table, &entries))
        }
    }
}

fn report<Picture>(table: &Table, entries: &[Entry<'_, Picture>]) -> Report {
    let unreadable = entries.iter().filter_map(|entry| {
        let reason = entry.look.as_ref().err()?.clone();
        let path = table.get(entry.row - 1, PATH).unwrap_or_default().to_string();
        Some(Unreadable { row: entry.row, path, reason })
    });
    Report { input: table.len(), rows: entries.len(), unreadable: unreadable.collect() }
}

/// Reads frames of the rows' files. `picture` converts each strip of frames at once, so that memory
/// holds few decoded frames.
fn look<'a, Picture: Send>(
    table: &'a Table,
    rows: &[usize],
    picture: impl Fn(Frames) -> Result<Picture, RowError> + Sync,
    observer: &mut dyn Observer,
) -> Result<Vec<Entry<'a, Picture>>, PrepareError> {
    let path = |row: usize| Path::new(table.get(row, PATH).unwrap_or_default());
    let one = |index: usize| {
        let path = path(rows[index]);
        if path.as_os_str().is_empty() {
            return Err("the row names no file".into());
        }
        let (frames, header) = look::frames_at(path, &PLACES)?;
        Ok((picture(strip(&frames)?)?, header))
    };
    let looks = look::each(rows.len(), one, observer)?;
    let entry = |(&row, look): (&usize, Result<_, RowError>)| Entry {
        row: row + 1,
        name: path(row).file_name().unwrap_or_default().to_string_lossy().into_owned(),
        caption: table.get(row, TEXT).unwrap_or_default(),
        look: look.map_err(|error| error.reason(Some(path(row)))),
    };
    Ok(rows.iter().zip(looks).map(entry).collect())
}

/// Scales frames down and puts them side by side.
fn strip(frames: &Frames) -> Result<Frames, RowError> {
    let source = [frames.height(), frames.width()];
    let scales = [0, 1].map(|axis| THUMBNAIL[axis] as f64 / source[axis] as f64);
    let scale = scales[0].min(scales[1]).min(1.0);
    let size = source.map(|side| ((side as f64 * scale).round() as usize).max(1));
    let resize = Resize::whole(source, size);
    let data = frames.iter().flat_map(|frame| resize.apply(frame, Filter::Bicubic)).collect();
    let small = Frames::from_rgb(data, [frames.len(), size[0], size[1]])?;
    let options = SheetOptions { columns: PLACES.len(), scale: 1 };
    Ok(contact_sheet(&[small], &options)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_files::error_line;
    use opensora_video::png;

    /// A video, a text file named as a video, and a row without a file.
    fn table(folder: &Path) -> Table {
        let video = look::tests::video(folder, "a<b>.mp4").display().to_string();
        let torn = folder.join("torn.mp4");
        std::fs::write(&torn, "no video").unwrap();
        let mut table = Table::new([PATH, TEXT]);
        let caption = "A <script>alert('x')</script> fox & \"friends\" \u{202e}狐\u{1b}[31m";
        table.push([(PATH, video), (TEXT, caption.into())]);
        table.push([(PATH, torn.display().to_string()), (TEXT, "fog ".repeat(500))]);
        table.push([(TEXT, "no file".into())]);
        table
    }

    const ALL: Job = Job { count: 40, seed: 0 };

    #[test]
    fn rows_are_chosen_by_the_seed_and_in_order() {
        let chosen = |count, seed| Job { count, seed }.rows(1000);
        let rows = chosen(20, 1);
        assert!(rows.len() == 20 && rows.is_sorted() && rows[19] < 1000);
        assert_eq!(rows, chosen(20, 1));
        assert_ne!(rows, chosen(20, 2));
        // A larger choice contains the smaller one.
        assert!(rows.iter().all(|row| chosen(30, 1).contains(row)));
        assert_eq!(Job { count: 9, seed: 3 }.rows(4), [0, 1, 2, 3]);
        assert!(chosen(0, 3).is_empty());
    }

    #[test]
    fn a_png_shows_frames_captions_and_reasons() {
        let folder = tempfile::tempdir().unwrap();
        let table = table(folder.path());
        let path = folder.path().join("sheet.png");
        let shown = run(&ALL, &table, &path, &mut ()).unwrap();
        assert_eq!(shown.rows, 3);
        let rows: Vec<usize> = shown.unreadable.iter().map(|bad| bad.row).collect();
        assert_eq!(rows, [2, 3]);
        assert!(shown.unreadable[0].path.ends_with("torn.mp4"));
        assert_eq!(shown.unreadable[1].reason, "the row names no file");
        let sheet = png::read(&path).unwrap();
        assert_eq!(sheet.width(), sheet::WIDTH);
        // Frames 2, 5 and 7 of the video, greys of 20 a frame, 64 x 48 each.
        for grey in [40u8, 100, 140] {
            let near = |rgb: &&[u8]| rgb.iter().all(|byte| byte.abs_diff(grey) < 6);
            let count = sheet.data().chunks_exact(3).filter(near).count();
            assert!(count >= 64 * 48, "{grey}: {count}");
        }
    }

    #[test]
    fn a_page_embeds_its_images_and_escapes_captions() {
        let folder = tempfile::tempdir().unwrap();
        let table = table(folder.path());
        let path = folder.path().join("sheet.HTML");
        let shown = run(&ALL, &table, &path, &mut ()).unwrap();
        assert_eq!((shown.rows, shown.unreadable.len()), (3, 2));
        let page = std::fs::read_to_string(&path).unwrap();
        let caption =
            "A &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; fox &amp; &quot;friends&quot;";
        assert!(page.contains(caption) && page.contains("狐") && page.contains("a&lt;b&gt;.mp4"));
        assert!(page.contains("the row names no file") && page.contains("default-src 'none'"));
        assert_eq!(page.matches("src=\"data:image/jpeg;base64,").count(), 1);
        for never in ["<script", "://", "\u{1b}", "a<b>"] {
            assert!(!page.contains(never), "{never}");
        }
        assert!(!page.contains(folder.path().to_str().unwrap()), "it names a folder");
    }

    #[test]
    fn invalid_jobs_are_rejected_and_nothing_written() {
        let folder = tempfile::tempdir().unwrap();
        let table = table(folder.path());
        let refused = |table: &Table, count, name: &str| {
            let job = Job { count, seed: 0 };
            error_line(&run(&job, table, &folder.path().join(name), &mut ()).unwrap_err())
        };
        assert!(refused(&table, 3, "a.pdf").contains("ends in .png or .html"));
        assert!(refused(&table, 0, "a.png").contains("count = 0 of 3 rows"));
        assert!(refused(&Table::default(), 3, "a.html").contains("0 rows"));
        let many = table.select([2; 41]);
        assert!(refused(&many, 41, "a.png").contains("at most 40"));
        assert!(refused(&table, 3, "none/a.html").contains("none/a.html"));
        assert!(refused(&table, 3, "none/a.png").contains("none/a.png"));
        assert!(!folder.path().join("a.png").exists());
        // A sheet of only unreadable rows is written as well.
        let bad = table.select([1, 2]);
        for name in ["bad.png", "bad.html"] {
            let shown = run(&ALL, &bad, &folder.path().join(name), &mut ()).unwrap();
            assert_eq!(shown.unreadable.len(), 2);
        }
    }

    #[test]
    fn frames_of_any_shape_fit() {
        for [height, width] in [[1080, 1920], [1920, 1080], [1, 4000], [4000, 1], [20, 30]] {
            let frames = Frames::from_rgb(vec![9; 3 * height * width * 3], [3, height, width]);
            let strip = strip(&frames.unwrap()).unwrap();
            assert!(strip.height() <= THUMBNAIL[0] + 4 && strip.width() <= 3 * THUMBNAIL[1] + 8);
            assert!(strip.data().contains(&9));
        }
    }
}
