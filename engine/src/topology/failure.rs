//! Why a call of user code did not succeed, in words for people.

/// Why a call did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The record's bytes are not what the source's codec reads.
    #[error("source {source_name}: {reason}")]
    Decode {
        /// The source's topic.
        source_name: String,
        /// What is wrong.
        reason: String,
    },
    /// The operator said so.
    #[error("operator {operator}: {reason}")]
    Operator {
        /// Its name.
        operator: String,
        /// Its words.
        reason: String,
    },
    /// It panicked.
    #[error("operator {operator} panicked: {reason}")]
    Panic {
        /// Its name.
        operator: String,
        /// The panic's words.
        reason: String,
    },
    /// More than one frame can hold.
    #[error("operator {operator} made {size} bytes of one record; {size_max} fit a frame")]
    TooLarge {
        /// The last operator that made something.
        operator: String,
        /// State changes and records together.
        size: usize,
        /// What fits.
        size_max: usize,
    },
}

impl Failure {
    /// The failure of an operator that has these words, if they are those of an error or a panic.
    pub(super) fn of_words(operator: &str, words: &str) -> Option<Self> {
        let rest = words.strip_prefix("operator ")?.strip_prefix(operator)?;
        let operator = operator.to_owned();
        match rest.strip_prefix(" panicked: ") {
            Some(reason) => Some(Self::Panic { operator, reason: reason.to_owned() }),
            None => {
                let reason = rest.strip_prefix(": ")?.to_owned();
                Some(Self::Operator { operator, reason })
            }
        }
    }

    /// The operator, or the source, that failed.
    pub fn place(&self) -> &str {
        match self {
            Self::Decode { source_name, .. } => source_name,
            Self::Operator { operator, .. }
            | Self::Panic { operator, .. }
            | Self::TooLarge { operator, .. } => operator,
        }
    }
}
