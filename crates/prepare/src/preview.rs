//! Clips and captions to look at, on one sheet.
//!
//! Of each clip there are three frames, from a fifth, the half and four fifths of its length, with
//! its caption below. As PNG the sheet is one picture, whose font has the Latin, Greek and Cyrillic
//! letters and boxes for all others; as HTML it is one page that holds its pictures and fetches
//! nothing, in which a browser shows captions of any script.
//!
//! | module | thought |
//! |---|---|
//! | `sheet` | the PNG |
//! | `page` | the HTML |

mod page;
mod sheet;

pub use crate::look::Unreadable;

use crate::{PrepareError, look, source::Header};
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

/// Where in a clip frames are taken from.
const PLACES: [f64; 3] = [0.2, 0.5, 0.8];
/// Rows and columns that a frame is made to fit into.
const THUMBNAIL: [usize; 2] = [162, 288];

/// Which rows are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// How many; all of them where there are no more.
    pub count: usize,
    /// Another seed shows other rows.
    pub seed: u64,
}

impl Choice {
    /// Rows out of so many, in their order.
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

/// What a sheet shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Rows on the sheet.
    pub rows: usize,
    /// Those of them whose file could not be read: they are on it with the reason.
    pub unreadable: Vec<Unreadable>,
}

/// A row as it is shown.
struct Entry<'a, Picture> {
    /// Number of the row, from 1.
    row: usize,
    /// The file's own name: a sheet is passed on, and folders may tell more than they should.
    name: String,
    /// Empty where there is none.
    caption: &'a str,
    /// The frames beside each other, and what the file says of itself; or why it cannot be read.
    look: Result<(Picture, Header), String>,
}

impl<Picture> Entry<'_, Picture> {
    /// One line: number, name and what the file says of itself.
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

/// What a sheet is written as.
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

/// Writes a sheet of some rows of a table to `path`, as PNG or HTML by its ending. A row whose
/// file cannot be read is on it with the reason. `advanced` hears how many of how many are done.
///
/// # Errors
/// Where there are no rows, more are asked for than fit into a PNG, the ending is another, or the
/// file cannot be written; what was at `path` stays then.
pub fn save(
    table: &Table,
    choice: Choice,
    path: &Path,
    advanced: &mut dyn FnMut(usize, usize),
) -> Result<Shown, PrepareError> {
    let format = Format::of(path)?;
    let rows = choice.rows(table.len());
    let count = |expected| {
        let found = format!("{} of {} rows", choice.count, table.len());
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
            let entries = look(table, &rows, Ok, advanced);
            sheet::save(&entries, path)?;
            Ok(shown(table, &entries))
        }
        Format::Html => {
            let entries = look(table, &rows, |strip| page::picture(&strip), advanced);
            let page = page::page(&entries);
            write_atomically(path, |temporary| std::fs::write(temporary, page))
                .map_err(|source| PrepareError::Io { path: path.into(), source })?;
            Ok(shown(table, &entries))
        }
    }
}

fn shown<Picture>(table: &Table, entries: &[Entry<'_, Picture>]) -> Shown {
    let unreadable = entries.iter().filter_map(|entry| {
        let reason = entry.look.as_ref().err()?.clone();
        let path = table.get(entry.row - 1, PATH).unwrap_or_default().to_string();
        Some(Unreadable { row: entry.row, path, reason })
    });
    Shown { rows: entries.len(), unreadable: unreadable.collect() }
}

/// Looks into the files of some rows; `picture` is made of each strip of frames at once, so that
/// no more than necessary is held.
fn look<'a, Picture: Send>(
    table: &'a Table,
    rows: &[usize],
    picture: impl Fn(Frames) -> Result<Picture, String> + Sync,
    advanced: &mut dyn FnMut(usize, usize),
) -> Vec<Entry<'a, Picture>> {
    let path = |row: usize| Path::new(table.get(row, PATH).unwrap_or_default());
    let one = |index: usize| {
        let path = path(rows[index]);
        if path.as_os_str().is_empty() {
            return Err("the row names no file".into());
        }
        let (frames, header) = look::frames_at(path, &PLACES)?;
        Ok((picture(strip(&frames)?)?, header))
    };
    let looks = look::each(rows.len(), one, advanced);
    rows.iter()
        .zip(looks)
        .map(|(&row, look)| Entry {
            row: row + 1,
            name: path(row).file_name().unwrap_or_default().to_string_lossy().into_owned(),
            caption: table.get(row, TEXT).unwrap_or_default(),
            look,
        })
        .collect()
}

