use std::collections::BTreeSet;

use expect_test::{Expect, expect, expect_file};
use proptest::prelude::*;

use super::*;

/// What a person gives: arguments, variables as `NAME=value`, and the text of a file.
struct Given<'a> {
    arguments: &'a [&'a str],
    variables: &'a [&'a str],
    file: Option<&'a str>,
}

const NOTHING: Given<'_> = Given { arguments: &[], variables: &[], file: None };

fn load(given: &Given<'_>) -> Result<Action, LoadError> {
    let arguments = ["tidemill"].iter().chain(given.arguments).map(OsString::from);
    let environment = given.variables.iter().map(|variable| {
        let (name, value) = variable.split_once('=').expect("NAME=value");
        (OsString::from(name), OsString::from(value))
    });
    Action::from_sources(arguments, environment, |_| {
        given.file.map(str::to_owned).ok_or_else(|| io::ErrorKind::NotFound.into())
    })
}

fn serve(given: &Given<'_>) -> Config {
    match load(given) {
        Ok(Action::Serve(config)) => config,
        other => panic!("{other:?}"),
    }
}

/// The lines of `config show` that are not defaults, or the errors with their exit code.
fn check(given: &Given<'_>, expected: Expect) {
    let trace = match load(given) {
        Ok(
            Action::Serve(config)
            | Action::VerifyReplay(config)
            | Action::Show(config)
            | Action::Check(config),
        ) => config
            .show()
            .lines()
            .filter(|line| !line.ends_with("# default"))
            .map(|line| {
                let (assignment, origin) = line.split_once("  # ").expect("an origin");
                format!("{} <- {origin}\n", assignment.trim_end())
            })
            .collect(),
        Ok(Action::PrintDefault) => "print the defaults\n".to_owned(),
        Err(error) => format!("{error}\nexit {}\n", error.exit_code().number()),
    };
    expected.assert_eq(&trace);
}

