//! What is wrong with one element of a request.

use crate::command::Refused;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::Text;

/// Why one element fails: a code for the client and words for the person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The kind.
    pub code: ErrorCode,
    /// What was wrong and what to do; empty if the code says it all.
    pub message: String,
}

impl Fault {
    /// A fault in words.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// No topic has this name.
    pub fn unknown_topic(name: &str) -> Self {
        Self::new(ErrorCode::UnknownTopicOrPartition, format!("there is no topic {name:?}"))
    }

    /// The words as the protocol wants them.
    pub fn text(self) -> Option<Text> {
        (!self.message.is_empty()).then(|| Text::from(self.message))
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        Self::new(ErrorCode::for_admin(refused.refusal), refused.message)
    }
}

/// Code and words of an element that may have failed.
pub(super) fn told<T>(outcome: Result<T, Fault>) -> (ErrorCode, Option<Text>) {
    match outcome {
        Ok(_) => (ErrorCode::None, None),
        Err(fault) => (fault.code, fault.text()),
    }
}
