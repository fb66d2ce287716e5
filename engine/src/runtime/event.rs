//! Waking tasks of the same thread.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// A flag that tasks of one thread wait for. Setting it wakes every waiter.
#[derive(Debug, Default)]
pub struct Event {
    is_set: Cell<bool>,
    waiters: RefCell<Vec<Waker>>,
}

impl Event {
    /// Sets the flag and wakes whoever waits.
    pub fn set(&self) {
        if !self.is_set.replace(true) {
            for waiter in self.waiters.take() {
                waiter.wake();
            }
        }
    }

    /// Clears the flag; true if it was set.
    pub fn take(&self) -> bool {
        self.is_set.replace(false)
    }

    /// Wakes this waker when the flag is set next.
    pub fn register(&self, waker: &Waker) {
        let mut waiters = self.waiters.borrow_mut();
        if !waiters.iter().any(|waiter| waiter.will_wake(waker)) {
            waiters.push(waker.clone());
        }
    }

    /// Waits until the flag is set and clears it. For one waiting task.
    pub async fn wait(&self) {
        poll_fn(|context| {
            if self.take() {
                return Poll::Ready(());
            }
            self.register(context.waker());
            Poll::Pending
        })
        .await;
    }
}

/// A gate that many tasks wait at while it is shut.
#[derive(Debug, Default)]
pub struct Gate {
    is_shut: Cell<bool>,
    waiters: RefCell<Vec<Waker>>,
}

impl Gate {
    /// Opens or shuts; opening lets everybody through.
    pub fn set_shut(&self, is_shut: bool) {
        if self.is_shut.replace(is_shut) && !is_shut {
            for waiter in self.waiters.take() {
                waiter.wake();
            }
        }
    }

    /// Waits until the gate is open.
    pub async fn pass(&self) {
        poll_fn(|context| {
            if !self.is_shut.get() {
                return Poll::Ready(());
            }
            let mut waiters = self.waiters.borrow_mut();
            if !waiters.iter().any(|waiter| waiter.will_wake(context.waker())) {
                waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
