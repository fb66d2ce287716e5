//! Fuzzes `tidemill_tests::fuzz::log`, which says what has to hold.
#![no_main]

use tidemill_tests::fuzz::{self, allocation::Counting};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::log(data));
