//! The same open loop for every system, whatever it speaks.

use std::net::SocketAddr;
use std::time::Duration;

use tidemill::batch::Compression;

use super::system::Opened;
use crate::limit::SyncMethod;
use crate::load::kafka::{Produce, Shape};
use crate::load::{Arrivals, Plan, Protocol};
use crate::measure::{DRAIN, IN_FLIGHT_MAX, Request, limits};
use crate::peers::pipelined::Pipelined;
use crate::peers::{Speaks, etcd, nats, redis};
use crate::run::{Load, Run};

/// Topic of all loads of a scenario.
const TOPIC: &str = "bench";

/// What is asked of every system alike.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Bytes of a record.
    pub size: u32,
    /// Partitions, or streams where a system has such.
    pub partitions: u32,
    /// Connections.
    pub connections: u32,
    /// Seconds before the measured ones.
    pub warm_up: Duration,
    /// Shards of Tidemill.
    pub shards: u16,
}

/// One load.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// Requests a second.
    pub per_second: f64,
    /// Records in each.
    pub records: u64,
    /// How long a client gathers before it sends.
    pub gather: Duration,
    /// Load before the measured time.
    pub warm_up: Duration,
    /// The measured time.
    pub duration: Duration,
    /// Whether to measure beside it what the machine can do at best; for Kafka's protocol.
    pub with_limit: bool,
}

/// Makes what the load goes to.
pub fn prepare(opened: &Opened, shared: &Shared) -> Result<(), String> {
    match opened.speaks {
        Speaks::Kafka => opened.target.make_topic(TOPIC, shared.partitions, &[]).map(drop),
        // Made by the first connection, or by the first record.
        Speaks::Nats | Speaks::Redis | Speaks::Etcd => Ok(()),
    }
}

/// Drives a load, and says what came of it in `run`.
pub fn drive(opened: &Opened, shared: &Shared, ask: Ask, run: &mut Run) -> Result<(), String> {
    let connections = shared.connections as usize;
    let size = shared.size as usize;
    run.load.records_per_request = ask.records;
    let address = opened.target.address();
    let here = vec![address; connections];
    match opened.speaks {
        Speaks::Kafka => {
            let leaders = opened.target.leaders(TOPIC)?;
            let shape = Shape {
                topic: TOPIC.to_owned(),
                record_size: size,
                records: ask.records as usize,
                keys: 0,
                compression: Compression::None,
                connections,
            };
            let mut produce = Produce::new(&shape, &leaders)?;
            let sizes = (produce.accepted_size(), produce.request_size());
            let plan = ask.plan(produce.addresses());
            measure(opened, shared, &plan, sizes, &mut produce, run)?;
            if ask.with_limit {
                let limit = limits(&plan, &mut produce, &opened.target, SyncMethod::Dsync)?;
                run.set_limit(Some(limit));
            }
            Ok(())
        }
        Speaks::Redis => {
            measure_each(opened, shared, ask, here, redis::Append::new(size, connections), run)
        }
        Speaks::Nats => {
            let publish = nats::Publish::new(size, shared.partitions);
            measure_each(opened, shared, ask, here, publish, run)
        }
        Speaks::Etcd => {
            measure_each(opened, shared, ask, here, etcd::Put::new(size, connections), run)
        }
    }
}

/// For a protocol in which a request has one record.
fn measure_each(
    opened: &Opened,
    shared: &Shared,
    ask: Ask,
    addresses: Vec<SocketAddr>,
    mut protocol: impl Protocol,
    run: &mut Run,
) -> Result<(), String> {
    let accepted = u64::from(shared.size) * ask.records;
    let sizes = (accepted, accepted);
    let plan = ask.plan(addresses);
    if ask.records == 1 {
        return measure(opened, shared, &plan, sizes, &mut protocol, run);
    }
    let mut pipelined = Pipelined::new(protocol, ask.records, shared.connections as usize);
    measure(opened, shared, &plan, sizes, &mut pipelined, run)
}

fn measure(
    opened: &Opened,
    shared: &Shared,
    plan: &Plan,
    (accepted_size, request_size): (u64, u64),
    protocol: &mut impl Protocol,
    run: &mut Run,
) -> Result<(), String> {
    let records = run.load.records_per_request;
    run.load = Load {
        requests_per_second: plan.per_second,
        arrivals: "even".to_owned(),
        in_flight_max: plan.in_flight_max,
        record_size: shared.size.into(),
        records_per_request: records,
        request_size,
        partitions: shared.partitions,
        connections: shared.connections,
        keys: 0,
        compression: "none".to_owned(),
        acks: run.sync_method.clone(),
        warm_up_seconds: plan.warm_up.as_secs_f64(),
        duration_seconds: plan.duration.as_secs_f64(),
        shards: shared.shards.into(),
    };
    let request = Request { records, size: accepted_size };
    run.result = opened.target.measure(plan, protocol, request, &mut |_| ())?;
    Ok(())
}

impl Ask {
    fn plan(&self, addresses: Vec<SocketAddr>) -> Plan {
        Plan {
            addresses,
            per_second: Some(self.per_second),
            arrivals: Arrivals::Even,
            gather: self.gather,
            in_flight_max: IN_FLIGHT_MAX,
            warm_up: self.warm_up,
            duration: self.duration,
            piece: Duration::from_secs(1),
            drain: DRAIN.min(self.duration),
            spin: false,
            clock: None,
        }
    }
}
