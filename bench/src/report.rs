//! `tidemill-bench report`: runs as one HTML page that needs nothing but itself.

mod chart;
mod page;

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::run::Run;

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    /// Files of JSON lines.
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// The page.
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// The system that the others are set in relation to.
    #[arg(long, default_value = crate::compare::TIDEMILL)]
    pub base: String,
    /// What stands above it all.
    #[arg(long, default_value = "Tidemill, measured")]
    pub title: String,
}

/// Runs the subcommand.
pub fn run(options: &Options) -> Result<(), String> {
    let mut runs = Vec::new();
    for path in &options.runs {
        runs.extend(read(path)?);
    }
    if runs.is_empty() {
        return Err("there are no runs in the files".to_owned());
    }
    let page = page::page(&options.title, &runs, &options.base);
    fs::write(&options.out, page).map_err(|error| format!("{}: {error}", options.out.display()))
}

/// The runs of a file.
pub fn read(path: &Path) -> Result<Vec<Run>, String> {
    let says = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| says(&error))?;
    Run::read_all(BufReader::new(file)).map_err(|error| says(&error))
}
