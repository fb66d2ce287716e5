//! The rules of the tree that the compiler does not know: who may import whom, who may touch the
//! world, how files are named and how long they are.
//!
//! The arrows are those of `docs/ARCHITECTURE.md`. A rule that stands in the way is changed there
//! and here, in one change, with the reason.

use std::fs;
use std::path::Path;

/// Words of the engine that every part may speak: plain data and pure functions.
const VOCABULARY: [&str; 4] = ["batch", "command", "config", "state"];
/// The parts of a shard, which never import each other.
const PARTS: [&str; 6] = ["catalog", "partition", "group", "outbox", "txn", "topology"];
/// A file is read in one sitting.
const LINES_MAX: usize = 800;
/// Cases, one after another, are looked up and not read.
const TEST_LINES_MAX: usize = 2400;
/// Files that may be longer, each for a reason.
const LONG_FILES: [&str; 0] = [];
/// Names that say nothing.
const EMPTY_NAMES: [&str; 7] = ["common", "helpers", "manager", "misc", "types", "util", "utils"];
/// Where the world is touched.
const WORLD: [&str; 8] = [
    "engine/src/runtime",
    "engine/src/admin",
    "engine/src/sink",
    "engine/src/client.rs",
    "engine/src/demo",
    "engine/src/nexmark/feed.rs",
    "wal/src/disk.rs",
    "wal/src/disk",
];
/// May read the configuration file and the environment, and nothing else of the world.
const CONFIGURATION: [&str; 4] =
    ["engine/src/main.rs", "engine/src/daemon.rs", "engine/src/config.rs", "engine/src/config"];

#[test]
fn imports_in_the_engine_follow_the_arrows() {
    let mut wrong = Vec::new();
    for file in sources(&["engine/src"]) {
        wrong.extend(check_arrows(&file.path, &file.text));
    }
    expect_none(&wrong, "import against the arrows");
}

#[test]
fn crates_depend_in_one_direction() {
    let mut wrong = Vec::new();
    for (member, may) in [
        ("wal", &[] as &[&str]),
        ("engine", &["tidemill-wal"]),
        ("tools", &["tidemill-wal", "tidemill"]),
        ("bench", &["tidemill-wal", "tidemill"]),
        ("tests", &["tidemill-wal", "tidemill", "tidemill-tools"]),
    ] {
        let manifest = read(&root().join(member).join("Cargo.toml"));
        for line in manifest.lines().filter(|line| line.starts_with("tidemill")) {
            let name = line.split(['.', ' ', '=']).next().expect("a first word");
            if !may.contains(&name) {
                wrong.push(format!("{member}/Cargo.toml: {name}"));
            }
        }
    }
    expect_none(&wrong, "crates: tools, bench, tests -> engine -> wal");
}

#[test]
fn only_a_test_that_asks_for_them_has_deliberate_breaks() {
    let mut wrong = Vec::new();
    for folder in [".", "wal", "engine", "tools", "bench", "tests"] {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        let enables = |line: &&str| {
            line.starts_with("default =")
                || (line.starts_with("tidemill") && line.contains("features"))
        };
        wrong.extend(manifest.lines().filter(enables).map(|line| format!("{folder}: {line}")));
    }
    expect_none(&wrong, "a feature of ours that is on by default");
}

#[test]
fn only_the_edges_touch_the_world() {
    let mut wrong = Vec::new();
    for file in sources(&["engine/src", "wal/src"]) {
        wrong.extend(check_world(&file.path, &file.text));
    }
    expect_none(&wrong, "files, sockets, clocks and io_uring stay at the edges");
}

#[test]
fn names_say_something() {
    let mut wrong = Vec::new();
    walk(root(), &mut |path| {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if EMPTY_NAMES.contains(&stem) {
            wrong.push(path.display().to_string());
        }
    });
    expect_none(&wrong, "a name is for one type or one job");
}

#[test]
fn no_file_is_longer_than_one_sitting() {
    let mut wrong = Vec::new();
    for file in sources(&["engine", "wal", "bench", "tests", "tools"]) {
        let count = file.text.lines().count();
        let count_max = if is_test_file(&file.path) { TEST_LINES_MAX } else { LINES_MAX };
        if count > count_max && !LONG_FILES.contains(&file.path.as_str()) {
            wrong.push(format!("{}: {count} lines", file.path));
        }
    }
    expect_none(&wrong, "split where the words change");
    for path in LONG_FILES {
        assert!(root().join(path).is_file(), "{path} is gone: take it off the list");
    }
}

