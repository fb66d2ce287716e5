//! A shard's io_uring: what its thread waits for, and the writes of its log.
//!
//! Sockets are watched and then read and written by calls that do not wait, so the kernel never
//! owns memory of a connection, and a connection can end at any moment. Each watch is for one
//! readiness; whoever wants the next one asks again. What is asked leaves with the next wait, all
//! of it in one system call.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::task::Wake;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

/// Operations that one wait can submit. The kernel counts both queues against the memory that a
/// user may lock: about 100 KiB.
const SUBMISSIONS: u32 = 256;

/// Completions that the kernel keeps without memory of its own.
const COMPLETIONS: u32 = 4096;

/// Low bits of a token that tell what it is for.
const KIND_BITS: u32 = 3;

/// What an operation was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// Another thread rang.
    Doorbell,
    /// A connection can be taken.
    Listener,
    /// A connection has bytes, or has ended.
    Readable(u64),
    /// A connection takes bytes again, or has ended.
    Writable(u64),
    /// A frame is written.
    Frame,
    /// A frame that was written is synced.
    Sync,
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, id) = match self {
            Self::Doorbell => (0, 0),
            Self::Listener => (1, 0),
            Self::Readable(id) => (2, id),
            Self::Writable(id) => (3, id),
            Self::Frame => (4, 0),
            Self::Sync => (5, 0),
        };
        id << KIND_BITS | kind
    }

    fn decode(bits: u64) -> Self {
        let id = bits >> KIND_BITS;
        match bits & ((1 << KIND_BITS) - 1) {
            0 => Self::Doorbell,
            1 => Self::Listener,
            2 => Self::Readable(id),
            3 => Self::Writable(id),
            4 => Self::Frame,
            5 => Self::Sync,
            _ => unreachable!("only tokens are submitted"),
        }
    }
}

/// An operation that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Which one.
    pub token: Token,
    /// What the system call would have returned, or `-errno`.
    pub result: i32,
}

/// The ring of one thread, which alone may use it.
pub struct Uring {
    ring: IoUring,
    /// What the kernel takes only once completions were taken.
    waiting: VecDeque<squeue::Entry>,
}

impl Uring {
    /// Sets a ring up for the calling thread. Kernels before 6.1 do more on their own time than
    /// on ours; the ring works there all the same.
    pub fn new() -> io::Result<Self> {
        let mut newest = IoUring::builder();
        newest.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        let ring = match newest.setup_clamp().setup_cqsize(COMPLETIONS).build(SUBMISSIONS) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().setup_clamp().setup_cqsize(COMPLETIONS).build(SUBMISSIONS)?
            }
            result => result?,
        };
        Ok(Self { ring, waiting: VecDeque::new() })
    }

    /// Says once when the descriptor can be read, or has ended.
    pub fn watch_readable(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        self.watch(fd, libc::POLLIN, token)
    }

    /// Says once when the descriptor can be written, or has ended.
    pub fn watch_writable(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        self.watch(fd, libc::POLLOUT, token)
    }

    fn watch(&mut self, fd: RawFd, events: libc::c_short, token: Token) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fd(fd), events as u32).build();
        // SAFETY: the operation takes no memory.
        unsafe { self.push(entry.user_data(token.encode())) }
    }

    /// Writes to a file.
    ///
    /// # Safety
    ///
    /// `bytes` must stay where they are, unchanged, until the completion with this token.
    pub unsafe fn write(
        &mut self,
        fd: RawFd,
        bytes: &[u8],
        offset: u64,
        token: Token,
    ) -> io::Result<()> {
        let size = u32::try_from(bytes.len()).expect("a frame is smaller");
        let entry = opcode::Write::new(Fd(fd), bytes.as_ptr(), size).offset(offset).build();
        // SAFETY: the caller keeps the memory.
        unsafe { self.push(entry.user_data(token.encode())) }
    }

    /// Makes durable what was written to a file.
    pub fn sync(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        let entry = opcode::Fsync::new(Fd(fd)).flags(FsyncFlags::DATASYNC).build();
        // SAFETY: the operation takes no memory.
        unsafe { self.push(entry.user_data(token.encode())) }
    }

    /// # Safety
    ///
    /// Memory that the operation names stays until its completion.
    unsafe fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        self.waiting.push_back(entry);
        self.push_waiting();
        if !self.waiting.is_empty() {
            self.submit()?;
            self.push_waiting();
        }
        Ok(())
    }

    fn push_waiting(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.waiting.front() {
            // SAFETY: whoever asked for it keeps its memory.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// Hands over what was asked, without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        match self.ring.submit() {
            // The completions come first; the rest is handed over with the next wait.
            Err(error) if is_passing(&error) => Ok(()),
            result => result.map(|_| ()),
        }
    }

    /// Hands over what was asked, waits for a completion for so long (not at all if zero), and
    /// takes all there are.
    pub fn wait(&mut self, timeout: Duration, done: &mut Vec<Completion>) -> io::Result<()> {
        self.push_waiting();
        let may_wait = self.waiting.is_empty() && self.ring.completion().is_empty();
        let is_waiting = may_wait && !timeout.is_zero();
        let result = if is_waiting {
            let time = Timespec::from(timeout);
            self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
        } else {
            self.ring.submit_and_wait(0)
        };
        match result {
            Err(error) if is_passing(&error) || error.raw_os_error() == Some(libc::ETIME) => {}
            result => drop(result?),
        }
        let completions = self.ring.completion();
        done.extend(completions.map(|entry| Completion {
            token: Token::decode(entry.user_data()),
            result: entry.result(),
        }));
        Ok(())
    }
}

