//! An order book for each instrument: reads limit orders from the topic `orders`, fills each from the
//! best prices and from the oldest orders among equal ones, and writes fills, and what expired
//! unfilled, to `reports`. An order that makes no sense goes to `rejected-orders`.
//!
//! ```sh
//! cargo run --release --example order_matching -- --data-dir order-matching-data
//! kcat -b 127.0.0.1:9092 -P -t orders -K = <<END
//! XYZ={"id":"s1","instrument":"XYZ","side":"sell","price":101,"quantity":5}
//! XYZ={"id":"b1","instrument":"XYZ","side":"buy","price":102,"quantity":8,"good_for_ms":5000}
//! END
//! kcat -b 127.0.0.1:9092 -C -t reports -K =
//! ```
//!
//! The last line shows the fill at once, and after five seconds that the rest of `b1` has expired.
//! Orders of one instrument are in one partition, by their key, and so in order.

use std::process;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemill::daemon::Daemon;
use tidemill::topology::{
    Codec, CodecError, Context, FiredTimer, Int64, Json, MapState, Operator, OperatorError,
    SideOutput, States, TimeDomain, Topology, Utf8, ValueState,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Buy,
    Sell,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Buy => Self::Sell,
            Self::Sell => Self::Buy,
        }
    }

    /// Where a price stands on this side of the book: the best for the other side comes first.
    fn rank(self, price: u32) -> i64 {
        match self {
            Self::Buy => i64::from(u32::MAX - price),
            Self::Sell => i64::from(price),
        }
    }
}

/// What is read.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    id: String,
    instrument: String,
    side: Side,
    /// The worst price that it takes.
    price: u32,
    quantity: u64,
    /// How long what is not filled stays in the book; 0: not at all; none: until it is filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    good_for_ms: Option<u32>,
}

impl Order {
    /// What is wrong with it.
    fn fault(&self) -> Option<&'static str> {
        if self.quantity == 0 {
            return Some("the quantity is zero");
        }
        (self.price == 0).then_some("the price is zero")
    }
}

/// An order in the book.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Resting {
    id: String,
    price: u32,
    quantity: u64,
    /// Milliseconds since 1970.
    expires_ms: Option<i64>,
}

/// What is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "lowercase")]
enum Report {
    Fill { price: u32, quantity: u64, buy: String, sell: String },
    Expired { id: String, quantity: u64 },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Rejected {
    id: String,
    reason: String,
}

/// Where an order stands: its price's rank, and its number among all orders of the book. As bytes
/// it sorts as the pair does, since neither is negative.
#[derive(Debug, Clone, Copy)]
struct Place;

impl Codec for Place {
    type Value = (i64, i64);

    fn name(&self) -> String {
        "place".to_owned()
    }

    fn encode(&self, (rank, number): &(i64, i64), to: &mut Vec<u8>) {
        Int64.encode(rank, to);
        Int64.encode(number, to);
    }

    fn decode(&self, bytes: &Bytes) -> Result<(i64, i64), CodecError> {
        let half = bytes.len().min(8);
        Ok((Int64.decode(&bytes.slice(..half))?, Int64.decode(&bytes.slice(half..))?))
    }
}

/// The book of one instrument.
struct Book {
    buys: MapState<Place, Json<Resting>>,
    sells: MapState<Place, Json<Resting>>,
    /// The next order's number.
    next: ValueState<Int64>,
    rejected: SideOutput<Rejected>,
}

impl Book {
    fn new(rejected: &SideOutput<Rejected>) -> Self {
        Self {
            buys: MapState::new("buys", Place, Json::new()),
            sells: MapState::new("sells", Place, Json::new()),
            next: ValueState::new("next", Int64),
            rejected: rejected.clone(),
        }
    }

    fn side(&self, side: Side) -> &MapState<Place, Json<Resting>> {
        match side {
            Side::Buy => &self.buys,
            Side::Sell => &self.sells,
        }
    }

    /// Fills an order from the other side, as far as that goes; what is left is the result.
    fn fill(
        &self,
        context: &mut Context<'_, '_, Report>,
        order: &Order,
    ) -> Result<u64, OperatorError> {
        let mut left = order.quantity;
        let against = order.side.other();
        let book = self.side(against);
        // All that are not worse than its price.
        let end = (against.rank(order.price) + 1, 0);
        for (place, mut resting) in book.between(context, &(0, 0), &end)? {
            if left == 0 {
                break;
            }
            let quantity = left.min(resting.quantity);
            left -= quantity;
            resting.quantity -= quantity;
            if resting.quantity == 0 {
                book.remove(context, &place)?;
            } else {
                book.insert(context, &place, &resting)?;
            }
            let (price, id) = (resting.price, order.id.clone());
            context.emit(match order.side {
                Side::Buy => Report::Fill { price, quantity, buy: id, sell: resting.id },
                Side::Sell => Report::Fill { price, quantity, buy: resting.id, sell: id },
            });
        }
        Ok(left)
    }

