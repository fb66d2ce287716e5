//! The configuration file.

use tidemill::config::Action;

/// Any text: it is refused with a reason, or what it means can be shown and read to the same.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(first) = parse(text) else { return };
    let shown = first.show();
    let second = match parse(&shown) {
        Ok(second) => second,
        Err(error) => panic!("what was shown is refused: {error}\n{shown}"),
    };
    assert_eq!(first.values(), second.values());
    assert_eq!(first.hash(), second.hash());
}

fn parse(text: &str) -> Result<tidemill::config::Config, String> {
    let arguments = ["tidemill", "config", "show"].map(Into::into);
    match Action::from_sources(arguments, [], |_| Ok(text.to_owned())) {
        Ok(Action::Show(config)) => Ok(config),
        Ok(other) => panic!("asked to show, it does {other:?}"),
        Err(error) => {
            let why = error.to_string();
            assert!(!why.is_empty());
            Err(why)
        }
    }
}