/// Small frames beside each other.
fn strip(frames: &Frames) -> Result<Frames, String> {
    let source = [frames.height(), frames.width()];
    let scales = [0, 1].map(|axis| THUMBNAIL[axis] as f64 / source[axis] as f64);
    let scale = scales[0].min(scales[1]).min(1.0);
    let size = source.map(|side| ((side as f64 * scale).round() as usize).max(1));
    let resize = Resize::whole(source, size);
    let data = frames.iter().flat_map(|frame| resize.apply(frame, Filter::Bicubic)).collect();
    let error = |error: opensora_video::FramesError| error.to_string();
    let small = Frames::from_rgb(data, [frames.len(), size[0], size[1]]).map_err(error)?;
    let options = SheetOptions { columns: PLACES.len(), scale: 1 };
    contact_sheet(&[small], &options).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opensora_video::png;

    /// A video, a text that is none, and a row without a file.
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

    const ALL: Choice = Choice { count: 40, seed: 0 };

    #[test]
    fn rows_are_chosen_by_the_seed_and_shown_in_order() {
        let chosen = |count, seed| Choice { count, seed }.rows(1000);
        let rows = chosen(20, 1);
        assert!(rows.len() == 20 && rows.is_sorted() && rows[19] < 1000);
        assert_eq!(rows, chosen(20, 1));
        assert_ne!(rows, chosen(20, 2));
        // More of them are the same and others.
        assert!(rows.iter().all(|row| chosen(30, 1).contains(row)));
        assert_eq!(Choice { count: 9, seed: 3 }.rows(4), [0, 1, 2, 3]);
        assert!(chosen(0, 3).is_empty());
    }

    #[test]
    fn a_png_shows_frames_captions_and_reasons() {
        let folder = tempfile::tempdir().unwrap();
        let table = table(folder.path());
        let path = folder.path().join("sheet.png");
        let shown = save(&table, ALL, &path, &mut |_, _| ()).unwrap();
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
    fn a_page_holds_everything_and_captions_stay_text() {
        let folder = tempfile::tempdir().unwrap();
        let table = table(folder.path());
        let path = folder.path().join("sheet.HTML");
        let mut heard = vec![];
        let shown = save(&table, ALL, &path, &mut |done, total| heard.push((done, total))).unwrap();
        assert_eq!((shown.rows, shown.unreadable.len()), (3, 2));
        assert_eq!(heard, [(1, 3), (2, 3), (3, 3)]);
        let page = std::fs::read_to_string(&path).unwrap();
        let caption =
            "A &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; fox &amp; &quot;friends&quot;";
        assert!(page.contains(caption) && page.contains("狐") && page.contains("a&lt;b&gt;.mp4"));
        assert!(page.contains("the row names no file") && page.contains("default-src 'none'"));
        assert_eq!(page.matches("src=\"data:image/jpeg;base64,").count(), 1);
        for never in ["<script", "://", "\u{1b}", "a<b>"] {
            assert!(!page.contains(never), "{never}");
        }
        assert!(!page.contains(folder.path().to_str().unwrap()), "folders are nobody's business");
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_written() {
        let folder = tempfile::tempdir().unwrap();
        let table = table(folder.path());
        let refused = |table: &Table, count, name: &str| {
            let choice = Choice { count, seed: 0 };
            save(table, choice, &folder.path().join(name), &mut |_, _| ()).unwrap_err().to_string()
        };
        assert!(refused(&table, 3, "a.pdf").contains("ends in .png or .html"));
        assert!(refused(&table, 0, "a.png").contains("count = 0 of 3 rows"));
        assert!(refused(&Table::default(), 3, "a.html").contains("0 rows"));
        let many = table.select([2; 41]);
        assert!(refused(&many, 41, "a.png").contains("at most 40"));
        assert!(refused(&table, 3, "none/a.html").contains("none/a.html"));
        assert!(refused(&table, 3, "none/a.png").contains("none/a.png"));
        assert!(!folder.path().join("a.png").exists());
        // Nothing but rows that cannot be read is a sheet still.
        let bad = table.select([1, 2]);
        for name in ["bad.png", "bad.html"] {
            let shown = save(&bad, ALL, &folder.path().join(name), &mut |_, _| ()).unwrap();
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
