//! A bounded single-producer single-consumer ring, and the bell that wakes its reader.
//!
//! Each ordered pair of shards has one ring; each shard has one bell for all rings it reads. The
//! cost of a hop is waking a sleeper, not the ring, so a producer rings the bell once for a batch
//! and only if the reader said that it sleeps.
//!
//! The order that makes a lost wake-up impossible: the reader sets `sleeping`, then looks at its
//! rings once more; the producer pushes, then looks at `sleeping`. With a full fence between each
//! pair, at least one of the two sees the other. Checked with loom, see the tests.

use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;
use tidemill_wal::mutation::{self, Mutation};

#[cfg(feature = "loom")]
use loom::{
    cell::UnsafeCell,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence},
};
#[cfg(not(feature = "loom"))]
use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence},
};

/// The part of loom's cell that the ring uses, at no cost.
#[cfg(not(feature = "loom"))]
#[derive(Debug)]
struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(feature = "loom"))]
impl<T> UnsafeCell<T> {
    fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

#[derive(Debug)]
struct Ring<T> {
    /// Index of the next item to take; only the consumer writes it.
    head: CachePadded<AtomicUsize>,
    /// Index of the next free slot; only the producer writes it.
    tail: CachePadded<AtomicUsize>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is written by the one producer before `tail` passes it (Release) and read by the
// one consumer after it saw that (Acquire), and the other way round with `head`; so no slot is ever
// touched from two threads at once, and items only move between threads.
unsafe impl<T: Send> Sync for Ring<T> {}

impl<T> Ring<T> {
    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[index & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let mut head = self.head.load(Ordering::Relaxed);
        let tail = self.tail.load(Ordering::Relaxed);
        while head != tail {
            // SAFETY: slots from head to tail hold items, and nobody else is left.
            self.slot(head).with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// The writing end.
#[derive(Debug)]
pub struct Producer<T> {
    ring: Arc<Ring<T>>,
    tail: usize,
    /// The last head that was seen; asked again only when the ring looks full.
    head_seen: usize,
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer<T> {
    ring: Arc<Ring<T>>,
    head: usize,
    /// The last tail that was seen; asked again only when the ring looks empty.
    tail_seen: usize,
}

/// A ring of `capacity` items, a power of two.
pub fn ring<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity.is_power_of_two());
    let slots = (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
    let ring = Arc::new(Ring {
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
        slots,
    });
    let producer = Producer { ring: ring.clone(), tail: 0, head_seen: 0 };
    (producer, Consumer { ring, head: 0, tail_seen: 0 })
}

impl<T> Producer<T> {
    /// Puts an item in, or gives it back if the ring is full.
    pub fn push(&mut self, item: T) -> Result<(), T> {
        let capacity = self.ring.slots.len();
        if self.tail.wrapping_sub(self.head_seen) == capacity {
            self.head_seen = self.ring.head.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head_seen) == capacity {
                return Err(item);
            }
        }
        // SAFETY: the slot is free: the consumer's head is past its last use (Acquire above), and
        // this is the only producer.
        self.ring.slot(self.tail).with_mut(|slot| unsafe { (*slot).write(item) });
        self.tail = self.tail.wrapping_add(1);
        self.ring.tail.store(self.tail, Ordering::Release);
        Ok(())
    }
}

impl<T> Consumer<T> {
    /// Takes the oldest item.
    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: the producer's tail is past this slot (Acquire in `is_empty`), and this is the
        // only consumer, which moves on and never reads the slot again before it is refilled.
        let item = self.ring.slot(self.head).with(|slot| unsafe { (*slot).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        self.ring.head.store(self.head, Ordering::Release);
        Some(item)
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&mut self) -> bool {
        if self.head == self.tail_seen {
            self.tail_seen = self.ring.tail.load(Ordering::Acquire);
        }
        self.head == self.tail_seen
    }
}

/// Tells producers whether the reader sleeps.
#[derive(Debug)]
pub struct Bell {
    sleeping: CachePadded<AtomicBool>,
}

impl Default for Bell {
    fn default() -> Self {
        Self { sleeping: CachePadded::new(AtomicBool::new(false)) }
    }
}

impl Bell {
    /// Reader: about to sleep. Look at every source once more after this, and only then sleep.
    pub fn lie_down(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        if !mutation::is_on(Mutation::ForgetWakeUp) {
            fence(Ordering::SeqCst);
        }
    }

    /// Reader: awake.
    pub fn get_up(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// Producer, after pushing a batch: whether the reader has to be woken. True for one producer.
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        // Not a swap: only what takes the mark writes, so each write of `false` by a producer is
        // followed by a wake, and the reader's next `true` is known to come after it.
        let take =
            || self.sleeping.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed);
        self.sleeping.load(Ordering::Relaxed) && take().is_ok()
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn items_come_out_in_order_and_a_full_ring_gives_back() {
        let (mut producer, mut consumer) = ring(4);
        for round in 0..10 {
            for item in 0..4 {
                assert_eq!(producer.push(round * 4 + item), Ok(()));
            }
            assert_eq!(producer.push(99), Err(99));
            for item in 0..4 {
                assert_eq!(consumer.pop(), Some(round * 4 + item));
            }
            assert_eq!(consumer.pop(), None);
        }
    }

    #[test]
    fn items_left_behind_are_dropped_once() {
        let item = std::rc::Rc::new(());
        let (mut producer, mut consumer) = ring(8);
        for _ in 0..5 {
            assert!(producer.push(item.clone()).is_ok());
        }
        drop(consumer.pop());
        drop((producer, consumer));
        assert_eq!(std::rc::Rc::strong_count(&item), 1);
    }

    #[test]
    fn the_bell_wakes_a_sleeper_once() {
        let bell = Bell::default();
        assert!(!bell.must_wake());
        bell.lie_down();
        assert!(bell.must_wake());
        assert!(!bell.must_wake());
    }
}

#[cfg(all(test, feature = "loom"))]
mod loom_tests {
    use loom::sync::{Condvar, Mutex};

    use super::*;

    #[test]
    fn every_item_arrives_once_and_in_order() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(2);
            let writer = loom::thread::spawn(move || {
                for item in 0..3 {
                    let mut item = Box::new(item);
                    while let Err(back) = producer.push(item) {
                        item = back;
                        loom::thread::yield_now();
                    }
                }
            });
            for expected in 0..3 {
                loop {
                    match consumer.pop() {
                        Some(item) => break assert_eq!(*item, expected),
                        None => loom::thread::yield_now(),
                    }
                }
            }
            writer.join().unwrap();
        });
    }

