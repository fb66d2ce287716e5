//! Joins orders with their payments: reads `orders` and `payments`, writes each payment with its
//! order to `paid-orders`, and an order that nobody paid within an hour to `unpaid-orders`. What
//! cannot be read goes to `rejected`, with the reason in its headers.
//!
//! ```sh
//! cargo run --release --example join -- --data-dir join-data
//! kcat -b 127.0.0.1:9092 -P -t orders <<< '{"order":"o1","customer":"ann","amount":500,"at_ms":0}'
//! kcat -b 127.0.0.1:9092 -P -t payments <<< '{"order":"o1","at_ms":60000}'
//! kcat -b 127.0.0.1:9092 -C -t paid-orders -e -K =
//! ```

use std::process;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemill::daemon::Daemon;
use tidemill::topology::{
    Context, Either, FiredTimer, Json, Operator, OperatorError, States, TimeDomain, Topology, Utf8,
    ValueState,
};

/// A payment may be this much older than its order.
const PAID_BEFORE: Duration = Duration::from_mins(1);

/// After this, an order is unpaid.
const PAID_WITHIN: Duration = Duration::from_hours(1);

/// How much later than a newer one a record may come.
const LATENESS: Duration = Duration::from_secs(5);

/// A partition without records for this long holds up nothing.
const IDLE_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    order: String,
    customer: String,
    /// In cents.
    amount: u64,
    /// Milliseconds since 1970.
    at_ms: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Payment {
    order: String,
    /// Milliseconds since 1970.
    at_ms: i64,
}

/// An order with its payment.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Paid {
    order: String,
    customer: String,
    amount: u64,
    ordered_ms: i64,
    paid_ms: i64,
}

impl Paid {
    fn of(order: &Order, payment: &Payment) -> Self {
        Self {
            order: order.order.clone(),
            customer: order.customer.clone(),
            amount: order.amount,
            ordered_ms: order.at_ms,
            paid_ms: payment.at_ms,
        }
    }
}

/// What is known of an order until its time is over.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Known {
    Open(Order),
    Paid,
}

/// Tells the orders that were not paid in time.
struct Unpaid {
    known: ValueState<Json<Known>>,
}

impl Operator for Unpaid {
    type Key = String;
    type In = Either<Order, Paid>;
    type Out = Order;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.known);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, Order>,
        _order: &String,
        value: Self::In,
    ) -> Result<(), OperatorError> {
        let ordered_ms = match value {
            Either::Left(order) => {
                let ordered_ms = order.at_ms;
                // A payment that was there first was joined with it just before.
                if self.known.get(context)?.is_none() {
                    self.known.set(context, &Known::Open(order))?;
                }
                ordered_ms
            }
            Either::Right(paid) => {
                self.known.set(context, &Known::Paid)?;
                paid.ordered_ms
            }
        };
        let due_ms = ordered_ms + PAID_WITHIN.as_millis() as i64;
        context.set_timer(TimeDomain::Event, due_ms);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, Order>,
        _order: &String,
        _timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        match self.known.get(context)? {
            Some(Known::Open(order)) => context.emit(order),
            Some(Known::Paid) | None => {}
        }
        self.known.clear(context)
    }
}

/// Partitions of the topics, which are made at the first start.
const PARTITIONS: u32 = 4;

fn topology() -> Topology {
    let topology = Topology::new("payments");
    // Time goes as the slowest partition does that is not idle: with one, as the records come.
    for topic in ["orders", "payments"] {
        topology.create(topic, 1);
    }
    for topic in ["paid-orders", "unpaid-orders", "rejected"] {
        topology.create(topic, PARTITIONS);
    }
    topology.dead_letter("rejected");
    let orders = topology
        .source("orders", Json::<Order>::new())
        .event_time(|order| order.at_ms, LATENESS, Some(IDLE_AFTER))
        .key_by("order", Utf8, Json::new(), |order| order.order.clone());
    let payments = topology
        .source("payments", Json::<Payment>::new())
        .event_time(|payment| payment.at_ms, LATENESS, Some(IDLE_AFTER))
        .key_by("payment", Utf8, Json::new(), |payment| payment.order.clone());
    let paid = orders.interval_join(
        "paid",
        &payments,
        (PAID_BEFORE, PAID_WITHIN),
        (Json::<Order>::new(), Json::<Payment>::new()),
        |_, order, payment| Paid::of(order, payment),
    );
    paid.sink("paid-orders", Json::new());
    orders
        .map(|_, order| Either::Left(order))
        .union(&paid.map(|_, paid| Either::Right(paid)))
        .process("unpaid", Unpaid { known: ValueState::new("known", Json::new()) })
        .sink("unpaid-orders", Json::new());
    topology
}