#[test]
fn tests_wait_for_events_and_all_run() {
    let mut wrong = Vec::new();
    for file in sources(&["engine", "wal", "bench", "tests", "tools"]) {
        wrong.extend(check_tests(&file.path, &file.text));
    }
    expect_none(&wrong, "tests never sleep and are never ignored");
}

/// Imports of another module of the engine that its place does not allow.
fn check_arrows(path: &str, source: &str) -> Vec<String> {
    if is_test_file(path) {
        return Vec::new();
    }
    let inside = path.strip_prefix("engine/src/").expect("a file of the engine");
    let mut here: Vec<&str> = inside.trim_end_matches(".rs").split('/').collect();
    if here.last() == Some(&"mod") {
        here.pop();
    }
    let importer = here[0];
    let mut wrong = Vec::new();
    for (line, used) in paths(without_tests(source)) {
        let Some(imported) = module_of(&here, &used) else { continue };
        if !may_import(importer, &imported) {
            wrong.push(format!("{path}:{line}: {importer} -> {imported}"));
        }
    }
    wrong
}

/// The top module of the engine that a path names, if it names one.
fn module_of(here: &[&str], used: &[String]) -> Option<String> {
    let mut rest = used.iter().map(String::as_str).peekable();
    match rest.next()? {
        "crate" => rest.next().map(String::from),
        "super" => {
            let mut depth = here.len() - 1;
            while rest.next_if_eq(&"super").is_some() {
                depth = depth.saturating_sub(1);
            }
            if depth == 0 { rest.next().map(String::from) } else { Some(here[0].into()) }
        }
        _ => None,
    }
}

fn may_import(importer: &str, imported: &str) -> bool {
    let is_word = VOCABULARY.contains(&imported);
    match importer {
        _ if importer == imported => true,
        // The roots of the library and of the program put everything together.
        "lib" | "main" | "daemon" | "driver" => true,
        "runtime" => true,
        "kafka" | "admin" => is_word || imported == "exit_code",
        "shard" => is_word || imported == "effect" || PARTS.contains(&imported),
        "reshard" => is_word || imported == "shard" || PARTS.contains(&imported),
        // It runs parts once more, beside all shards.
        "replay" => {
            is_word || imported == "effect" || imported == "shard" || PARTS.contains(&imported)
        }
        part if PARTS.contains(&part) => is_word || imported == "effect",
        "operator" => is_word || imported == "effect",
        "client" => is_word || imported == "kafka",
        // Programs around a node, and the topologies that they bring.
        "nexmark" | "demo" => {
            let around = ["admin", "client", "daemon", "exit_code", "nexmark", "runtime"];
            is_word || imported == "topology" || around.contains(&imported)
        }
        "sink" => is_word,
        "config" => imported == "exit_code",
        "exit_code" => false,
        "batch" | "command" | "effect" | "state" => is_word || imported == "effect",
        _ => panic!("module {importer} has no place in docs/ARCHITECTURE.md and in this test"),
    }
}

/// Uses of the world outside the places that are for it.
fn check_world(path: &str, source: &str) -> Vec<String> {
    let is_in = |places: &[&str]| {
        places.iter().any(|place| {
            path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    };
    if is_in(&WORLD) || is_test_file(path) {
        return Vec::new();
    }
    let may_configure = is_in(&CONFIGURATION);
    let mut wrong = Vec::new();
    for (line, used) in paths(without_tests(source)) {
        let name = used.join("::");
        let names = |places: &[&str]| {
            places.iter().any(|place| {
                name.strip_prefix(place)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            })
        };
        let is_configuration = names(&["std::fs", "std::env"]);
        let is_world = names(&[
            "io_uring",
            "libc",
            "memmap2",
            "socket2",
            "std::net::TcpListener",
            "std::net::TcpStream",
            "std::net::ToSocketAddrs",
            "std::net::UdpSocket",
            "std::os::unix::net",
            "std::process::Command",
            "std::thread::Builder",
            "std::thread::sleep",
            "std::thread::spawn",
            "std::time::Instant",
            "std::time::SystemTime",
            "thread::sleep",
            "thread::spawn",
            "tokio",
        ]);
        // A whole module under its short name would hide what is used of it.
        let hides = ["std", "std::net", "std::net::*", "std::time", "std::time::*"];
        if is_world || (is_configuration && !may_configure) || hides.contains(&name.as_str()) {
            wrong.push(format!("{path}:{line}: {name}"));
        }
    }
    wrong
}

/// Sleeps and ignored tests.
fn check_tests(path: &str, source: &str) -> Vec<String> {
    let is_test = path.starts_with("tests/") || is_test_file(path) || path.contains("/tests/");
    let checked = if is_test { source } else { &source[without_tests(source).len()..] };
    let skipped = source[..source.len() - checked.len()].lines().count();
    let mut wrong = Vec::new();
    for (line, used) in paths(checked) {
        if used.ends_with(&["thread".into(), "sleep".into()]) {
            wrong.push(format!("{path}:{}: sleeps", line + skipped));
        }
    }
    let ignored = concat!("#[", "ignore");
    for (index, text) in source.lines().enumerate() {
        if text.trim_start().starts_with(ignored) {
            wrong.push(format!("{path}:{}: ignored", index + 1));
        }
    }
    wrong
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/src/tests/")
}

/// The file without its unit tests, which end it.
fn without_tests(source: &str) -> &str {
    let mut from = 0;
    while let Some(at) = source[from..].find("#[cfg(test)]") {
        let attribute = from + at;
        from = attribute + 1;
        let rest = source[attribute..].split_once(']').expect("just found").1;
        let item = rest.trim_start();
        if item.starts_with("mod ") && !item.lines().next().is_some_and(|line| line.ends_with(';'))
        {
            return &source[..attribute];
        }
    }
    source
}

/// Every path in the code with its line: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(source: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_start = is_word(&tokens[at].1) && (at == 0 || tokens[at - 1].1 != "::");
        if is_start { at = collect(&tokens, at, &[], &mut found) } else { at += 1 }
    }
    found
}