    /// In every order, a reader that lies down is woken or sees the item.
    fn check_wake_up() {
        loom::model(|| {
            let bell = Arc::new(Bell::default());
            let (mut producer, mut consumer) = ring(2);
            let kicked = Arc::new(AtomicBool::new(false));
            let writer = {
                let (bell, kicked) = (bell.clone(), kicked.clone());
                loom::thread::spawn(move || {
                    assert!(producer.push(7).is_ok());
                    if bell.must_wake() {
                        kicked.store(true, Ordering::Release);
                    }
                })
            };
            bell.lie_down();
            let seen = !consumer.is_empty();
            writer.join().unwrap();
            assert!(seen || kicked.load(Ordering::Acquire), "the reader would sleep for ever");
        });
    }

    #[test]
    fn a_reader_that_lies_down_is_woken_or_sees_the_item() {
        check_wake_up();
    }

    #[cfg(feature = "mutations")]
    #[test]
    fn a_forgotten_wake_up_is_found() {
        let _broken = mutation::Scope::new(Mutation::ForgetWakeUp);
        assert!(std::panic::catch_unwind(check_wake_up).is_err(), "nothing finds it");
    }

    /// A reader's thread: takes items, and sleeps by the doorbell's protocol when there are none.
    /// loom reports a deadlock if nobody wakes it.
    struct Sleeper {
        bell: Arc<Bell>,
        kick: Arc<Kick>,
    }

    /// What the kernel does for a thread: a kick that comes before the sleep ends it at once.
    struct Kick {
        is_kicked: Mutex<bool>,
        kicked: Condvar,
    }