    /// Puts what is left of an order into the book.
    fn rest(
        &self,
        context: &mut Context<'_, '_, Report>,
        order: &Order,
        quantity: u64,
    ) -> Result<(), OperatorError> {
        let expires_ms = order.good_for_ms.map(|it| context.now_ms() + i64::from(it));
        if let Some(expires_ms) = expires_ms {
            context.set_timer(TimeDomain::Processing, expires_ms);
        }
        let number = self.next.get(context)?.unwrap_or(0);
        self.next.set(context, &(number + 1))?;
        let (id, price) = (order.id.clone(), order.price);
        let place = (order.side.rank(price), number);
        let resting = Resting { id, price, quantity, expires_ms };
        self.side(order.side).insert(context, &place, &resting)
    }
}

impl Operator for Book {
    type Key = String;
    type In = Order;
    type Out = Report;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.buys);
        states.declare(&self.sells);
        states.declare(&self.next);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, Report>,
        _instrument: &String,
        order: Order,
    ) -> Result<(), OperatorError> {
        if let Some(reason) = order.fault() {
            let rejected = Rejected { id: order.id, reason: reason.to_owned() };
            context.emit_to(&self.rejected, rejected);
            return Ok(());
        }
        let left = self.fill(context, &order)?;
        if left == 0 {
            return Ok(());
        }
        if order.good_for_ms == Some(0) {
            context.emit(Report::Expired { id: order.id, quantity: left });
            return Ok(());
        }
        self.rest(context, &order, left)
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, Report>,
        _instrument: &String,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        for side in [Side::Buy, Side::Sell] {
            for (place, resting) in self.side(side).entries(context)? {
                if resting.expires_ms.is_some_and(|expires_ms| expires_ms <= timer.time_ms) {
                    self.side(side).remove(context, &place)?;
                    let Resting { id, quantity, .. } = resting;
                    context.emit(Report::Expired { id, quantity });
                }
            }
        }
        Ok(())
    }
}

/// Partitions of the topics, which are made at the first start.
const PARTITIONS: u32 = 4;

fn topology() -> Topology {
    let topology = Topology::new("order-matching");
    for topic in ["orders", "reports", "rejected-orders"] {
        topology.create(topic, PARTITIONS);
    }
    let rejected = SideOutput::new();
    let reports = topology
        .source("orders", Json::<Order>::new())
        .key_by("instrument", Utf8, Json::new(), |order| order.instrument.clone())
        .process("book", Book::new(&rejected));
    reports.sink("reports", Json::new());
    rejected.stream(&reports).sink("rejected-orders", Json::new());
    topology
}