fn main() -> process::ExitCode {
    Daemon::from_args().topology(topology()).run()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::slice;

    use tidemill::driver::{PowerWent, TestDriver, TestRecord};

    use super::*;

    const MINUTE_MS: i64 = 60_000;

    /// A record and its topic.
    type Fed = (&'static str, TestRecord);

    fn driver() -> TestDriver {
        TestDriver::new(2, vec![topology()]).expect("good")
    }

    fn order(order: &str, at_ms: i64) -> Fed {
        let text =
            format!(r#"{{"order":"{order}","customer":"ann","amount":500,"at_ms":{at_ms}}}"#);
        ("orders", TestRecord::new(order, &text, at_ms))
    }

    fn payment(order: &str, at_ms: i64) -> Fed {
        let text = format!(r#"{{"order":"{order}","at_ms":{at_ms}}}"#);
        ("payments", TestRecord::new(order, &text, at_ms))
    }

    /// Writes what is not there yet, in turn.
    fn feed(driver: &mut TestDriver, records: &[Fed]) -> Result<(), PowerWent> {
        driver.rewind();
        let mut there: HashMap<&str, usize> = HashMap::new();
        for topic in ["orders", "payments"] {
            there.insert(topic, driver.pipe_out(topic).len());
        }
        driver.rewind();
        for (topic, record) in records {
            match there.get_mut(topic) {
                Some(count) if *count > 0 => *count -= 1,
                _ => driver.pipe_in(topic, slice::from_ref(record))?,
            }
        }
        Ok(())
    }

    fn texts(driver: &mut TestDriver, topic: &str) -> Vec<String> {
        let mut texts: Vec<String> = driver.pipe_out(topic).iter().map(TestRecord::text).collect();
        texts.sort();
        texts
    }

    fn afternoon() -> Vec<Fed> {
        vec![
            payment("o2", 19 * MINUTE_MS + 30_000),
            order("o1", 10 * MINUTE_MS),
            // Paid half a minute before.
            order("o2", 20 * MINUTE_MS),
            order("o3", 21 * MINUTE_MS),
            payment("o1", 22 * MINUTE_MS),
            // Three hours later nothing of the above is waited for.
            order("o4", 180 * MINUTE_MS),
            payment("o5", 180 * MINUTE_MS),
        ]
    }

    const PAID: [&str; 2] = [
        r#"o1={"order":"o1","customer":"ann","amount":500,"ordered_ms":600000,"paid_ms":1320000}"#,
        r#"o2={"order":"o2","customer":"ann","amount":500,"ordered_ms":1200000,"paid_ms":1170000}"#,
    ];

    const UNPAID: [&str; 1] =
        [r#"o3={"order":"o3","customer":"ann","amount":500,"at_ms":1260000}"#];

    #[test]
    fn orders_are_paid_or_not_whichever_of_the_two_comes_first() {
        let mut driver = driver();
        let afternoon = afternoon();
        feed(&mut driver, &afternoon[..5]).expect("the power is there");
        assert_eq!(texts(&mut driver, "paid-orders"), PAID);
        assert_eq!(texts(&mut driver, "unpaid-orders"), [""; 0], "there is time left");
        feed(&mut driver, &afternoon).expect("the power is there");
        assert_eq!(texts(&mut driver, "paid-orders"), PAID);
        assert_eq!(texts(&mut driver, "unpaid-orders"), UNPAID);
        assert_eq!(driver.paused(), []);
    }

    #[test]
    fn a_silent_topic_of_payments_does_not_keep_orders_waiting() {
        let mut driver = driver();
        feed(&mut driver, &[order("o1", 0)]).expect("the power is there");
        driver.advance(IDLE_AFTER);
        feed(&mut driver, &[order("o1", 0), order("o2", 90 * MINUTE_MS)]).expect("power");
        let unpaid = r#"o1={"order":"o1","customer":"ann","amount":500,"at_ms":0}"#;
        assert_eq!(texts(&mut driver, "unpaid-orders"), [unpaid]);
    }

    #[test]
    fn what_is_no_order_is_rejected_and_the_next_one_is_not() {
        let mut driver = driver();
        let records = [
            ("orders", TestRecord::new("o1", "no JSON", 0)),
            order("o1", 0),
            payment("o1", MINUTE_MS),
        ];
        feed(&mut driver, &records).expect("the power is there");
        assert_eq!(texts(&mut driver, "rejected"), ["o1=no JSON"]);
        assert_eq!(texts(&mut driver, "paid-orders").len(), 1);
    }

    #[test]
    fn no_power_cut_loses_or_doubles_an_order() {
        let afternoon = afternoon();
        let mut cuts = 0;
        for write in 1.. {
            let mut driver = driver();
            driver.crash_at_write(write);
            if feed(&mut driver, &afternoon).is_ok() {
                break;
            }
            cuts += 1;
            driver.restart().expect("it comes back");
            feed(&mut driver, &afternoon).expect("the power is there");
            driver.rewind();
            assert_eq!(texts(&mut driver, "paid-orders"), PAID, "a cut at write {write}");
            assert_eq!(texts(&mut driver, "unpaid-orders"), UNPAID, "a cut at write {write}");
        }
        assert!(cuts > 5, "{cuts} cuts");
    }
}
