//! The daemon: arguments to configuration to runtime.

use std::io::{self, IsTerminal, Write};
use std::process;

use tidemill::config::{self, Action, Config, LogFormat};
use tidemill::exit_code::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> process::ExitCode {
    #[cfg(feature = "mutations")]
    if let Some(name) = std::env::var_os("MUTATION") {
        let is_known = name.to_str().is_some_and(tidemill_wal::mutation::break_process);
        assert!(is_known, "MUTATION is {name:?}, which is none");
        eprintln!("tidemill: broken on purpose: {name:?}");
    }
    let action = Action::from_sources(std::env::args_os(), std::env::vars_os(), config::read_file);
    let code = match action {
        Ok(Action::Serve(config)) => serve(config),
        Ok(Action::Show(config)) => print(&config.show()),
        Ok(Action::Check(_)) => print("The configuration is good.\n"),
        Ok(Action::PrintDefault) => print(&Config::default_file()),
        Err(error) => {
            let code = error.exit_code();
            match &error {
                // Help and version go to standard output, usage errors to standard error.
                config::LoadError::Usage(usage) => _ = usage.print(),
                config::LoadError::Bad(_) => eprintln!("{error}"),
            }
            code
        }
    };
    code.into()
}

fn serve(config: Config) -> ExitCode {
    log_to_stderr(&config);
    match tidemill::runtime::serve(&config) {
        Ok(()) => ExitCode::Success,
        Err(error) => {
            eprintln!("tidemill: {error}");
            error.exit_code()
        }
    }
}

fn log_to_stderr(config: &Config) {
    let filter = EnvFilter::builder().parse_lossy(&config.log_level.0);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match config.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

/// Writes to standard output; a reader that went away (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::Success,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::Success,
        Err(error) => {
            eprintln!("tidemill: standard output: {error}");
            ExitCode::Other
        }
    }
}
