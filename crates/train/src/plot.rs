//! Curves of runs as SVG or PNG: the raw values faint, their smoothed course strong.
//!
//! | module | thought |
//! |---|---|
//! | [`curve`] | numbers of one run: smoothing, thinning for drawing |
//! | `axis` | linear and logarithmic axes with round ticks |
//! | `draw` | panels, axes, legend |
//!
//! ```
//! use opensora_train::plot::{Curve, Panel, Style, save};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let steps: Vec<f64> = (1..=100).map(f64::from).collect();
//! let loss = steps.iter().map(|step| 1.0 / step.sqrt()).collect();
//! let curve = Curve { name: "first run".into(), run: 0, x: steps, y: loss };
//! let panels = [Panel { title: "loss".into(), curves: vec![curve] }];
//! save(&panels, &Style::default(), &folder.path().join("loss.svg"))?;
//! # Ok(())
//! # }
//! ```

mod axis;
pub mod curve;
mod draw;

pub use curve::Curve;

use opensora_files::write_atomically;
use opensora_video::{Frames, VideoError, png};
use std::path::{Path, PathBuf};

/// One diagram: a column of one or several runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What is shown: the column's name.
    pub title: String,
    /// The runs.
    pub curves: Vec<Curve>,
}

/// How curves are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Style {
    /// Weight of the past in the smoothed curve, 0 (none) to below 1, as in TensorBoard.
    pub smooth: f64,
    /// Logarithmic values; those that are not positive are left out.
    pub log: bool,
    /// What the horizontal axis counts.
    pub x_label: String,
    /// Width of a panel in pixels.
    pub width: u32,
    /// Height of a panel in pixels.
    pub height: u32,
}

impl Default for Style {
    fn default() -> Self {
        Self { smooth: 0.98, log: false, x_label: "step".into(), width: 960, height: 480 }
    }
}