/// Wakes a thread that sleeps at its ring, from any thread.
#[derive(Debug)]
pub struct EventFd(File);

impl EventFd {
    /// A new one, to be watched.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no memory.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(Self(unsafe { File::from_raw_fd(descriptor) }))
    }

    /// What the ring watches.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The thread is awake.
    pub fn silence(&self) {
        // It fails only when nobody rang.
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl Wake for EventFd {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // It fails only when it is full, and then it rings already.
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
    }
}

/// Whether trying again later is all there is to do.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::task::Waker;

    use super::*;

    fn next(ring: &mut Uring) -> Completion {
        let mut done = Vec::new();
        while done.is_empty() {
            ring.wait(Duration::from_secs(60), &mut done).unwrap();
        }
        assert_eq!(done.len(), 1, "{done:?}");
        done[0]
    }

    #[test]
    fn a_token_keeps_its_number() {
        let all = [Token::Doorbell, Token::Listener, Token::Frame, Token::Sync];
        let numbered = [0, 1, 1 << 60].map(|id| [Token::Readable(id), Token::Writable(id)]);
        for token in all.into_iter().chain(numbered.into_iter().flatten()) {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }

    #[test]
    fn a_descriptor_is_told_once_for_each_watch() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut ring = Uring::new().unwrap();
        ring.watch_readable(theirs.as_raw_fd(), Token::Readable(7)).unwrap();
        let mut done = Vec::new();
        ring.wait(Duration::ZERO, &mut done).unwrap();
        ring.wait(Duration::from_millis(1), &mut done).unwrap();
        assert_eq!(done, [], "nothing to read yet");
        ours.write_all(b"a").unwrap();
        assert_eq!(next(&mut ring).token, Token::Readable(7));
        ours.write_all(b"b").unwrap();
        ring.wait(Duration::from_millis(1), &mut done).unwrap();
        assert_eq!(done, [], "nobody asked again");
        ring.watch_readable(theirs.as_raw_fd(), Token::Readable(8)).unwrap();
        assert_eq!(next(&mut ring).token, Token::Readable(8), "what is there counts");
        drop(ours);
        let mut all = Vec::new();
        (&theirs).read_to_end(&mut all).unwrap();
        assert_eq!(all, b"ab");
        ring.watch_writable(theirs.as_raw_fd(), Token::Writable(9)).unwrap();
        assert_eq!(next(&mut ring).token, Token::Writable(9), "an end is told, too");
    }

    #[test]
    fn a_thread_is_woken_at_its_ring_once_for_each_time() {
        let bell = Arc::new(EventFd::new().unwrap());
        let mut ring = Uring::new().unwrap();
        for _ in 0..2 {
            ring.watch_readable(bell.descriptor(), Token::Doorbell).unwrap();
            let waker = Waker::from(bell.clone());
            std::thread::spawn(move || waker.wake_by_ref()).join().unwrap();
            assert_eq!(next(&mut ring).token, Token::Doorbell);
            bell.silence();
        }
        let mut done = Vec::new();
        ring.watch_readable(bell.descriptor(), Token::Doorbell).unwrap();
        ring.wait(Duration::from_millis(1), &mut done).unwrap();
        assert_eq!(done, []);
    }

    #[test]
    fn more_than_the_queue_holds_is_submitted_on_the_way() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut ring = Uring::new().unwrap();
        let count = u64::from(SUBMISSIONS) * 3;
        for id in 0..count {
            ring.watch_readable(theirs.as_raw_fd(), Token::Readable(id)).unwrap();
        }
        drop(ours);
        let mut done = Vec::new();
        while done.len() < count as usize {
            ring.wait(Duration::from_secs(60), &mut done).unwrap();
        }
        let mut ids: Vec<u64> = (done.iter())
            .map(|completion| match completion.token {
                Token::Readable(id) => id,
                other => panic!("{other:?}"),
            })
            .collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..count));
    }

    #[test]
    fn a_write_and_a_sync_have_the_results_of_their_calls() {
        let file = tempfile::tempfile().unwrap();
        let mut ring = Uring::new().unwrap();
        let bytes = b"frame".to_vec();
        // SAFETY: `bytes` live until the completion was taken.
        unsafe { ring.write(file.as_raw_fd(), &bytes, 4096, Token::Frame) }.unwrap();
        assert_eq!(next(&mut ring), Completion { token: Token::Frame, result: 5 });
        ring.sync(file.as_raw_fd(), Token::Sync).unwrap();
        assert_eq!(next(&mut ring), Completion { token: Token::Sync, result: 0 });
        assert_eq!(file.metadata().unwrap().len(), 4101);
        // SAFETY: as above.
        unsafe { ring.write(-1, &bytes, 0, Token::Frame) }.unwrap();
        assert_eq!(next(&mut ring).result, -libc::EBADF);
    }
}
