//! Wrapped text as an image.
//!
//! The bundled font has Latin, Greek and Cyrillic letters. Missing characters are drawn as boxes. There are no
//! ligatures and no right-to-left layout; write HTML for other scripts.

use crate::{
    ChartError,
    canvas::{self, Area, Medium, OVERSAMPLING, Page},
};
use opensora_video::{Frames, VideoError};
use plotters::prelude::*;

/// A paragraph of wrapped text.
///
/// ```
/// use opensora_chart::text::Paragraph;
///
/// let text = "a red fox in a misty forest";
/// let image = Paragraph { text, size: 16, width: 120, most_lines: 3 }.render()?;
/// assert_eq!(image.width(), 120);
/// # Ok::<(), opensora_chart::ChartError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paragraph<'a> {
    /// The text. White space and control characters separate words.
    pub text: &'a str,
    /// Height of the letters in pixels, 6 to 96.
    pub size: u32,
    /// Width of a line in pixels, 16 to 4096.
    pub width: u32,
    /// Maximum number of lines, 1 to 100. Longer text ends with an ellipsis.
    pub most_lines: usize,
}

impl Paragraph<'_> {
    /// Draws the text, dark on white. Text without words is one empty line.
    ///
    /// # Errors
    /// Returns an error if a number is outside its range or the font is not usable.
    pub fn render(&self) -> Result<Frames, ChartError> {
        for (name, value, range) in [
            ("size", self.size as usize, 6..=96),
            ("width", self.width as usize, 16..=4096),
            ("most_lines", self.most_lines, 1..=100),
        ] {
            if !range.contains(&value) {
                let (first, last) = (range.start(), range.end());
                let text = format!("{name} is {value}, expected {first} to {last}");
                return Err(ChartError::Style(text));
            }
        }
        let style = canvas::text(self.size);
        let measure = |text: &str| style.font.box_size(text).map(|(width, _)| width as usize);
        // Measuring fails if the font is not usable.
        measure("x").map_err(ChartError::draw("text"))?;
        let width = (self.width * OVERSAMPLING) as usize;
        let lines = wrap(self.text, width, self.most_lines, &|text| measure(text).unwrap_or(0));
        let page = Lines { lines, style, width: self.width, size: self.size };
        let (rgb, [height, width]) = canvas::rgb(&page)?;
        Frames::from_rgb(rgb, [1, height, width])
            .map_err(|source| VideoError::Frames { path: "text".into(), source }.into())
    }
}

/// Returns text on one line of at most `most` characters. White space and control characters become single
/// spaces; longer text ends with an ellipsis.
pub fn plain(text: &str, most: usize) -> String {
    let mut line = String::new();
    for word in words(text) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > 4 * most {
            break;
        }
    }
    match line.char_indices().nth(most) {
        None => line,
        Some(_) => line.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let separates = |c: char| c.is_whitespace() || c.is_control();
    text.split(separates).filter(|word| !word.is_empty())
}

/// Breaks text into lines of at most `width`, splitting words that are wider. Returns at least one line.
fn wrap(text: &str, width: usize, most: usize, measure: &dyn Fn(&str) -> usize) -> Vec<String> {
    let (mut lines, mut line) = (vec![], String::new());
    for word in words(text) {
        // Whole lines are measured, because rounded widths of words do not add up.
        let longer = if line.is_empty() { word.into() } else { format!("{line} {word}") };
        if measure(&longer) <= width {
            line = longer;
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        for letter in word.chars() {
            let is_first = line.is_empty();
            line.push(letter);
            if measure(&line) > width && !is_first {
                line.pop();
                lines.push(std::mem::replace(&mut line, letter.into()));
                if lines.len() > most {
                    break;
                }
            }
        }
        if lines.len() > most {
            break;
        }
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            last.push('…');
            while measure(last) > width && last.chars().nth(1).is_some() {
                // The letter before the ellipsis.
                last.truncate(last.len() - '…'.len_utf8());
                last.pop();
                last.push('…');
            }
        }
    }
    lines
}