fn main() -> process::ExitCode {
    Daemon::from_args().topology(topology()).run()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidemill::driver::{TestDriver, TestRecord};

    use super::*;

    fn driver() -> TestDriver {
        TestDriver::new(2, vec![topology()]).expect("good")
    }

    /// Of `ID INSTRUMENT SIDE PRICE QUANTITY`, with the milliseconds that it is good for behind it.
    fn order(words: &str) -> TestRecord {
        let words: Vec<&str> = words.split(' ').collect();
        let [id, instrument, side, price, quantity] = words[..5] else { panic!("five words") };
        let good_for = match words.get(5) {
            Some(good_for_ms) => format!(r#","good_for_ms":{good_for_ms}"#),
            None => String::new(),
        };
        let order = format!(
            r#"{{"id":"{id}","instrument":"{instrument}","side":"{side}","price":{price},"quantity":{quantity}{good_for}}}"#
        );
        TestRecord::new(id, &order, 1)
    }

    fn place(driver: &mut TestDriver, orders: &[&str]) {
        let orders: Vec<TestRecord> = orders.iter().map(|words| order(words)).collect();
        driver.pipe_in("orders", &orders).expect("the power is there");
    }

    /// Reports in few words.
    fn reports(driver: &mut TestDriver) -> Vec<String> {
        let told = |record: &TestRecord| {
            let value = record.value.as_deref().expect("a report");
            let report: Report = serde_json::from_slice(value).expect("as it was written");
            match report {
                Report::Fill { price, quantity, buy, sell } => {
                    format!("{buy} takes {quantity} of {sell} at {price}")
                }
                Report::Expired { id, quantity } => format!("{quantity} of {id} expired"),
            }
        };
        driver.pipe_out("reports").iter().map(told).collect()
    }

    #[test]
    fn better_prices_match_first_and_then_older_orders() {
        let mut driver = driver();
        let sells = ["s1 X sell 102 5", "s2 X sell 101 5", "s3 X sell 101 5", "s4 X sell 103 5"];
        place(&mut driver, &sells);
        assert_eq!(reports(&mut driver), [""; 0], "nobody buys");
        place(&mut driver, &["b1 X buy 102 12"]);
        let of_the_best = ["b1 takes 5 of s2 at 101", "b1 takes 5 of s3 at 101"];
        let of_the_next = "b1 takes 2 of s1 at 102";
        assert_eq!(reports(&mut driver), [&of_the_best[..], &[of_the_next]].concat());
        place(&mut driver, &["b2 X buy 100 4", "b3 X buy 101 4", "s5 X sell 100 6"]);
        let expected = ["b3 takes 4 of s5 at 101", "b2 takes 2 of s5 at 100"];
        assert_eq!(reports(&mut driver), expected, "the best price that is bid, not the lowest");
        assert_eq!(driver.paused(), []);
    }

    #[test]
    fn instruments_have_books_of_their_own() {
        let mut driver = driver();
        let sells: Vec<String> = (0..8).map(|it| format!("s{it} I{it} sell 10 1")).collect();
        let buys: Vec<String> = (0..8).map(|it| format!("b{it} I{it} buy 10 2")).collect();
        for orders in [&sells, &buys] {
            place(&mut driver, &orders.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let mut told = reports(&mut driver);
        told.sort();
        let expected: Vec<String> =
            (0..8).map(|it| format!("b{it} takes 1 of s{it} at 10")).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn what_is_not_filled_in_time_expires() {
        let mut driver = driver();
        place(&mut driver, &["s1 X sell 10 5 1000", "s2 X sell 10 5 3000", "b1 X buy 10 2"]);
        assert_eq!(reports(&mut driver), ["b1 takes 2 of s1 at 10"]);
        driver.advance(Duration::from_millis(999));
        assert_eq!(reports(&mut driver), [""; 0]);
        driver.advance(Duration::from_millis(1));
        assert_eq!(reports(&mut driver), ["3 of s1 expired"]);
        place(&mut driver, &["b2 X buy 10 6 0"]);
        assert_eq!(reports(&mut driver), ["b2 takes 5 of s2 at 10", "1 of b2 expired"]);
        driver.advance(Duration::from_secs(5));
        assert_eq!(reports(&mut driver), [""; 0], "nothing is left of s2");
    }

    #[test]
    fn an_order_that_makes_no_sense_is_rejected_and_changes_nothing() {
        let mut driver = driver();
        place(&mut driver, &["s1 X sell 10 0", "s2 X sell 0 10", "b1 X buy 10 1"]);
        let rejected: Vec<String> =
            driver.pipe_out("rejected-orders").iter().map(TestRecord::text).collect();
        let expected = [
            r#"X={"id":"s1","reason":"the quantity is zero"}"#,
            r#"X={"id":"s2","reason":"the price is zero"}"#,
        ];
        assert_eq!(rejected, expected);
        assert_eq!(reports(&mut driver), [""; 0]);
    }

    #[test]
    fn no_power_cut_fills_twice_or_forgets_what_expires() {
        let orders =
            ["s1 X sell 10 5 500", "s2 Y sell 10 5 700", "b1 X buy 10 3", "b2 Y buy 10 6 0"];
        let orders: Vec<TestRecord> = orders.iter().map(|words| order(words)).collect();
        // Takes what is not there yet, and waits for what expires. False: the power went.
        let go_on = |driver: &mut TestDriver| {
            driver.rewind();
            let there = driver.pipe_out("orders").len();
            if driver.pipe_in("orders", &orders[there..]).is_ok() {
                driver.advance(Duration::from_secs(1));
            }
            !driver.is_down()
        };
        let expected = [
            "1 of b2 expired",
            "2 of s1 expired",
            "b1 takes 3 of s1 at 10",
            "b2 takes 5 of s2 at 10",
        ];
        let mut cuts = 0;
        for write in 1.. {
            let mut driver = driver();
            driver.crash_at_write(write);
            if go_on(&mut driver) {
                break;
            }
            cuts += 1;
            driver.restart().expect("it comes back");
            assert!(go_on(&mut driver), "the power is there");
            let mut told = reports(&mut driver);
            told.sort();
            assert_eq!(told, expected, "a cut at write {write}");
        }
        assert!(cuts > 5, "{cuts} cuts");
    }
}
