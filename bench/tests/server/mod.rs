//! The programs that tests of the bench run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The bench.
pub const BENCH: &str = env!("CARGO_BIN_EXE_tidemill-bench");

/// The server under test: `TIDEMILL_BIN`, or what Cargo builds beside the test.
pub fn server() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        if let Some(path) = std::env::var_os("TIDEMILL_BIN") {
            return root.join(path);
        }
        let mut build = Command::new(env!("CARGO"));
        build.current_dir(&root).args(["build", "--workspace", "--bin", "tidemill"]);
        if Path::new(BENCH).parent().is_some_and(|profile| profile.ends_with("release")) {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the server does not build");
        Path::new(BENCH).with_file_name("tidemill")
    })
}
