//! A node that serves, as the program sees it that brings it along and does something beside it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::admin::telemetry::Telemetry;

/// A node that takes connections.
#[derive(Debug, Clone)]
pub struct Serving {
    telemetry: Arc<Telemetry>,
    kafka: SocketAddr,
    shard_count: u16,
    stopping: Arc<(Mutex<bool>, Condvar)>,
}

impl Serving {
    /// Of so many shards, listening there for Kafka clients.
    pub(super) fn new(telemetry: Arc<Telemetry>, kafka: SocketAddr, shard_count: u16) -> Self {
        Self { telemetry, kafka, shard_count, stopping: Arc::default() }
    }

    /// Where a client of this machine reaches the first shard.
    pub fn kafka(&self) -> SocketAddr {
        let ip = match self.kafka.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.kafka.port())
    }

    /// How many shards there are.
    pub fn shard_count(&self) -> u16 {
        self.shard_count
    }

    /// What the admin port knows.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Whether somebody asked the node to stop: connections break from then on.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass. True as soon as the node is asked to stop.
    pub fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let (stopping, changed) = &*self.stopping;
        let mut stopping = stopping.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if *stopping || left.is_zero() {
                return *stopping;
            }
            stopping =
                changed.wait_timeout(stopping, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks the node to stop, as a signal does.
    pub fn stop(&self) {
        // SAFETY: it has no effect on memory, and sends this process a signal that its threads block
        // and that the one which serves waits for.
        unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
    }

    pub(super) fn set_stopping(&self) {
        *self.stopping.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopping.1.notify_all();
    }
}
