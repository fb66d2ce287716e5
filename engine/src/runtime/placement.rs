//! Where and when the node's threads run.
//!
//! A shard's thread stays on its core and gets it soon when it wakes. The threads beside it go where
//! there is room, and those that move much data give way.

/// Time that the scheduler gives a shard's thread at a time, in nanoseconds: the shortest that it
/// takes. Who asks for short times waits shortly, too (`sched_setattr(2)`, Linux 6.12; older
/// kernels take no notice).
const SLICE_NS: u64 = 100_000;

/// Added to the process's nice value for threads that give way: a tenth of a shard's weight.
const NICENESS: libc::c_int = 10;

/// Cores that this process may use, in order.
pub fn allowed_cores() -> Vec<usize> {
    // SAFETY: all-zero is a valid set, and the kernel fills it in.
    let cores: Vec<usize> = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        match libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) {
            0 => (0..libc::CPU_SETSIZE as usize)
                .filter(|core| libc::CPU_ISSET(*core, &set))
                .collect(),
            _ => Vec::new(),
        }
    };
    if cores.is_empty() { vec![0] } else { cores }
}

/// Keeps the calling thread, and those that it starts, on these cores. Where that is refused the
/// scheduler decides.
pub fn keep_on(cores: &[usize]) {
    // SAFETY: all-zero is a valid set, the cores are some that the kernel named, and the kernel
    // reads the set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for core in cores {
            libc::CPU_SET(*core, &mut set);
        }
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// The calling thread wants little at a time, and that soon.
pub fn be_prompt() {
    /// `struct sched_attr` in its first version.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime_ns: u64,
        deadline_ns: u64,
        period_ns: u64,
    }
    // SAFETY: the call takes no memory.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime_ns: SLICE_NS,
        deadline_ns: 0,
        period_ns: 0,
    };
    // SAFETY: the kernel reads the struct, whose size it holds. A refusal changes nothing.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &attributes, 0) };
}

/// The calling thread gives way to others.
pub fn give_way() {
    // SAFETY: the call takes no memory. Linux changes the calling thread alone; a refusal leaves
    // its priority as it is.
    unsafe { libc::nice(NICENESS) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_kept_where_it_is_told_and_its_neighbours_are_not() {
        let all = allowed_cores();
        let one = [*all.last().unwrap()];
        let (kept, started) = std::thread::spawn(move || {
            keep_on(&one);
            be_prompt();
            let kept = allowed_cores();
            let started = std::thread::spawn({
                let all = all.clone();
                move || {
                    keep_on(&all);
                    give_way();
                    (allowed_cores(), all)
                }
            });
            (kept == one, started.join().unwrap())
        })
        .join()
        .unwrap();
        assert!(kept);
        assert_eq!(started.0, started.1);
    }
}