    /// Every order with a few changes of the thread where none is needed. All orders are too many.
    fn model(run: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(run);
    }

    impl Kick {
        fn kick(&self) {
            *self.is_kicked.lock().unwrap() = true;
            self.kicked.notify_one();
        }

        fn sleep(&self) {
            let mut is_kicked = self.is_kicked.lock().unwrap();
            while !*is_kicked {
                is_kicked = self.kicked.wait(is_kicked).unwrap();
            }
            *is_kicked = false;
        }
    }

    impl Sleeper {
        fn new() -> Self {
            let kick = Kick { is_kicked: Mutex::new(false), kicked: Condvar::new() };
            Self { bell: Arc::new(Bell::default()), kick: Arc::new(kick) }
        }

        /// What a producer does after it pushed.
        fn waker(&self) -> impl Fn() + Send + 'static {
            let (bell, kick) = (self.bell.clone(), self.kick.clone());
            move || {
                if bell.must_wake() {
                    kick.kick();
                }
            }
        }

        fn take(&self, consumers: &mut [Consumer<u32>], count: usize) -> Vec<u32> {
            let mut taken = Vec::new();
            loop {
                for consumer in &mut *consumers {
                    taken.extend(std::iter::from_fn(|| consumer.pop()));
                }
                if taken.len() == count {
                    return taken;
                }
                self.bell.lie_down();
                if consumers.iter_mut().all(Consumer::is_empty) {
                    self.kick.sleep();
                }
                self.bell.get_up();
            }
        }
    }

    #[test]
    fn a_reader_that_sleeps_again_and_again_gets_everything() {
        model(|| {
            let sleeper = Sleeper::new();
            let (mut producer, consumer) = ring(2);
            let wake = sleeper.waker();
            let writer = loom::thread::spawn(move || {
                for item in 0..2 {
                    assert!(producer.push(item).is_ok());
                    wake();
                }
            });
            assert_eq!(sleeper.take(&mut [consumer], 2), [0, 1]);
            writer.join().unwrap();
        });
    }

    #[test]
    fn of_two_writers_at_one_bell_none_is_forgotten() {
        model(|| {
            let sleeper = Sleeper::new();
            let (mut left, from_left) = ring(2);
            let (mut right, from_right) = ring(2);
            let (wake_left, wake_right) = (sleeper.waker(), sleeper.waker());
            let writers = [
                loom::thread::spawn(move || {
                    assert!(left.push(1).is_ok());
                    wake_left();
                }),
                loom::thread::spawn(move || {
                    assert!(right.push(2).is_ok());
                    wake_right();
                }),
            ];
            let mut taken = sleeper.take(&mut [from_left, from_right], 2);
            taken.sort_unstable();
            assert_eq!(taken, [1, 2]);
            for writer in writers {
                writer.join().unwrap();
            }
        });
    }

    #[test]
    fn what_waits_for_room_reaches_a_reader_that_sleeps() {
        model(|| {
            let sleeper = Sleeper::new();
            let (mut producer, consumer) = ring(1);
            let wake = sleeper.waker();
            let writer = loom::thread::spawn(move || {
                for mut item in 0..2 {
                    // As a lane does: what finds no room is tried again, and rung for when it did.
                    while let Err(back) = producer.push(item) {
                        item = back;
                        loom::thread::yield_now();
                    }
                    wake();
                }
            });
            assert_eq!(sleeper.take(&mut [consumer], 2), [0, 1]);
            writer.join().unwrap();
        });
    }

    #[test]
    fn items_left_behind_by_both_ends_are_dropped_once() {
        loom::model(|| {
            let item = Arc::new(());
            let (mut producer, mut consumer) = ring(2);
            let writer = {
                let item = item.clone();
                loom::thread::spawn(move || {
                    assert!(producer.push(item.clone()).is_ok());
                    assert!(producer.push(item).is_ok());
                })
            };
            drop(consumer.pop());
            drop(consumer);
            writer.join().unwrap();
            assert_eq!(Arc::strong_count(&item), 1);
        });
    }
}