/// A page with one row per line.
struct Lines {
    lines: Vec<String>,
    style: TextStyle<'static>,
    width: u32,
    size: u32,
}

impl Page for Lines {
    fn size(&self) -> (u32, u32) {
        (self.width, self.size * 7 / 5)
    }

    fn rows(&self) -> usize {
        self.lines.len()
    }

    fn draw_row<Backend>(
        &self,
        row: usize,
        area: &Area<Backend>,
        _: Medium,
    ) -> Result<(), ChartError>
    where
        Backend: DrawingBackend<ErrorType: 'static>,
    {
        // plotters draws the baseline half a letter's height below the given position. This offset leaves space
        // for accents above and descenders below.
        let top = (self.size * OVERSAMPLING / 2) as i32;
        area.draw_text(&self.lines[row], &self.style, (0, top)).map_err(ChartError::draw("text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every character is ten wide.
    fn wrapped(text: &str, width: usize, most: usize) -> Vec<String> {
        wrap(text, width, most, &|text| 10 * text.chars().count())
    }

    #[test]
    fn words_are_kept_together_where_they_fit() {
        assert_eq!(wrapped("a red fox\nruns \t fast", 90, 9), ["a red fox", "runs fast"]);
        assert_eq!(wrapped("a red fox", 89, 9), ["a red", "fox"]);
        assert_eq!(wrapped("to abcdefgh it", 40, 9), ["to", "abcd", "efgh", "it"]);
        assert_eq!(wrapped("狐狸跑得很快", 30, 9), ["狐狸跑", "得很快"]);
        assert_eq!(wrapped(" \n\u{0}", 30, 9), [""]);
        assert_eq!(wrapped("wide", 5, 9), ["w", "i", "d", "e"]);
    }

    #[test]
    fn long_texts_are_cut_off() {
        assert_eq!(wrapped("one two three four", 50, 2), ["one", "two…"]);
        assert_eq!(wrapped("one two", 50, 2), ["one", "two"]);
        assert_eq!(wrapped("abcdefghijkl", 40, 2), ["abcd", "efg…"]);
        assert_eq!(wrapped(&"x".repeat(1_000_000), 40, 1), ["xxx…"]);
        assert_eq!(plain("a\u{1b}[31m  red\n", 40), "a [31m red");
        assert_eq!(plain("abcdef", 6), "abcdef");
        assert_eq!(plain("abcdefg", 6), "abcde…");
        assert_eq!(plain(&"ü".repeat(99), 3), "üü…");
    }

    #[test]
    fn letters_become_pixels_and_what_the_font_lacks_a_box() {
        let render = |text: &str| Paragraph { text, size: 16, width: 200, most_lines: 3 }.render();
        let dark = |text: &str| {
            let still = render(text).unwrap();
            assert_eq!(still.width(), 200);
            still.data().chunks_exact(3).filter(|rgb| rgb[0] < 128).count()
        };
        assert_eq!(dark(""), 0);
        assert!(dark("A red fox") > 2 * dark("fox"));
        assert!(dark("狐") > 10 && dark("狐") == dark("狸"), "{}", dark("狐"));
        assert_ne!(dark("ж"), dark("狐"));
        let high = |text: &str| render(text).unwrap().height();
        assert_eq!((high("fox"), high(&"fox ".repeat(100))), (22, 66));
        // Many short words: no line runs out of the picture.
        let still = render(&"a i ".repeat(60)).unwrap();
        let last = |row: &[u8]| row[3 * 199..] == [255; 3];
        assert!(still.data().chunks_exact(3 * 200).all(last));
        // Nothing is cut off above or below.
        let still = render("Égjpq|").unwrap();
        let row = |y: usize| &still.data()[3 * 200 * y..][..3 * 200];
        assert!(row(0).iter().chain(row(21)).all(|&byte| byte == 255));
        assert!(Paragraph { text: "", size: 1, width: 200, most_lines: 3 }.render().is_err());
    }
}
