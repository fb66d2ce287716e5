//! Lines on standard output: text for people, or one JSON object a line for programs.

use std::fmt;
use std::io::{self, BufWriter, StdoutLock, Write};

use serde_json::Value;

/// Prints items one after the other.
pub struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    is_json: bool,
}

impl Printer {
    /// Nothing is printed yet.
    pub fn new(is_json: bool) -> Self {
        Self { out: BufWriter::with_capacity(1 << 16, io::stdout().lock()), is_json }
    }

    /// Prints one item: as text, or as the object that `json` makes of it.
    pub fn item(
        &mut self,
        text: fmt::Arguments<'_>,
        json: impl FnOnce() -> Value,
    ) -> io::Result<()> {
        if self.is_json {
            serde_json::to_writer(&mut self.out, &json())?;
            self.out.write_all(b"\n")
        } else {
            self.out.write_fmt(text)?;
            self.out.write_all(b"\n")
        }
    }

    /// Prints text that only people need.
    pub fn note(&mut self, text: fmt::Arguments<'_>) -> io::Result<()> {
        if self.is_json {
            return Ok(());
        }
        self.out.write_fmt(text)?;
        self.out.write_all(b"\n")
    }

    /// Hands over everything printed so far.
    pub fn finish(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
