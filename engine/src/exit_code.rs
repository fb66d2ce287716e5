//! Exit codes: one for each thing that the person or the service manager can do about it.
//!
//! The numbers are a promise to unit files and scripts; they are never reused.

/// How the process ended. `docs/OPERATIONS.md` says what to do about each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitCode {
    /// Stopped cleanly, or did what was asked.
    Success,
    /// Something that has no code of its own; the message says what.
    Other,
    /// A wrong flag, variable or key; the message names it with its line.
    Configuration,
    /// The kernel, or a container's seccomp profile, does not allow io_uring.
    IoUringMissing,
    /// The file system of the data or WAL directory cannot do O_DIRECT.
    DirectIoMissing,
    /// Another process holds the data directory.
    DirectoryInUse,
    /// The data directory was written by a newer release.
    FormatTooNew,
    /// Data that were acknowledged are damaged or missing.
    Corruption,
    /// A listening port is taken.
    PortInUse,
    /// A listener beyond loopback without `trust_network`.
    NetworkNotTrusted,
    /// A write or a sync failed while running: only a restart with replay trusts the disk again.
    DiskFailed,
    /// What is recorded came out otherwise when it was run once more.
    Difference,
}

impl ExitCode {
    /// Every code, in the order of the numbers.
    pub const ALL: [Self; 12] = [
        Self::Success,
        Self::Other,
        Self::Configuration,
        Self::IoUringMissing,
        Self::DirectIoMissing,
        Self::DirectoryInUse,
        Self::FormatTooNew,
        Self::Corruption,
        Self::PortInUse,
        Self::NetworkNotTrusted,
        Self::DiskFailed,
        Self::Difference,
    ];

    /// The number that the shell and the service manager see. 3 to 9 and 64 upwards have
    /// meanings elsewhere (shells, sysexits, systemd), so ours start at 10.
    pub const fn number(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Other => 1,
            Self::Configuration => 2,
            Self::IoUringMissing => 10,
            Self::DirectIoMissing => 11,
            Self::DirectoryInUse => 12,
            Self::FormatTooNew => 13,
            Self::Corruption => 14,
            Self::PortInUse => 15,
            Self::NetworkNotTrusted => 16,
            Self::DiskFailed => 17,
            Self::Difference => 18,
        }
    }

    /// Whether a restart alone may help. The unit file does not restart after the others.
    pub const fn may_heal(self) -> bool {
        match self {
            Self::Other | Self::DirectoryInUse | Self::PortInUse | Self::DiskFailed => true,
            Self::Success
            | Self::Configuration
            | Self::IoUringMissing
            | Self::DirectIoMissing
            | Self::FormatTooNew
            | Self::Corruption
            | Self::NetworkNotTrusted
            | Self::Difference => false,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATIONS: &str = include_str!("../../docs/OPERATIONS.md");
    const UNIT: &str = include_str!("../dist/tidemill.service");

    #[test]
    fn every_code_has_a_row_in_the_operations_guide() {
        for code in ExitCode::ALL {
            let row = format!("| {} |", code.number());
            assert!(OPERATIONS.lines().any(|line| line.starts_with(&row)), "no row for {code:?}");
        }
    }

    #[test]
    fn the_unit_does_not_restart_what_a_restart_cannot_heal() {
        let listed: Vec<u8> = UNIT
            .lines()
            .find_map(|line| line.strip_prefix("RestartPreventExitStatus="))
            .expect("the unit lists exit codes")
            .split(' ')
            .map(|number| number.parse().expect("a number"))
            .collect();
        let hopeless: Vec<u8> = ExitCode::ALL
            .into_iter()
            .filter(|code| *code != ExitCode::Success && !code.may_heal())
            .map(ExitCode::number)
            .collect();
        assert_eq!(listed, hopeless);
    }
}
