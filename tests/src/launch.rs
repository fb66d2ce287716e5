//! A `tidemill` that is expected to end by itself, in whatever circumstances.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::daemon::binary;

/// Longest wait for the end: a node waits some seconds for a predecessor to go.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard error.
    pub text: String,
}

/// The binary under test without the caller's `TIDEMILL_*`, in a directory without a file of
/// settings.
pub fn tidemill(directory: &Path) -> Command {
    let mut command = Command::new(binary());
    isolate(&mut command, directory);
    command
}

/// Runs a command in a directory without the caller's `TIDEMILL_*`.
pub fn isolate(command: &mut Command, directory: &Path) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDEMILL_")) {
        command.env_remove(name);
    }
    command.current_dir(directory);
}

/// Runs a command that must end by itself.
pub fn run(mut command: Command) -> Ended {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut pipe = child.stderr.take().expect("piped");
    let (sender, text) = channel();
    thread::spawn(move || {
        let mut text = String::new();
        let result = pipe.read_to_string(&mut text);
        // Nobody listens any more if it took too long.
        let _ = sender.send(result.map(|_| text));
    });
    let Ok(text) = text.recv_timeout(PATIENCE) else {
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
        panic!("{command:?} does not end");
    };
    let text = text.expect("it writes UTF-8");
    let code = child.wait().expect("a child of ours").code();
    Ended { code, text }
}
