//! The declarative form of a setting, and where its value came from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// One row of the table: all that flags, environment, file and documentation need to know.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name in the file: snake case.
    pub key: &'static str,
    /// Heading it stands under.
    pub section: &'static str,
    /// What it is, then after an empty line why the default is what it is; one entry a line.
    pub doc: &'static [&'static str],
    /// The default, as a person would write it.
    pub default: &'static str,
    /// What to type.
    pub form: &'static str,
    /// Word for "not set", if it can be so.
    pub absent: Option<&'static str>,
    /// Smallest and largest value, both allowed.
    pub range: Option<(&'static str, &'static str)>,
    /// Whether the bare flag means true.
    pub is_switch: bool,
}

impl Setting {
    /// Name of its flag, without the dashes.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// Name of its environment variable.
    pub fn variable(&self) -> String {
        format!("{ENVIRONMENT_PREFIX}{}", self.key.to_ascii_uppercase())
    }

    /// The first paragraph: what it is.
    pub fn summary(&self) -> String {
        paragraph(self.doc.split(|line| line.trim().is_empty()).next().unwrap_or_default())
    }

    /// The paragraphs after the first: why, and what else to know.
    pub fn reason(&self) -> String {
        let paragraphs: Vec<String> =
            self.doc.split(|line| line.trim().is_empty()).skip(1).map(paragraph).collect();
        paragraphs.join("\n")
    }
}

fn paragraph(lines: &[&str]) -> String {
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    lines.join(" ")
}

/// What the names of our environment variables start with.
pub const ENVIRONMENT_PREFIX: &str = "TIDEMILL_";

/// Where a value came from; later variants win over earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The table.
    Default,
    /// A line of the configuration file.
    File {
        /// The file as it was named.
        path: Arc<Path>,
        /// The line, from one.
        line: usize,
    },
    /// The environment variable of the setting.
    Environment,
    /// The flag of the setting.
    Flag,
}

impl Origin {
    /// The place in words, for the setting it belongs to.
    pub fn describe(&self, setting: &Setting) -> String {
        match self {
            Self::Default => "default".to_owned(),
            Self::File { path, line } => format!("{} line {line}", path.display()),
            Self::Environment => format!("environment variable {}", setting.variable()),
            Self::Flag => format!("flag --{}", setting.flag()),
        }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File and line, variable or flag.
    pub place: String,
    /// What is wrong and what to type.
    pub message: String,
    /// The only fault is a listener beyond loopback that nobody allowed.
    pub is_untrusted_network: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// The name that was probably meant, if one is near.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    // A third of the letters may be wrong, or two that changed places: more, and it is a guess.
    let distance_max = (name.len() / 3).max(2);
    known
        .map(|candidate| (edit_distance(&name, candidate), candidate))
        .filter(|(distance, _)| *distance <= distance_max)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance over bytes; both names are short.
fn edit_distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, left_byte) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, right_byte) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(left_byte != right_byte);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

/// Turns the table into the `Config` struct, the list of settings, and access by key.
macro_rules! settings {
    ($(section $section:literal {
        $(
            $(#[doc = $doc:literal])+
            $name:ident: $type:ty = $default:literal $(, $low:literal to $high:literal)?;
        )+
    })+) => {
        /// Every setting of a node, with where each value came from.
        #[derive(Debug, Clone)]
        pub struct Config {
            $($(
                $(#[doc = $doc])+
                pub $name: $type,
            )+)+
            origins: Vec<Origin>,
        }

        /// The table: every setting, in the order in which people read them.
        pub const SETTINGS: &[Setting] = &[$($(
            Setting {
                key: stringify!($name),
                section: $section,
                doc: &[$($doc),+],
                default: $default,
                form: <$type as Value>::FORM,
                absent: <$type as MaybeAbsent>::ABSENT_WORD,
                range: settings!(@range $($low to $high)?),
                is_switch: <$type as MaybeAbsent>::IS_SWITCH,
            },
        )+)+];

        impl Default for Config {
            fn default() -> Self {
                Self {
                    $($(
                        $name: <$type as Value>::parse($default)
                            .expect("a test parses every default"),
                    )+)+
                    origins: vec![Origin::Default; SETTINGS.len()],
                }
            }
        }

        impl Config {
            /// Sets one setting from text; an error is a clause about the value.
            fn assign(&mut self, key: &str, text: &str) -> Result<(), &'static str> {
                match key {
                    $($(
                        stringify!($name) => {
                            let range = settings!(@range $($low to $high)?);
                            self.$name = parse_within::<$type>(text, range)?;
                        }
                    )+)+
                    _ => unreachable!("{key} is not in the table"),
                }
                Ok(())
            }

            /// The value of one setting, as a person would write it.
            fn print(&self, key: &str) -> String {
                match key {
                    $($(stringify!($name) => self.$name.print(),)+)+
                    _ => unreachable!("{key} is not in the table"),
                }
            }
        }
    };
    (@range) => { None };
    (@range $low:literal to $high:literal) => { Some(($low, $high)) };
}

pub(super) use settings;
