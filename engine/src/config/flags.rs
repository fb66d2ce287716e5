//! The command line, made from the table.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{SETTINGS, Setting};

/// Name of the flag for the configuration file.
pub(super) const CONFIG_FLAG: &str = "config";

/// Name of the flag that runs topologies once more.
pub const VERIFY_REPLAY_FLAG: &str = "verify-replay";

/// The whole command line.
pub(super) fn command() -> Command {
    Command::new("tidemill")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A durable stream engine: a partitioned log for any Kafka client, every acknowledgement synced")
        .after_help(
            "Every setting is also a TIDEMILL_* variable and a key of the configuration file.\n\
             A flag wins over a variable, a variable over the file, the file over the default.",
        )
        .subcommand_required(false)
        .disable_help_subcommand(true)
        .arg(
            Arg::new(CONFIG_FLAG)
                .long(CONFIG_FLAG)
                .value_name("PATH")
                .global(true)
                .help("Configuration file [default: ./tidemill.toml if there is one]"),
        )
        .arg(
            Arg::new(VERIFY_REPLAY_FLAG)
                .long(VERIFY_REPLAY_FLAG)
                .action(ArgAction::SetTrue)
                .global(true)
                .help("Runs the topologies once more over what a stopped node recorded; serves nothing")
                .long_help(
                    "Runs the program's topologies once more over what the stopped node of the data \
                     directory recorded, and says what came out otherwise, for an operator that looks \
                     at something else than records and its state. Serves nothing and changes nothing; \
                     ends with 18 if there is a difference.",
                ),
        )
        .args(SETTINGS.iter().map(flag))
        .subcommand(Command::new("serve").about("Runs the node; also what plain `tidemill` does"))
        .subcommand(
            Command::new("config")
                .about("Shows and checks the configuration")
                .subcommand_required(true)
                .disable_help_subcommand(true)
                .subcommand(
                    Command::new("show")
                        .about("Prints every value with its origin, as a configuration file"),
                )
                .subcommand(
                    Command::new("check").about("Says whether the configuration can be served"),
                )
                .subcommand(
                    Command::new("default")
                        .about("Prints the commented configuration file with all defaults"),
                ),
        )
}

fn flag(setting: &'static Setting) -> Arg {
    let summary = setting.summary();
    let short = format!("{} [default: {}]", summary.trim_end_matches('.'), setting.default);
    let mut long = summary;
    if !setting.reason().is_empty() {
        long = format!("{long}\n{}", setting.reason());
    }
    long = format!("{long}\nWrite {}. [default: {}]", setting.advice(), setting.default);
    let arg = Arg::new(setting.key)
        .long(setting.flag())
        .value_name("VALUE")
        .global(true)
        .action(ArgAction::Set)
        .allow_negative_numbers(true)
        .help_heading(setting.section)
        .help(short)
        .long_help(long);
    if setting.is_switch {
        arg.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        arg
    }
}

/// The settings that were given as flags.
pub(super) fn given(matches: &ArgMatches) -> impl Iterator<Item = (&'static Setting, &str)> {
    SETTINGS.iter().filter_map(|setting| {
        matches.get_one::<String>(setting.key).map(|text| (setting, text.as_str()))
    })
}
