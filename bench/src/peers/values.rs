//! Values that are made beforehand and sent by turns.

use crate::load::kafka::fill_with_text;

/// Different values.
const COUNT: usize = 256;

/// Text that does not compress to nothing.
pub struct Values(Vec<Vec<u8>>);

impl Values {
    /// Of a size.
    pub fn new(size: usize) -> Self {
        let mut bits = crate::random();
        let value = |_| {
            let mut value = vec![0; size];
            fill_with_text(&mut value, &mut bits);
            value
        };
        Self((0..COUNT).map(value).collect())
    }

    /// The value of a request.
    pub fn of(&self, number: u64) -> &[u8] {
        &self.0[(number % COUNT as u64) as usize]
    }
}
