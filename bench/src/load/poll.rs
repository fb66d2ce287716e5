//! Waiting for sockets, with a timeout in nanoseconds. The only unsafe code of the load.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Most events of one wait.
const EVENTS_MAX: usize = 256;

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Poll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// A descriptor that is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// As it was added.
    pub token: usize,
    /// There is something to read, or the other end is gone.
    pub is_readable: bool,
    /// There is room to write.
    pub is_writable: bool,
}

impl Poll {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        Ok(Self { fd, events })
    }

    /// Adds a descriptor, for reading.
    pub fn add(&self, of: &impl AsRawFd, token: usize) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, of.as_raw_fd(), token, false)
    }

    /// Changes whether room to write counts too.
    pub fn want_write(&self, of: &impl AsRawFd, token: usize, wanted: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, of.as_raw_fd(), token, wanted)
    }

    fn control(&self, what: i32, fd: RawFd, token: usize, is_write: bool) -> io::Result<()> {
        let write = if is_write { libc::EPOLLOUT } else { 0 };
        let events = (libc::EPOLLIN | libc::EPOLLRDHUP | write) as u32;
        let mut event = libc::epoll_event { events, u64: token as u64 };
        // SAFETY: the event lives during the call, which copies it.
        let result = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), what, fd, &mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until something is ready or the time is over; none: for ever.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = Event> + '_> {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let pointer = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the events have room for as many as are said, the timeout lives during the call,
        // and a null mask changes no signals.
        let count = unsafe {
            libc::epoll_pwait2(
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_MAX as i32,
                pointer,
                std::ptr::null(),
            )
        };
        let count = if count < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
            0
        } else {
            count as usize
        };
        Ok(self.events[..count].iter().map(|event| {
            let flags = event.events as i32;
            let ended = libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP;
            Event {
                token: event.u64 as usize,
                is_readable: flags & (libc::EPOLLIN | ended) != 0,
                is_writable: flags & libc::EPOLLOUT != 0,
            }
        }))
    }
}

/// Lets the kernel end this thread's waits on time; by default it may add 50 µs.
pub fn wake_on_time() {
    // SAFETY: takes numbers only, and changes this thread alone.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// Processor seconds of this thread so far, kernel included.
pub fn thread_cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the result lives during the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert!(result == 0, "the clock exists");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn readiness_is_told_with_its_token() {
        let (mut here, there) = UnixStream::pair().expect("a pair");
        let mut poll = Poll::new().expect("a set");
        poll.add(&there, 7).expect("added");
        let none: Vec<Event> = poll.wait(Some(Duration::ZERO)).expect("waits").collect();
        assert_eq!(none, []);
        here.write_all(b"x").expect("room");
        let read = Event { token: 7, is_readable: true, is_writable: false };
        assert_eq!(poll.wait(None).expect("waits").collect::<Vec<_>>(), [read]);
        poll.want_write(&there, 7, true).expect("changed");
        let both = Event { is_writable: true, ..read };
        assert_eq!(poll.wait(None).expect("waits").collect::<Vec<_>>(), [both]);
    }
}
