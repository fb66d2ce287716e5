//! The configuration file: flat TOML, each key with its line.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::setting::{Problem, nearest};
use super::{SETTINGS, Setting};

/// One assignment in a file.
pub(super) struct Entry {
    /// The setting.
    pub setting: &'static Setting,
    /// Its value as text.
    pub text: String,
    /// The line of the value, from one.
    pub line: usize,
}

/// Reads the text of a file: an entry or a fault for each key, from the top.
pub(super) fn parse(path: &Path, text: &str) -> Vec<Result<Entry, Problem>> {
    let fault = |span: Option<Range<usize>>, message: String| {
        let line = span.map_or(1, |span| line_of(text, span.start));
        let place = format!("{} line {line}", path.display());
        Err(Problem { place, message, is_untrusted_network: false })
    };

    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            // The parser's message may have several lines; a log line has one.
            let message = error.message().replace('\n', ", ");
            return vec![fault(error.span(), format!("this is not TOML: {message}"))];
        }
    };

    // The parser hands out keys in alphabetical order; people read from the top.
    let mut items: Vec<_> = table.into_iter().collect();
    items.sort_by_key(|(key, _)| key.span().start);

    let mut entries = Vec::new();
    for (key, value) in items {
        let name = key.get_ref();
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == name) else {
            entries.push(fault(Some(key.span()), unknown_key(name, &value)));
            continue;
        };
        let line = line_of(text, value.span().start);
        entries.push(match text_of(value.get_ref()) {
            Ok(text) => Ok(Entry { setting, text, line }),
            Err(kind) => fault(
                Some(value.span()),
                format!("`{name}` cannot be {kind}: write {}", setting.advice()),
            ),
        });
    }
    entries
}

fn unknown_key(name: &str, value: &Spanned<DeValue<'_>>) -> String {
    if name == "config" {
        return "`config` names this very file; remove the line".to_owned();
    }
    let meant = nearest(name, SETTINGS.iter().map(|setting| setting.key));
    match (meant, value.get_ref()) {
        (Some(meant), _) => format!("`{name}` is not a setting: did you mean `{meant}`?"),
        (None, DeValue::Table(_)) => format!(
            "[{name}] is not known: settings stand alone, without tables; \
             `tidemill config default` prints them all"
        ),
        (None, _) => {
            format!("`{name}` is not a setting: `tidemill config default` prints them all")
        }
    }
}

/// Every kind of value that a setting can have, as the text that a flag would carry.
fn text_of(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| "a number of this size"),
        DeValue::Float(_) => Err("a fraction"),
        DeValue::Datetime(_) => Err("a date"),
        DeValue::Array(_) => Err("a list"),
        DeValue::Table(_) => Err("a table"),
    }
}

fn line_of(text: &str, position: usize) -> usize {
    let before = &text.as_bytes()[..position.min(text.len())];
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}
