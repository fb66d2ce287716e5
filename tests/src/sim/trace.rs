//! What happened, as text for people and as one number for comparison.

/// Takes the lines of a trace.
pub type Sink = Box<dyn FnMut(&str)>;

/// A trace; lines are made only for a sink.
pub struct Trace {
    number: u64,
    sink: Option<Sink>,
}

impl Trace {
    /// An empty trace whose lines go to the sink.
    pub fn new(sink: Option<Sink>) -> Self {
        Self { number: 0xcbf2_9ce4_8422_2325, sink }
    }

    /// What happened so far, as one number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Mixes numbers in.
    pub fn note(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.number =
                (self.number ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        }
    }

    /// Adds a line.
    pub fn say(&mut self, now_us: u64, text: impl FnOnce() -> String) {
        if let Some(sink) = &mut self.sink {
            sink(&format!("{now_us:>10} {}", text()));
        }
    }
}
