//! A bar on standard error while long work runs, at a terminal only.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

/// Shows how many bytes are done.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Work on so many bytes begins.
    pub fn new(what: &str, size: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::new(size).with_message(what.to_owned());
        let style = ProgressStyle::with_template(
            "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// So many bytes more are done.
    pub fn add(&self, size: u64) {
        self.bar.inc(size);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