/// Reads one path or tree at `at`, and returns the place after it.
fn collect(
    tokens: &[(usize, String)],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let line = tokens[at].0;
    let mut path = prefix.to_vec();
    loop {
        let token = tokens.get(at).map(|token| token.1.as_str());
        match token {
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.1 != "}") {
                    let is_item =
                        is_word(&tokens[at].1) || tokens[at].1 == "{" || tokens[at].1 == "*";
                    at = if is_item { collect(tokens, at, &path, found) } else { at + 1 };
                }
                return at + 1;
            }
            Some(word) => path.push(word.into()),
            None => break,
        }
        at += 1;
        let goes_on = tokens.get(at).is_some_and(|token| token.1 == "::")
            && tokens
                .get(at + 1)
                .is_some_and(|token| is_word(&token.1) || token.1 == "{" || token.1 == "*");
        if !goes_on {
            break;
        }
        at += 1;
    }
    // `use a::b as c` names a::b; the other name is not a path.
    if tokens.get(at).is_some_and(|token| token.1 == "as") {
        at += 2;
    }
    found.push((line, path));
    at
}

fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Words, `::` and single signs, each with its line; comments and literals are left out.
fn tokens(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let size = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(size) = literal_size(rest) {
            size
        } else if is_word(rest) {
            let size = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.push((line, rest[..size].into()));
            size
        } else if rest.starts_with("::") {
            found.push((line, "::".into()));
            2
        } else {
            if !first.is_whitespace() {
                found.push((line, first.into()));
            }
            first.len_utf8()
        };
        line += rest[..size].matches('\n').count();
        rest = &rest[size..];
    }
    found
}

/// Size of the string or character literal that begins here; a lifetime is none.
fn literal_size(rest: &str) -> Option<usize> {
    let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'));
    if let Some(raw) = raw {
        let hashes = raw.bytes().take_while(|byte| *byte == b'#').count();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let begin = rest.len() - raw.len() + hashes + 1;
            return Some(
                rest[begin..].find(&close).map_or(rest.len(), |at| begin + at + close.len()),
            );
        }
    }
    let quoted = rest.strip_prefix('b').unwrap_or(rest);
    let quote = quoted.chars().next().filter(|first| matches!(first, '"' | '\''))?;
    let mut escaped = false;
    for (at, sign) in quoted.char_indices().skip(1) {
        if quote == '\'' && !escaped && sign != '\'' && at > 1 && !quoted[1..].starts_with('\\') {
            return None; // A lifetime.
        }
        if sign == quote && !escaped {
            return Some(rest.len() - quoted.len() + at + 1);
        }
        escaped = sign == '\\' && !escaped;
    }
    None
}

struct Source {
    /// From the root, with slashes.
    path: String,
    text: String,
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    for folder in folders {
        walk(&root().join(folder), &mut |path| {
            if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(root()).expect("below the root");
                found.push(Source { path: inside.display().to_string(), text: read(path) });
            }
        });
    }
    assert!(!found.is_empty(), "sources in {folders:?}");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Calls `visit` with everything that belongs to the repository.
fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if ["target", ".git", ".cache", "__pycache__", "tidemill-data"].contains(&name) {
            continue;
        }
        visit(&path);
        if path.is_dir() {
            walk(&path, visit);
        }
    }
}

fn root() -> &'static Path {
    tidemill_tests::daemon::repository()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn expect_none(wrong: &[String], rule: &str) {
    assert!(wrong.is_empty(), "{rule}:\n{}", wrong.join("\n"));
}

#[test]
fn no_merge_was_left_half_done() {
    let mut wrong = Vec::new();
    walk(root(), &mut |path| {
        let Ok(text) = fs::read_to_string(path) else { return };
        let marked =
            text.lines().any(|line| ["<<<<<<< ", ">>>>>>> "].iter().any(|m| line.starts_with(m)));
        wrong.extend(marked.then(|| path.display().to_string()));
    });
    expect_none(&wrong, "a mark of a merge");
}

#[test]
fn an_arrow_in_the_wrong_direction_is_found() {
    let found = |path, source| check_arrows(path, source).join("; ");
    assert_eq!(
        found("engine/src/group/offsets.rs", "\nuse crate::{command::Reply, partition::Log};"),
        "engine/src/group/offsets.rs:2: group -> partition"
    );
    assert_eq!(
        found("engine/src/kafka/frame.rs", "fn f() { crate::shard::step() }"),
        "engine/src/kafka/frame.rs:1: kafka -> shard"
    );
    assert_eq!(
        found("engine/src/txn/mod.rs", "use super::group;"),
        "engine/src/txn/mod.rs:1: txn -> group"
    );
    assert_eq!(
        found("engine/src/txn/marker.rs", "use super::super::group::{self};"),
        "engine/src/txn/marker.rs:1: txn -> group"
    );
    assert_eq!(found("engine/src/txn/marker.rs", "use super::coordinator; use super::group;"), "");
    assert_eq!(found("engine/src/runtime/mesh.rs", "use crate::shard::Shard;"), "");
    assert_eq!(
        found("engine/src/group/mod.rs", "// use crate::txn;\nconst A: &str = \"crate::txn\";"),
        ""
    );
}

#[test]
fn a_use_of_the_world_is_found() {
    let found = |path, source| check_world(path, source).join("; ");
    assert_eq!(
        found("engine/src/shard.rs", "use std::{collections::HashMap, time::{Duration, Instant}};"),
        "engine/src/shard.rs:1: std::time::Instant"
    );
    assert_eq!(
        found("wal/src/segment.rs", "\n\nlet f = std::fs::File::open(p);"),
        "wal/src/segment.rs:3: std::fs::File::open"
    );
    assert_eq!(
        found("engine/src/kafka/mod.rs", "use std::net::{SocketAddr, TcpStream};"),
        "engine/src/kafka/mod.rs:1: std::net::TcpStream"
    );
    assert_eq!(
        found("engine/src/config.rs", "use std::time::Instant;"),
        "engine/src/config.rs:1: std::time::Instant"
    );
    assert_eq!(found("engine/src/config.rs", "use std::fs::File; use std::net::SocketAddr;"), "");
    assert_eq!(found("wal/src/disk/direct.rs", "use std::fs::File;"), "");
    assert_eq!(found("wal/src/disks.rs", "use libc;"), "wal/src/disks.rs:1: libc");
    assert_eq!(found("wal/src/a.rs", "#[cfg(test)]\nmod tests { use std::fs::File; }"), "");
}

#[test]
fn a_sleeping_or_ignored_test_is_found() {
    let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n    std::thread::sleep(d);\n}\n";
    assert_eq!(check_tests("wal/src/a.rs", source).join("; "), "wal/src/a.rs:4: sleeps");
    assert!(check_tests("engine/src/runtime/a.rs", "fn a() { thread::sleep(d) }").is_empty());
    let source = concat!("#[test]\n#[", "ignore]\nfn a() {}");
    assert_eq!(check_tests("tests/tests/a.rs", source).join("; "), "tests/tests/a.rs:2: ignored");
}

#[test]
fn lifetimes_and_literals_do_not_hide_code() {
    let source = "fn f<'a>(x: &'a str) -> char { let c = '\\''; let d = '\"'; crate::a::B }";
    assert!(paths(source).iter().any(|(_, path)| path.join("::") == "crate::a::B"));
    let source = "let s = r#\"crate::x \" \"#; let t = \"\\\"crate::y\"; crate::z";
    let found: Vec<_> = paths(source).into_iter().filter(|(_, path)| path[0] == "crate").collect();
    assert_eq!(found, [(1, vec!["crate".to_string(), "z".to_string()])]);
}
