//! Charts as SVG and PNG files: curves of training runs, histograms, and text as images.
//!
//! | module | contents |
//! |---|---|
//! | [`panel`] | curves of one or several runs, in a column of panels |
//! | [`curve`] | values of one run; smoothing and decimation |
//! | [`histogram`] | histograms, in a grid |
//! | [`text`] | wrapped text as an image |
//! | `axis` | linear and logarithmic axes with round ticks |
//! | `canvas` | SVG and pixel backends of plotters |
//!
//! ```
//! use opensora_chart::{Curve, Histogram, Labels, Panel, Style, histogram, panel};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let steps: Vec<f64> = (1..=100).map(f64::from).collect();
//! let loss: Vec<f64> = steps.iter().map(|step| 1.0 / step.sqrt()).collect();
//! let losses = Histogram::of(Labels { title: "loss", x_label: "nats" }, &loss)?;
//! histogram::save(&[losses], &folder.path().join("losses.png"))?;
//! let curve = Curve { name: "first run".into(), run: 0, x: steps, y: loss };
//! let panels = [Panel { title: "loss".into(), curves: vec![curve] }];
//! panel::save(&panels, &Style::default(), &folder.path().join("loss.svg"))?;
//! # Ok(())
//! # }
//! ```

mod axis;
mod canvas;
pub mod curve;
mod error;
pub mod histogram;
pub mod panel;
pub mod text;

pub use canvas::check_path;
pub use curve::Curve;
pub use error::ChartError;
pub use histogram::{Histogram, Labels};
pub use panel::{Panel, Style};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
