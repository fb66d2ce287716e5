//! A start that cannot succeed ends with one clear message and its documented exit code, and
//! changes nothing; one in narrow circumstances succeeds. Against the real process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tidemill::exit_code::ExitCode;
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::messages::{DeleteTopic, DeleteTopicsRequest};
use tidemill_tests::daemon::{Daemon, Options, binary, free_ports};
use tidemill_tests::launch::{Ended, isolate, run, tidemill};
use tidemill_tests::note;
use tidemill_tests::peer::{Peer, batch_of, crc32c};
use tidemill_tests::volume::{Volume, fill};

fn options(more: &[&str]) -> Options {
    let small = ["--segment-size", "17MiB", "--segments-max", "3"];
    let arguments = small.iter().chain(more).map(|argument| (*argument).to_owned()).collect();
    Options { shards: 1, arguments, ..Default::default() }
}

fn scratch() -> TempDir {
    tempfile::Builder::new()
        .prefix("start-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("the target directory can be written")
}

/// Starts a node on a directory and ports of its own, until it ends.
fn start(directory: &Path, arguments: &[&str]) -> Ended {
    let mut command = tidemill(directory);
    command.args(["serve", "--segment-size", "17MiB", "--segments-max", "3"]).args(arguments);
    run(command)
}

/// Says that a start ended as documented, with these words in its message.
#[track_caller]
fn assert_ended(ended: &Ended, code: ExitCode, words: &[&str]) {
    assert_eq!(ended.code, Some(code.number().into()), "{}", ended.text);
    for word in words {
        assert!(ended.text.contains(word), "no {word:?} in: {}", ended.text);
    }
    assert!(!ended.text.contains("panicked"), "{}", ended.text);
}

/// Every file below a directory with the checksum of its contents.
fn contents(directory: &Path) -> BTreeMap<PathBuf, (usize, u64)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            let bytes = fs::read(&path).expect("readable");
            let sum = bytes.chunks(8).fold(0_u64, |sum, chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
            });
            found.insert(path, (bytes.len(), sum));
        }
    }
    found
}

/// The process's own user, as the kernel sees it.
fn is_root() -> bool {
    // SAFETY: no arguments, no failure.
    unsafe { libc::geteuid() == 0 }
}

#[test]
fn a_bad_setting_is_named_with_its_place() {
    let directory = scratch();
    fs::write(directory.path().join("bad.toml"), "# mine\nshards = 1\n\ndata_dirr = \"x\"\n")
        .expect("writable");
    let ended = start(directory.path(), &["--config", "bad.toml"]);
    let words = ["bad.toml line 4", "`data_dirr` is not a setting", "did you mean `data_dir`?"];
    assert_ended(&ended, ExitCode::Configuration, &words);

    fs::write(directory.path().join("bad.toml"), "segment_size = \"64MB\"\n").expect("writable");
    let ended = start(directory.path(), &["--config", "bad.toml"]);
    // The flag wins, and the file is wrong all the same.
    assert_ended(&ended, ExitCode::Configuration, &["bad.toml line 1", "MiB"]);

    let ended = start(directory.path(), &["--config", "missing.toml"]);
    assert_ended(&ended, ExitCode::Configuration, &["missing.toml"]);

    let ended = start(directory.path(), &["--spin", "1h"]);
    assert_ended(&ended, ExitCode::Configuration, &["--spin", "1h", "out of range"]);

    let mut command = tidemill(directory.path());
    command.env("TIDEMILL_SHARDZ", "1");
    assert_ended(&run(command), ExitCode::Configuration, &["TIDEMILL_SHARDZ"]);
    assert_eq!(contents(directory.path()).len(), 1, "only the file of settings is there");
}

#[test]
fn a_listener_beyond_loopback_wants_a_trusted_network() {
    let directory = scratch();
    for flag in ["--kafka-listen", "--admin-listen"] {
        let ended = start(directory.path(), &[flag, "0.0.0.0:19092"]);
        assert_ended(&ended, ExitCode::NetworkNotTrusted, &[flag, "trust_network = true"]);
    }
    // A wrong value beside it is the more urgent news.
    let both = ["--kafka-listen", "0.0.0.0:19092", "--shards", "many"];
    assert_ended(&start(directory.path(), &both), ExitCode::Configuration, &["--shards"]);
    assert!(contents(directory.path()).is_empty());
}

