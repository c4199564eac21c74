//! Curves of runs as SVG or PNG: those of [`opensora_chart`], for what training measures.
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

pub use opensora_chart::{
    ChartError as PlotError,
    curve::{self, Curve},
    panel::{Panel, Style, save},
};