#[test]
fn the_flag_for_topologies_once_more_may_stand_anywhere_and_serves_nothing() {
    for arguments in
        [&["--verify-replay"][..], &["--verify-replay", "serve"], &["serve", "--verify-replay"]]
    {
        let asked = load(&Given { arguments, ..NOTHING });
        assert!(matches!(asked, Ok(Action::VerifyReplay(_))), "{arguments:?}: {asked:?}");
    }
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let file = "segments_max = 5\nshards = 3\nsegment_size = '32MiB'\n";
    let variables = ["TIDEMILL_SEGMENTS_MAX=6", "TIDEMILL_SHARDS=4"];
    check(
        &Given { arguments: &["--segments-max", "7"], variables: &variables, file: Some(file) },
        expect![[r#"
            shards = 4 <- environment variable TIDEMILL_SHARDS
            segment_size = "32MiB" <- tidemill.toml line 3
            segments_max = 7 <- flag --segments-max
        "#]],
    );
    check(&NOTHING, expect![""]);
}

#[test]
fn flags_may_stand_before_and_after_the_command() {
    for arguments in [
        &["--shards", "2", "serve"][..],
        &["serve", "--shards", "2"],
        &["--shards=2"],
        &["config", "show", "--shards", "2"],
        &["--shards", "2", "config", "check"],
    ] {
        check(
            &Given { arguments, ..NOTHING },
            expect![[r#"
                shards = 2 <- flag --shards
            "#]],
        );
    }
}

#[test]
fn a_switch_is_a_bare_flag_and_can_be_turned_off() {
    check(
        &Given { arguments: &["--trust-network", "--auto-create=false", "serve"], ..NOTHING },
        expect![[r#"
            trust_network = true <- flag --trust-network
            auto_create = false <- flag --auto-create
        "#]],
    );
}

#[test]
fn minus_one_means_unlimited_as_in_kafka() {
    check(
        &Given {
            arguments: &["--default-retention", "-1"],
            file: Some("default_retention_size = -1\n"),
            ..NOTHING
        },
        expect![[r#"
            default_retention = "unlimited" <- flag --default-retention
            default_retention_size = "unlimited" <- tidemill.toml line 1
        "#]],
    );
}

#[test]
fn every_fault_of_the_file_is_named_with_its_line() {
    check(
        &Given {
            file: Some(
                "# comment\n\
                 segment_size = \"64MB\"\n\
                 segments_max = 1\n\
                 shards = [1, 2]\n\
                 \n\
                 segment-sze = \"64MiB\"\n\
                 color = \"blue\"\n\
                 trust_network = \"yes\"\n\
                 config = \"other.toml\"\n\
                 spin = 1.5\n\
                 kafka_listen = \"9092\"\n\
                 log_level = \"inof\"\n\
                 idle_frame_delay = 20\n\
                 [kafka]\n\
                 listen = \"127.0.0.1:9092\"\n",
            ),
            ..NOTHING
        },
        expect![[r#"
            tidemill.toml line 2: `segment_size` cannot be "64MB": write a whole number of bytes with a unit (B, KiB, MiB, GiB or TiB), such as 64MiB, from 17MiB to 4GiB
            tidemill.toml line 3: `segments_max` cannot be "1", which is out of range: write a whole number, such as 1000, from 3 to 1024
            tidemill.toml line 4: `shards` cannot be a list: write auto, or a number from 1 to 256
            tidemill.toml line 6: `segment-sze` is not a setting: did you mean `segment_size`?
            tidemill.toml line 7: `color` is not a setting: `tidemill config default` prints them all
            tidemill.toml line 8: `trust_network` cannot be "yes": write true or false
            tidemill.toml line 9: `config` names this very file; remove the line
            tidemill.toml line 10: `spin` cannot be a fraction: write whole numbers with a unit (us, ms, s, m, h or d), such as 500us, 7d or 1h30m, from 0s to 1ms
            tidemill.toml line 11: `kafka_listen` cannot be "9092": write an IP address and a port, such as 127.0.0.1:9092 or [::1]:9092
            tidemill.toml line 12: `log_level` cannot be "inof": write error, warn, info, debug or trace, or directives such as info,tidemill::kafka=debug
            tidemill.toml line 13: `idle_frame_delay` cannot be "20": write whole numbers with a unit (us, ms, s, m, h or d), such as 500us, 7d or 1h30m, from 1ms to 1m
            tidemill.toml line 14: [kafka] is not known: settings stand alone, without tables; `tidemill config default` prints them all
            exit 2
        "#]],
    );
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_the_line() {
    for (file, expected) in [
        (
            "shards = 2\nsegments_max == 3\n",
            expect![[r#"
            tidemill.toml line 2: this is not TOML: extra `=`, expected nothing
            exit 2
        "#]],
        ),
        (
            "shards = 2\nshards = 3\n",
            expect![[r#"
            tidemill.toml line 2: this is not TOML: duplicate key
            exit 2
        "#]],
        ),
        (
            "shards = \"2\n",
            expect![[r#"
            tidemill.toml line 1: this is not TOML: invalid basic string, expected `"`
            exit 2
        "#]],
        ),
        (
            "shards = 99999999999999999999\n",
            expect![[r#"
            tidemill.toml line 1: `shards` cannot be a number of this size: write auto, or a number from 1 to 256
            exit 2
        "#]],
        ),
    ] {
        check(&Given { file: Some(file), ..NOTHING }, expected);
    }
}

#[test]
fn a_named_file_must_exist() {
    check(
        &Given { arguments: &["--config", "/etc/other.toml"], ..NOTHING },
        expect![[r#"
        /etc/other.toml: the configuration file cannot be read: entity not found
        exit 2
    "#]],
    );
    check(
        &Given { variables: &["TIDEMILL_CONFIG=/etc/other.toml"], ..NOTHING },
        expect![[r#"
        /etc/other.toml: the configuration file cannot be read: entity not found
        exit 2
    "#]],
    );
}

#[test]
fn wrong_flags_and_variables_are_named() {
    check(
        &Given {
            arguments: &["--segment-size", "10", "--connections-max", "many"],
            variables: &["TIDEMILL_SHARDS=0", "TIDEMILL_SNYC=dsync", "TIDEMILL_COLOR=blue"],
            ..NOTHING
        },
        expect![[r#"
            environment variable TIDEMILL_COLOR: this is not a setting: `tidemill config default` prints them all
            environment variable TIDEMILL_SNYC: this is not a setting: did you mean TIDEMILL_SYNC?
            environment variable TIDEMILL_SHARDS: `shards` cannot be "0": write auto, or a number from 1 to 256
            flag --connections-max: `connections_max` cannot be "many": write a whole number, such as 1000, from 1 to 1000000
            flag --segment-size: `segment_size` cannot be "10", which is out of range: write a whole number of bytes with a unit (B, KiB, MiB, GiB or TiB), such as 64MiB, from 17MiB to 4GiB
            exit 2
        "#]],
    );
}

#[test]
fn an_unknown_flag_or_command_is_a_usage_error() {
    for arguments in [&["--segment-sise", "1MiB"][..], &["sreve"], &["config"]] {
        let error = load(&Given { arguments, ..NOTHING }).expect_err("a usage error");
        assert!(matches!(error, LoadError::Usage(_)));
        assert_eq!(error.exit_code(), ExitCode::Configuration, "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["config", "--help"]] {
        let error = load(&Given { arguments, ..NOTHING }).expect_err("a text to print");
        assert_eq!(error.exit_code(), ExitCode::Success, "{arguments:?}");
    }
}

#[test]
fn variables_of_a_kubernetes_service_are_not_ours() {
    check(
        &Given {
            variables: &[
                "TIDEMILL_PORT=tcp://10.0.0.1:9092",
                "TIDEMILL_PORT_9092_TCP_ADDR=10.0.0.1",
                "TIDEMILL_SERVICE_HOST=10.0.0.1",
                "PATH=/bin",
            ],
            ..NOTHING
        },
        expect![""],
    );
    let is_hidden = |setting: &&Setting| is_service_link(&setting.variable());
    assert_eq!(SETTINGS.iter().find(is_hidden).map(|setting| setting.key), None);
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    check(
        &Given {
            file: Some(
                "segment_size = \"20000KiB\"\n\
                 receive_budget = \"50MiB\"\n\
                 default_partitions = 100\n\
                 partitions_max = 50\n\
                 group_session_timeout_max = \"1s\"\n\
                 admin_listen = \"127.0.0.1:9093\"\n\
                 advertise = \"shards\"\n\
                 shards = 4\n",
            ),
            ..NOTHING
        },
        expect![[r#"
            tidemill.toml line 2: `receive_budget` cannot be 50MiB: one request may have 100MiB (`request_size_max`); raise the one or lower the other
            tidemill.toml line 3: `default_partitions` cannot be 100: the node has at most 50 (`partitions_max`)
            default: `group_session_timeout_min` cannot be 6s: `group_session_timeout_max` is 1s
            tidemill.toml line 6: `admin_listen` cannot use port 9093: Kafka clients have 9092 to 9095
            exit 2
        "#]],
    );
    check(
        &Given {
            file: Some(
                "segment_size = 17825793\nbatch_size_max = '2MiB'\nrequest_size_max = '1MiB'\n",
            ),
            ..NOTHING
        },
        expect![[r#"
            tidemill.toml line 1: `segment_size` cannot be 17825793B: it must be a multiple of 4KiB
            tidemill.toml line 2: `batch_size_max` cannot be 2MiB: a batch must fit a request of 1MiB (`request_size_max`)
            exit 2
        "#]],
    );
    for kafka_listen in ["127.0.0.1:65534", "127.0.0.1:0"] {
        let arguments = ["--advertise=shards", "--shards=4", "--kafka-listen", kafka_listen];
        let expected = if kafka_listen.ends_with(":0") {
            expect![[r#"
            flag --kafka-listen: `kafka_listen` cannot use port 0 with `advertise = "shards"`: write the port of shard 0
            exit 2
        "#]]
        } else {
            expect![[r#"
            flag --kafka-listen: `kafka_listen` cannot use port 65534: with `advertise = "shards"` the 4 shards listen on consecutive ports, and the last is 65535
            exit 2
        "#]]
        };
        check(&Given { arguments: &arguments, ..NOTHING }, expected);
    }
    let arguments = ["--shards=4", "--kafka-advertise-address=mill:65533"];
    check(
        &Given { arguments: &arguments, ..NOTHING },
        expect![[r#"
            flag --kafka-advertise-address: `kafka_advertise_address` cannot have that port: with `advertise = "shards"` the 4 shards are told on consecutive ports, and the last is 65535
            exit 2
        "#]],
    );
}

#[test]
fn listening_beyond_loopback_needs_trust() {
    check(
        &Given {
            arguments: &["--kafka-listen", "0.0.0.0:9092"],
            variables: &["TIDEMILL_ADMIN_LISTEN=[::]:9644"],
            ..NOTHING
        },
        expect![[r#"
            flag --kafka-listen: `kafka_listen` is 0.0.0.0:9092, which others can reach, and there is no authentication yet: if the network keeps strangers out, set `trust_network = true` (--trust-network); otherwise listen on 127.0.0.1:9092
            environment variable TIDEMILL_ADMIN_LISTEN: `admin_listen` is [::]:9644, which others can reach, and there is no authentication yet: if the network keeps strangers out, set `trust_network = true` (--trust-network); otherwise listen on 127.0.0.1:9644
            exit 16
        "#]],
    );
    check(
        &Given { arguments: &["--kafka-listen", "10.0.0.1:9092", "--trust-network"], ..NOTHING },
        expect![[r#"
            kafka_listen = "10.0.0.1:9092" <- flag --kafka-listen
            trust_network = true <- flag --trust-network
        "#]],
    );
    check(
        &Given { arguments: &["--kafka-listen", "[::1]:9092", "--admin-listen", "off"], ..NOTHING },
        expect![[r#"
            kafka_listen = "[::1]:9092" <- flag --kafka-listen
            admin_listen = "off" <- flag --admin-listen
        "#]],
    );
}

#[test]
fn listening_on_all_addresses_needs_one_to_advertise() {
    let listen = ["--kafka-listen", "0.0.0.0:9092", "--trust-network"];
    check(
        &Given { arguments: &listen, ..NOTHING },
        expect![[r#"
        default: `kafka_advertise_address` must be set: the node listens on all addresses (0.0.0.0), and clients must be told one of them; write a host and, if it differs, a port: broker.example.net:9092
        exit 2
    "#]],
    );
    check(
        &Given {
            arguments: &listen,
            variables: &["TIDEMILL_KAFKA_ADVERTISE_ADDRESS=broker"],
            ..NOTHING
        },
        expect![[r#"
            kafka_listen = "0.0.0.0:9092" <- flag --kafka-listen
            kafka_advertise_address = "broker" <- environment variable TIDEMILL_KAFKA_ADVERTISE_ADDRESS
            trust_network = true <- flag --trust-network
        "#]],
    );
}

#[test]
fn a_bad_value_beside_an_untrusted_listener_is_a_bad_configuration() {
    let given =
        Given { arguments: &["--kafka-listen", "0.0.0.0:9092", "--shards", "x"], ..NOTHING };
    let error = load(&given).expect_err("two faults");
    assert_eq!(error.exit_code(), ExitCode::Configuration);
}

#[test]
fn every_setting_is_sound() {
    let batch = SETTINGS.iter().find(|setting| setting.key == "batch_size_max").expect("a setting");
    let limit = Size(u64::from(BATCH_SIZE_LIMIT)).to_string();
    assert_eq!(batch.range.map(|(_, high)| high), Some(&*limit));

    // Parses every default, and so every `expect` of the table.
    let config = Config::default();
    let mut problems = Vec::new();
    config.check(&mut problems);
    assert_eq!(problems, []);
    for setting in SETTINGS {
        let key = setting.key;
        assert_eq!(config.print(key), setting.default, "{key} prints as the table says");
        assert!(setting.summary().ends_with('.'), "{key} has a sentence");
        if let Some((low, high)) = setting.range {
            for bound in [low, high] {
                let mut changed = config.clone();
                assert_eq!(changed.assign(key, bound), Ok(()), "{key} takes its bound");
                assert_eq!(changed.print(key), bound, "{key} prints its bound as written");
            }
        }
        for line in setting.doc {
            assert!(line.len() <= 100, "{key}: {line}");
        }
    }
    let keys: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(keys.len(), SETTINGS.len());
    flags::command().debug_assert();
}

#[test]
fn the_shipped_file_is_the_table_and_changes_nothing() {
    let text = Config::default_file();
    expect_file!["../../dist/tidemill.toml"].assert_eq(&text);
    let commented = serve(&Given { file: Some(&text), ..NOTHING });
    assert_eq!(commented.show(), Config::default().show());

    // With every assignment switched on, all values come from the file and are the defaults.
    let active: String = text
        .lines()
        .map(|line| {
            let bare = line.strip_prefix('#').unwrap_or(line);
            let is_setting = SETTINGS.iter().any(|s| bare.starts_with(&format!("{} = ", s.key)));
            format!("{}\n", if is_setting { bare } else { line })
        })
        .collect();
    let config = serve(&Given { file: Some(&active), ..NOTHING });
    assert_eq!(config.hash(), Config::default().hash());
    for setting in SETTINGS {
        assert!(matches!(config.origin(setting.key), Origin::File { .. }), "{}", setting.key);
    }
}

#[test]
fn what_show_prints_makes_the_same_configuration() {
    let given = Given {
        arguments: &[
            "--data-dir",
            "a \"quoted\" \\ place",
            "--wal-dir=007",
            "--default-retention=-1",
        ],
        variables: &["TIDEMILL_KAFKA_ADVERTISE_ADDRESS=[::1]:9092", "TIDEMILL_LOG_FORMAT=json"],
        file: Some("spin = '1ms'\nadmin_listen = 'off'\n"),
    };
    let config = serve(&given);
    let again = serve(&Given { file: Some(&config.show()), ..NOTHING });
    assert_eq!(again.hash(), config.hash());
    assert_eq!(again.data_dir, PathBuf::from("a \"quoted\" \\ place"));
    assert_eq!(again.wal_dir, Some(PathBuf::from("007")));
    assert_ne!(config.hash(), Config::default().hash());
}

#[test]
fn the_hash_knows_every_value_and_no_origin() {
    let default = Config::default().hash();
    assert_eq!(serve(&Given { arguments: &["--segments-max=8"], ..NOTHING }).hash(), default);
    assert_ne!(serve(&Given { arguments: &["--segments-max=9"], ..NOTHING }).hash(), default);
}

#[test]
fn the_memory_budget_is_the_sum_of_its_pieces() {
    // 8 segments of 64 MiB, two frames of 16, budgets of twice 128 and one request of 100, twice 64,
    // and 32 MiB; two shards.
    let mebibytes = 8 * 64 + 2 * 16 + 2 * 128 + 100 + 2 * 64 + 32;
    assert_eq!(Config::default().memory_budget(2), Size((2 * mebibytes) << 20));
}

#[test]
fn an_endless_file_is_not_read_to_its_end() {
    let error = read_file(Path::new("/dev/zero")).expect_err("too large");
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
}

proptest! {
    #[test]
    fn no_file_makes_the_loader_panic(text in "[a-z_=\"'\\[\\]0-9\\n #.-]{0,80}") {
        let _ = load(&Given { file: Some(&text), ..NOTHING });
    }
}