#[test]
fn a_taken_port_is_named_with_its_setting() {
    let directory = scratch();
    let (kafka, admin) = free_ports();
    for (setting, taken) in [("kafka_listen", kafka), ("admin_listen", admin)] {
        let _listens = TcpListener::bind(taken).expect("free");
        let (kafka, admin) = (kafka.to_string(), admin.to_string());
        let arguments = ["--kafka-listen", &kafka, "--admin-listen", &admin];
        let words = [setting, &taken.to_string(), "stop what listens there"];
        assert_ended(&start(directory.path(), &arguments), ExitCode::PortInUse, &words);
    }
}

#[test]
fn the_taken_port_of_a_later_shard_is_named_with_the_way_out() {
    let directory = scratch();
    let (first, _) = free_ports();
    let later = SocketAddr::from((Ipv4Addr::LOCALHOST, first.port() + 1));
    let _taken = TcpListener::bind(later).expect("free");
    let (first, later) = (first.to_string(), later.to_string());
    let arguments = ["--kafka-listen", &first, "--admin-listen", "off", "--shards", "2"];
    let words = ["kafka_listen", &later, "each shard takes one", "advertise = \"node\""];
    assert_ended(&start(directory.path(), &arguments), ExitCode::PortInUse, &words);
}

#[test]
fn a_directory_belongs_to_one_process_which_goes_on() {
    let daemon = Daemon::start(options(&[]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("kept", 1);
    peer.append("kept", 0, batch_of(b"before"));
    let data = daemon.data_dir().display().to_string();
    let (kafka, admin) = free_ports();
    let (kafka, admin) = (kafka.to_string(), admin.to_string());
    let arguments = ["--data-dir", &data, "--kafka-listen", &kafka, "--admin-listen", &admin];
    let ended = start(daemon.data_dir(), &arguments);
    assert_ended(&ended, ExitCode::DirectoryInUse, &["shard-0000", "in use by another process"]);
    peer.append("kept", 0, batch_of(b"after"));
    assert_eq!(peer.values("kept", 0, 0), [&b"before"[..], b"after"]);
}

#[test]
fn another_number_of_shards_than_the_directory_has_is_refused() {
    let mut daemon = Daemon::start(options(&[]));
    daemon.kill();
    let data = daemon.data_dir().display().to_string();
    let ended = start(daemon.data_dir(), &["--data-dir", &data, "--shards", "2"]);
    assert_ended(&ended, ExitCode::Configuration, &["shards = 2", "was made with 1"]);
}

#[test]
fn a_file_system_without_direct_io_is_refused() {
    let directory = scratch();
    let place = directory.path().join("ramfs");
    fs::create_dir(&place).expect("writable");
    // In a mount namespace of its own, so that the mount goes with the process.
    let mut command = Command::new("unshare");
    isolate(&mut command, directory.path());
    let script = "mount -t ramfs ramfs ramfs && echo mounted >&2 && exec \"$0\" \"$@\"";
    command.args(["--map-root-user", "--mount", "sh", "-c", script]).arg(binary());
    command.args(["serve", "--data-dir", "ramfs", "--shards", "1"]);
    let (kafka, admin) = free_ports();
    command.args(["--kafka-listen", &kafka.to_string(), "--admin-listen", &admin.to_string()]);
    let ended = run(command);
    if !ended.text.starts_with("mounted") {
        note::skipped("a file system without O_DIRECT", &ended.text);
        return;
    }
    let words = ["ramfs/", "does not support O_DIRECT", "ext4"];
    assert_ended(&ended, ExitCode::DirectIoMissing, &words);
}

/// Lets the kernel refuse io_uring to the process that is started, as containers do.
fn forbid_io_uring(command: &mut Command, error: i32) {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let compare = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let number = u32::try_from(libc::SYS_io_uring_setup).expect("a system call");
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(error).expect("an error");
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let filter = [
        step(load, 0, 0, 0), // The system call's number is the first field.
        step(compare, 0, 1, number),
        step(answer, 0, 0, refuse),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let hook = move || {
        let program =
            libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the numbers are what prctl expects, and the filter lives; nothing is allocated.
        let results = unsafe {
            [
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program),
            ]
        };
        if results == [0, 0] { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the hook makes two system calls and touches nothing of the parent's.
    unsafe { command.pre_exec(hook) };
}

#[test]
fn forbidden_io_uring_names_the_seccomp_setting() {
    for (error, word) in [
        (libc::EPERM, "seccomp"),
        (libc::EACCES, "kernel.io_uring_disabled"),
        (libc::ENOSYS, "Linux"),
    ] {
        let directory = scratch();
        let mut command = tidemill(directory.path());
        command.args(["--kafka-listen", &free_ports().0.to_string(), "--admin-listen", "off"]);
        forbid_io_uring(&mut command, error);
        assert_ended(&run(command), ExitCode::IoUringMissing, &["io_uring", word]);
        assert!(contents(directory.path()).is_empty(), "nothing is made");
    }
}

/// A directory with one record, closed cleanly; the record's value is `marker`.
fn filled(marker: &[u8]) -> Daemon {
    let mut daemon = Daemon::start(options(&[]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("filled", 1);
    peer.append("filled", 0, batch_of(b"first"));
    peer.append("filled", 0, batch_of(marker));
    peer.append("filled", 0, batch_of(b"last"));
    drop(peer);
    assert!(daemon.terminate().success());
    daemon
}

/// Starts on a daemon's directory, until the process ends; says that it has changed nothing.
fn start_again(daemon: &Daemon) -> Ended {
    let before = contents(daemon.data_dir());
    let data = daemon.data_dir().display().to_string();
    let kafka = daemon.kafka().to_string();
    let arguments = ["--data-dir", &data, "--kafka-listen", &kafka, "--admin-listen", "off"];
    let ended = start(daemon.data_dir(), &arguments);
    assert_eq!(contents(daemon.data_dir()), before, "a start that is refused changes nothing");
    ended
}

/// A file of the only shard, by how its name begins.
fn file_of(daemon: &Daemon, prefix: &str) -> PathBuf {
    let shard = daemon.data_dir().join("shard-0000");
    let names = fs::read_dir(&shard).expect("a shard").map(|entry| entry.expect("readable").path());
    let mut found: Vec<PathBuf> = names
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no {prefix}* in {}", shard.display()))
}

/// Changes bytes of a file in place.
fn patch(path: &Path, at: u64, change: impl FnOnce(&mut [u8]), size: usize) {
    let file = File::options().read(true).write(true).open(path).expect("there");
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, at).expect("that long");
    change(&mut bytes);
    file.write_all_at(&bytes, at).expect("writable");
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[test]
fn a_newer_directory_is_refused_and_not_touched() {
    let daemon = filled(b"a record");
    let path = daemon.data_dir().join("node.toml");
    let text = fs::read_to_string(&path).expect("there");
    fs::write(&path, text.replace("format = 1", "format = 2")).expect("writable");
    let ended = start_again(&daemon);
    assert_ended(&ended, ExitCode::FormatTooNew, &["node.toml", "format 2", "up to 1"]);
}

/// What a newer release would write at the head of a file: another version, a right checksum over
/// the first `size` bytes behind it.
fn newer(path: &Path, version_at: usize, size: usize) {
    patch(
        path,
        0,
        |bytes| {
            bytes[version_at..version_at + 2].copy_from_slice(&2_u16.to_le_bytes());
            let checksum = crc32c(&bytes[4..]);
            bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        },
        size,
    );
}

#[test]
fn a_newer_segment_is_refused_and_not_touched() {
    let daemon = filled(b"a record");
    let path = file_of(&daemon, "wal-00000000000000000001");
    newer(&path, 8, 4096);
    let ended = start_again(&daemon);
    assert_ended(
        &ended,
        ExitCode::FormatTooNew,
        &["wal-00000000000000000001.seg", "format 2", "newer"],
    );
}

#[test]
fn a_newer_manifest_is_refused_and_not_touched() {
    let daemon = filled(b"a record");
    let path = file_of(&daemon, "manifest-");
    let bytes = fs::read(&path).expect("readable");
    assert_eq!(bytes[4..6], 1_u16.to_le_bytes(), "where the format is");
    newer(&path, 4, bytes.len());
    let ended = start_again(&daemon);
    assert_ended(&ended, ExitCode::FormatTooNew, &["manifest-", "2"]);
}

#[test]
fn a_flipped_bit_in_an_acknowledged_frame_is_named_with_its_file_and_byte() {
    let marker = b"the marked record";
    let daemon = filled(marker);
    let path = file_of(&daemon, "wal-00000000000000000001");
    let bytes = fs::read(&path).expect("readable");
    let at = find(&bytes, marker).expect("acknowledged records are in the log");
    patch(&path, at as u64, |byte| byte[0] ^= 1, 1);
    let ended = start_again(&daemon);
    // The frame that holds the bit: it starts on a block, with its magic behind its checksum.
    let frame = (0..=at / 4096).rev().find(|block| bytes[block * 4096 + 4..][..4] == *b"TMFR");
    let frame = frame.expect("a frame") * 4096;
    let words = ["shard 0", "wal-00000000000000000001.seg", &format!("byte {frame}")];
    assert_ended(&ended, ExitCode::Corruption, &words);
    // The bit flipped back, everything is there.
    let mut daemon = daemon;
    patch(&path, at as u64, |byte| byte[0] ^= 1, 1);
    daemon.restart();
    let values = Peer::connect(daemon.kafka()).values("filled", 0, 0);
    assert_eq!(values, [&b"first"[..], marker, b"last"]);
}

#[test]
fn a_missing_or_damaged_identity_is_not_taken_for_a_new_directory() {
    let daemon = filled(b"a record");
    let path = daemon.data_dir().join("node.toml");
    let text = fs::read_to_string(&path).expect("there");
    fs::write(&path, "format = 1\nnode = \"x\"\nshards = 1\n").expect("writable");
    assert_ended(&start_again(&daemon), ExitCode::Corruption, &["node.toml", "damaged"]);
    fs::remove_file(&path).expect("there");
    assert_ended(&start_again(&daemon), ExitCode::Corruption, &["node.toml", "missing"]);
    fs::write(&path, text).expect("writable");
    let mut daemon = daemon;
    daemon.restart();
    assert_eq!(Peer::connect(daemon.kafka()).values("filled", 0, 0).len(), 3);
}

#[test]
fn a_missing_segment_is_corruption_and_not_a_shorter_log() {
    let daemon = filled(b"a record");
    let path = file_of(&daemon, "wal-00000000000000000001");
    let aside = daemon.data_dir().join("aside");
    fs::rename(&path, &aside).expect("there");
    let ended = start_again(&daemon);
    assert_ended(&ended, ExitCode::Corruption, &["shard 0"]);
    fs::rename(&aside, &path).expect("there");
    let mut daemon = daemon;
    daemon.restart();
    assert_eq!(Peer::connect(daemon.kafka()).values("filled", 0, 0).len(), 3);
}

/// A copy of the program that a user without privileges runs, who may lock so much memory, and a
/// directory that such a user can use.
struct Unprivileged {
    command: Vec<String>,
    scratch: PathBuf,
    _place: TempDir,
}

impl Unprivileged {
    fn new(lockable_size: u64) -> Self {
        // Both are where another user can reach them.
        let mut place = tempfile::Builder::new();
        let place = place.prefix("tidemill-").tempdir_in("/var/tmp").expect("disk");
        let program = place.path().join("tidemill");
        fs::copy(binary(), &program).expect("room for a copy");
        let scratch = place.path().join("scratch");
        fs::create_dir(&scratch).expect("writable");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(place.path(), open.clone()).expect("ours");
        let limit = format!("--memlock={lockable_size}:{lockable_size}");
        let mut command = vec!["prlimit".to_owned(), limit];
        if is_root() {
            fs::set_permissions(&scratch, open).expect("ours");
            let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
            command.extend(user.map(String::from));
        }
        command.push(program.display().to_string());
        Self { command, scratch, _place: place }
    }

    fn give(&self, directory: &Path) {
        if is_root() {
            std::os::unix::fs::chown(directory, Some(65534), Some(65534)).expect("root may");
        }
    }
}

#[test]
fn a_user_without_privileges_and_8_mib_of_lockable_memory_gets_a_working_daemon() {
    let user = Unprivileged::new(8 << 20);
    let (command, scratch) = (user.command.clone(), Some(user.scratch.clone()));
    let mut daemon = Daemon::prepare(Options { shards: 2, command, scratch, ..options(&[]) });
    user.give(daemon.data_dir());
    for round in 0..2 {
        daemon.restart();
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
        let user = status.lines().find(|line| line.starts_with("Uid:")).expect("a user");
        assert!(!is_root() || user.contains("65534"), "{user}");
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("it runs");
        let locked = limits.lines().find(|line| line.contains("locked memory")).expect("a limit");
        assert!(locked.contains(" 8388608 "), "{locked}");
        let mut peer = Peer::connect(daemon.kafka());
        if round == 0 {
            peer.make_topic("mine", 2);
        }
        for partition in 0..2 {
            for size in [10, 1000, 900_000, 900_000, 900_000] {
                peer.append("mine", partition, batch_of(&vec![b'x'; size]));
            }
            assert_eq!(peer.values("mine", partition, 0).len(), 5 * (round + 1));
        }
        daemon.kill();
    }
}

#[test]
fn less_lockable_memory_than_io_uring_needs_is_said() {
    let user = Unprivileged::new(64 << 10);
    user.give(&user.scratch);
    let (program, arguments) = user.command.split_first().expect("a command");
    let mut command = Command::new(program);
    isolate(&mut command, &user.scratch);
    command.args(arguments).args(["--admin-listen", "off"]);
    command.args(["--kafka-listen", &free_ports().0.to_string()]);
    let ended = run(command);
    assert_ended(&ended, ExitCode::Other, &["lock 65536 bytes", "ulimit -l", "LimitMEMLOCK"]);
}

#[test]
fn a_full_disk_refuses_what_needs_room_keeps_everything_and_goes_on_by_itself() {
    let mut daemon = Daemon::prepare(options(&["--disk-reserve", "1MiB"]));
    let image = scratch();
    let _mounted = match Volume::mount(daemon.data_dir(), image.path(), 256 << 20) {
        Ok(volume) => volume,
        Err(why) => {
            note::skipped("the full disk", &why);
            return;
        }
    };
    daemon.restart();
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("old", 1);
    peer.make_topic("new", 1);
    let value = |number: usize| {
        let mut value = format!("{number} ").into_bytes();
        value.resize(900_000, b'x');
        value
    };
    // Settled, so that deleting it makes room.
    for number in 0..100 {
        peer.append_patiently("old", 0, &batch_of(&value(number)));
    }
    let ballast = daemon.data_dir().join("ballast");
    fill(&ballast).expect("full, and nothing else");

    let mut appended = 0;
    let refused = loop {
        let response = peer.produce("new", 0, batch_of(&value(appended))).expect("an answer");
        match response.error_code {
            ErrorCode::None => appended += 1,
            code => break code,
        }
        assert!(appended < 200, "a full disk takes everything");
    };
    assert!(refused.is_retriable(), "{refused:?} after {appended}");
    daemon.wait_log("the disk is full");
    let metrics = daemon.get("/metrics").expect("an answer").body;
    assert!(metrics.contains("tidemill_disk_full{shard=\"0\"} 1"), "it is in the metrics");
    // Reading goes on, from both ends of the log.
    assert_eq!(peer.values("new", 0, 0).len(), appended);
    assert_eq!(peer.values("old", 0, 0).len(), 100);

    // Deleting makes room, without which nothing would ever go on.
    let topic = DeleteTopic { name: Some("old".into()), ..Default::default() };
    let request = DeleteTopicsRequest { topics: vec![topic], ..Default::default() };
    let deleted = peer.ask(6, &request);
    assert_eq!(deleted.responses[0].error_code, ErrorCode::None);
    for _ in 0..40 {
        peer.append_patiently("new", 0, &batch_of(&value(appended)));
        appended += 1;
    }
    daemon.wait_log("the disk has room again");

    // Full again, killed in that state, and room from outside this time.
    fill(&daemon.data_dir().join("more-ballast")).expect("full, and nothing else");
    loop {
        let response = peer.produce("new", 0, batch_of(&value(appended))).expect("an answer");
        if response.error_code != ErrorCode::None {
            break;
        }
        appended += 1;
        assert!(appended < 400, "a full disk takes everything");
    }
    daemon.kill();
    daemon.restart();
    let mut peer = Peer::connect(daemon.kafka());
    assert_eq!(peer.values("new", 0, 0).len(), appended);
    fs::remove_file(&ballast).expect("there");
    peer.append_patiently("new", 0, &batch_of(&value(appended)));
    appended += 1;
    let values = peer.values("new", 0, 0);
    assert_eq!(values.len(), appended);
    for (number, found) in values.iter().enumerate() {
        assert!(found[..] == value(number)[..], "record {number} is another");
    }
    assert!(daemon.terminate().success());
}

#[test]
fn the_program_has_no_trace_of_the_deliberate_breaks() {
    let program = fs::read(binary()).expect("the program");
    // What a build with the feature `mutations` says at its start, and one of their names.
    for trace in ["broken on purpose", "SkipManifestSync"] {
        let found = program.windows(trace.len()).any(|bytes| bytes == trace.as_bytes());
        assert!(!found, "{} was built with the feature: {trace:?}", binary().display());
    }
}