/// Why curves cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlotError {
    /// A style or a number of panels that cannot be.
    #[error("{0}")]
    Style(String),
    /// An ending that stands for no format.
    #[error("{}: unknown format, expected .svg or .png", path.display())]
    Format {
        /// The path.
        path: PathBuf,
    },
    /// No curve has a value that can be shown.
    #[error("{title}: no values to show{}", if *log { " on a logarithmic axis" } else { "" })]
    Empty {
        /// The panel's title.
        title: String,
        /// Whether only positive values count.
        log: bool,
    },
    /// The drawing library failed.
    #[error("{title}: cannot draw: {reason}")]
    Draw {
        /// The panel's title.
        title: String,
        /// The library's words.
        reason: String,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// The image cannot be written.
    #[error(transparent)]
    Image(#[from] VideoError),
}

/// Draws the panels below each other into `path`, as SVG or PNG by its ending.
///
/// # Errors
/// Where there is nothing to show, the style cannot be, or the file cannot be written; what was at
/// `path` stays then.
pub fn save(panels: &[Panel], style: &Style, path: &Path) -> Result<(), PlotError> {
    let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
    match ending.as_ref().and_then(|ending| ending.to_str()) {
        Some("svg") => {
            let svg = draw::svg(panels, style)?;
            write_atomically(path, |temporary| std::fs::write(temporary, svg))
                .map_err(|source| PlotError::Io { path: path.into(), source })
        }
        Some("png") => {
            let (rgb, [height, width]) = draw::rgb(panels, style)?;
            let image = Frames::from_rgb(rgb, [1, height, width])
                .map_err(|source| VideoError::Frames { path: path.into(), source })?;
            Ok(png::write(path, &image)?)
        }
        _ => Err(PlotError::Format { path: path.into() }),
    }
}

impl Style {
    fn validate(&self, panels: usize) -> Result<(), PlotError> {
        if !(0.0..1.0).contains(&self.smooth) {
            let text = format!("smooth is {}, expected 0 to below 1", self.smooth);
            return Err(PlotError::Style(text));
        }
        for (name, side) in [("width", self.width), ("height", self.height)] {
            if !(160..=4096).contains(&side) {
                let text = format!("{name} is {side}, expected 160 to 4096 pixels");
                return Err(PlotError::Style(text));
            }
        }
        let rows = 4096 / self.height as usize;
        if panels == 0 || panels > rows {
            let text = format!("{panels} columns, expected 1 to {rows} of this height");
            return Err(PlotError::Style(text));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(run: usize, y: Vec<f64>) -> Panel {
        let x = (1..=y.len()).map(|step| step as f64).collect();
        let curve = Curve { name: format!("run <{run}>"), run, x, y };
        Panel { title: "loss".into(), curves: vec![curve] }
    }

    #[test]
    fn files_show_axes_curves_and_names() {
        let folder = tempfile::tempdir().unwrap();
        let values: Vec<f64> = (1..=500).map(|i| 1.0 / f64::from(i).sqrt()).collect();
        let panels = [panel(0, values)];
        let style = Style::default();
        let svg = folder.path().join("a.svg");
        save(&panels, &style, &svg).unwrap();
        let text = std::fs::read_to_string(svg).unwrap();
        // Raw, smoothed and legend; a title, round ticks, and names that cannot break the file.
        assert_eq!(text.matches("stroke=\"#0072B2\"").count(), 3, "{text}");
        assert!(text.starts_with("<svg width=\"960\" height=\"480\""), "{text}");
        for word in ["loss", "step", "run &lt;0&gt;", "0.2", "100", "500"] {
            assert!(text.contains(word), "{word}");
        }
        let png = folder.path().join("a.PNG");
        save(&panels, &style, &png).unwrap();
        let image = opensora_video::png::read(&png).unwrap();
        assert_eq!((image.height(), image.width()), (480, 960));
        let dark = |rgb: &&[u8]| rgb.iter().all(|&byte| byte < 110);
        // Text and axes are dark, and most of the image is white.
        let pixels: Vec<&[u8]> = image.data().chunks_exact(3).collect();
        assert!(pixels.iter().filter(|rgb| dark(rgb)).count() > 500);
        assert!(pixels.iter().filter(|rgb| ***rgb == [255; 3]).count() > pixels.len() / 2);
    }

    #[test]
    fn odd_values_are_drawn_or_refused_but_never_panic() {
        let folder = tempfile::tempdir().unwrap();
        let nan = f64::NAN;
        for (log, good, values) in [
            (false, true, vec![1.0]),
            (false, true, vec![3.0; 4]),
            (false, true, vec![nan, 1.0, f64::INFINITY, -2.0]),
            (false, true, vec![1e300, -1e300, 1e99, -1e100]),
            (false, true, vec![1e-320, 0.0]),
            (true, true, vec![1.0, -1.0, 0.0, 1e-300, 1e-99, 1e99]),
            (true, true, vec![5.0; 3]),
            (true, false, vec![-1.0, 0.0]),
            (false, false, vec![nan; 3]),
            (false, false, vec![]),
        ] {
            let style = Style { log, width: 320, height: 200, ..Style::default() };
            for name in ["a.svg", "a.png"] {
                let saved = save(&[panel(1, values.clone())], &style, &folder.path().join(name));
                assert_eq!(saved.is_ok(), good, "{values:?} {saved:?}");
                if let Err(error) = saved {
                    assert!(matches!(error, PlotError::Empty { .. }), "{error}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let style = Style::default();
        let path = Path::new("a.svg");
        let save = |panels: &[Panel], style: &Style, path: &Path| {
            super::save(panels, style, path).unwrap_err().to_string()
        };
        assert!(save(&[], &style, path).contains("0 columns"));
        let one = [panel(0, vec![1.0, 2.0])];
        assert!(save(&one, &style, Path::new("a.pdf")).contains("a.pdf: unknown format"));
        assert!(save(&one, &Style { smooth: 1.0, ..style.clone() }, path).contains("smooth is 1"));
        assert!(save(&one, &Style { width: 3, ..style.clone() }, path).contains("width is 3"));
        assert!(save(&one, &style, Path::new("/none/a.svg")).contains("/none/a.svg"));
    }
}
