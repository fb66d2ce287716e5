//! Waiting for the signal to stop.

use std::io;
use std::time::Duration;

/// SIGTERM and SIGINT, taken by waiting for them instead of by handlers.
pub struct StopSignals {
    set: libc::sigset_t,
}

impl StopSignals {
    /// Blocks the signals in this thread and in all that it starts afterwards.
    pub fn block() -> io::Result<Self> {
        // SAFETY: `sigemptyset` fills the set in; the calls only touch the set and this thread's
        // mask.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::sigaddset(&mut set, libc::SIGINT);
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) {
                0 => Ok(Self { set }),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
    }

    /// Waits for one of the signals, but no longer than `wait`. True if one came.
    pub fn wait(&self, wait: Duration) -> bool {
        let timeout = libc::timespec {
            tv_sec: wait.as_secs() as libc::time_t,
            tv_nsec: wait.subsec_nanos().into(),
        };
        // SAFETY: set and timeout live; no information about the signal is asked for.
        unsafe { libc::sigtimedwait(&self.set, std::ptr::null_mut(), &timeout) > 0 }
    }
}
