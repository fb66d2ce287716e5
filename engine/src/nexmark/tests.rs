//! Each query on a few events, on two shards, with the rows that it has to give.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::Duration;

use ::nexmark::event::{Auction, Bid, Person};
use bytes::Bytes;
use serde::Serialize;

use super::*;
use crate::config::{Action, LoadError};
use crate::driver::{TestDriver, TestRecord};

/// An event: which input topic, and its JSON.
type Event = (usize, String);

fn event(topic: usize, event: &impl Serialize) -> Event {
    (topic, serde_json::to_string(event).expect("an event"))
}

fn person(id: usize, state: &str, at_ms: u64) -> Event {
    let person = Person {
        id,
        name: format!("name {id}"),
        email_address: String::new(),
        credit_card: String::new(),
        city: "town".to_owned(),
        state: state.to_owned(),
        date_time: BASE_TIME_MS + at_ms,
        extra: String::new(),
    };
    event(0, &person)
}

fn auction(id: usize, seller: usize, category: usize, at_ms: u64) -> Event {
    let auction = Auction {
        id,
        item_name: format!("item {id}"),
        description: "fine".to_owned(),
        initial_bid: 1,
        reserve: 2,
        date_time: BASE_TIME_MS + at_ms,
        expires: BASE_TIME_MS + at_ms + 5000,
        seller,
        category,
        extra: "a".to_owned(),
    };
    event(1, &auction)
}

fn bid(auction: usize, bidder: usize, price: usize, at_ms: u64) -> Event {
    let url = "https://www.nexmark.com/one/two/three/item.htm?query=1".to_owned();
    bid_with_url(auction, bidder, price, at_ms, url)
}

fn bid_with_url(auction: usize, bidder: usize, price: usize, at_ms: u64, url: String) -> Event {
    let bid = Bid {
        auction,
        bidder,
        price,
        channel: "Google".to_owned(),
        url,
        date_time: BASE_TIME_MS + at_ms,
        extra: "acc".to_owned(),
    };
    event(2, &bid)
}

fn driver(name: &str) -> TestDriver {
    let queries = Query::chosen([name]);
    let [query] = queries[..] else { panic!("{name} is {} queries", queries.len()) };
    TestDriver::new(2, vec![query.topology(2)]).expect("a good topology")
}

fn write(driver: &mut TestDriver, events: &[Event]) {
    for (topic, value) in events {
        let value = Some(Bytes::copy_from_slice(value.as_bytes()));
        let record = TestRecord { value, timestamp_ms: 1, ..TestRecord::default() };
        driver.pipe_in(INPUT_TOPICS[*topic], &[record]).expect("the power is there");
    }
}

/// Ends the input of every partition.
fn flush(driver: &mut TestDriver) {
    let end = TestRecord { timestamp_ms: 1, ..TestRecord::default() };
    for topic in INPUT_TOPICS {
        // Records without a key go round the partitions.
        driver.pipe_in(topic, &[end.clone(), end.clone()]).expect("the power is there");
    }
}

/// All rows since the last time, as `key=row`, with times counted from the first event's.
fn rows(driver: &mut TestDriver, name: &str) -> Vec<String> {
    assert_eq!(driver.paused(), []);
    let records = driver.pipe_out(&format!("nexmark-{name}"));
    records.iter().map(|record| relative(&record.text())).collect()
}

fn relative(text: &str) -> String {
    let mut parts = text.split("17672");
    let mut relative = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let time: u64 = format!("17672{}", &part[..8]).parse().expect("a time of 13 digits");
        relative.push_str(&format!("+{}{}", time - BASE_TIME_MS, &part[8..]));
    }
    relative
}

/// Runs a query to the end of these events, and compares its rows in any order.
fn check<S: AsRef<str>>(name: &str, events: &[Event], expected: &[S]) {
    let mut driver = driver(name);
    write(&mut driver, events);
    flush(&mut driver);
    let mut rows = rows(&mut driver, name);
    rows.sort();
    let mut expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
    expected.sort_unstable();
    assert_eq!(rows, expected);
}

/// The same for a query that updates: the last row of each key counts.
fn check_last<S: AsRef<str>>(name: &str, events: &[Event], expected: &[S]) {
    let mut driver = driver(name);
    write(&mut driver, events);
    flush(&mut driver);
    let rows = rows(&mut driver, name);
    let last: BTreeMap<&str, &str> = rows.iter().filter_map(|row| row.split_once('=')).collect();
    let expected: BTreeMap<&str, &str> =
        expected.iter().filter_map(|row| row.as_ref().split_once('=')).collect();
    assert_eq!(last, expected);
}

#[test]
fn q0_tells_every_bid() {
    check(
        "q0",
        &[bid(1, 2, 300, 0), bid(2, 3, 400, 1)],
        &[
            r#"={"auction":1,"bidder":2,"price":300,"dateTime":+0,"extra":"acc"}"#,
            r#"={"auction":2,"bidder":3,"price":400,"dateTime":+1,"extra":"acc"}"#,
        ],
    );
}

#[test]
fn q1_tells_prices_in_euros_to_the_thousandth() {
    check(
        "q1",
        &[bid(1, 2, 300, 0), bid(1, 2, 12_345_678, 0)],
        &[
            r#"={"auction":1,"bidder":2,"price":272.4,"dateTime":+0,"extra":"acc"}"#,
            r#"={"auction":1,"bidder":2,"price":11209875.624,"dateTime":+0,"extra":"acc"}"#,
        ],
    );
}

#[test]
fn q2_tells_bids_of_some_auctions() {
    check(
        "q2",
        &[bid(123, 2, 300, 0), bid(124, 2, 301, 0), bid(246, 2, 302, 0)],
        &[r#"={"auction":123,"price":300}"#, r#"={"auction":246,"price":302}"#],
    );
}

#[test]
fn q3_joins_whichever_comes_first() {
    check(
        "q3",
        &[
            auction(7, 1, 10, 0),
            auction(8, 1, 11, 0),
            auction(10, 2, 10, 0),
            person(1, "or", 1),
            person(2, "wa", 1),
            auction(9, 1, 10, 2),
            auction(11, 2, 10, 2),
        ],
        &[
            r#"1={"name":"name 1","city":"town","state":"or","id":7}"#,
            r#"1={"name":"name 1","city":"town","state":"or","id":9}"#,
        ],
    );
}

/// Two auctions, of which one is bid for before it is known, and bids that are no bids.
fn contested() -> [Event; 8] {
    [
        bid(1, 5, 300, 2000),
        auction(1, 9, 10, 1000),
        bid(1, 6, 200, 2500),
        bid(1, 7, 300, 3000),
        bid(1, 8, 900, 6001),
        auction(2, 9, 10, 1000),
        bid(2, 5, 101, 6000),
        bid(2, 5, 999, 999),
    ]
}

#[test]
fn q4_tells_the_average_of_the_winning_bids() {
    check_last("q4", &contested(), &[r#"10={"id":10,"final":200}"#]);
}

#[test]
fn q5_tells_all_auctions_with_the_most_bids_of_each_window() {
    let mut expected = Vec::new();
    for end_ms in (2000..=10_000).step_by(2000) {
        expected.push(format!(r#"+{end_ms}={{"auction":1,"num":2}}"#));
    }
    for end_ms in (14_000..=22_000).step_by(2000) {
        expected.push(format!(r#"+{end_ms}={{"auction":2,"num":1}}"#));
        expected.push(format!(r#"+{end_ms}={{"auction":3,"num":1}}"#));
    }
    let bids = [
        bid(1, 5, 100, 0),
        bid(2, 5, 100, 1),
        bid(1, 6, 100, 1999),
        bid(2, 5, 100, 12_000),
        bid(3, 5, 100, 13_999),
    ];
    check("q5", &bids, &expected);
}

#[test]
fn q7_tells_the_highest_bids_of_each_window_with_both_borders() {
    check(
        "q7",
        &[
            bid(1, 5, 100, 0),
            bid(2, 5, 300, 1),
            bid(3, 6, 300, 9999),
            bid(4, 7, 300, 10_000),
            bid(5, 7, 299, 10_001),
        ],
        &[
            r#"+10000={"auction":2,"bidder":5,"price":300,"dateTime":+1,"extra":"acc"}"#,
            r#"+10000={"auction":3,"bidder":6,"price":300,"dateTime":+9999,"extra":"acc"}"#,
            r#"+10000={"auction":4,"bidder":7,"price":300,"dateTime":+10000,"extra":"acc"}"#,
            r#"+20000={"auction":4,"bidder":7,"price":300,"dateTime":+10000,"extra":"acc"}"#,
        ],
    );
}

#[test]
fn q8_tells_who_sells_in_the_window_of_joining() {
    check(
        "q8",
        &[
            person(1, "or", 1000),
            auction(1, 1, 10, 2000),
            auction(2, 1, 10, 3000),
            person(2, "or", 1000),
            auction(3, 2, 10, 10_000),
            auction(4, 3, 10, 0),
            person(3, "or", 9999),
        ],
        &[r#"1={"id":1,"name":"name 1","stime":+0}"#, r#"3={"id":3,"name":"name 3","stime":+0}"#],
    );
}

#[test]
fn q9_tells_the_first_of_the_highest_bids_while_the_auction_is_open() {
    check_last(
        "q9",
        &contested(),
        &[
            concat!(
                r#"1={"id":1,"itemName":"item 1","description":"fine","initialBid":1,"reserve":2,"#,
                r#""dateTime":+1000,"expires":+6000,"seller":9,"category":10,"extra":"a","#,
                r#""auction":1,"bidder":5,"price":300,"bid_dateTime":+2000,"bid_extra":"acc"}"#
            ),
            concat!(
                r#"2={"id":2,"itemName":"item 2","description":"fine","initialBid":1,"reserve":2,"#,
                r#""dateTime":+1000,"expires":+6000,"seller":9,"category":10,"extra":"a","#,
                r#""auction":2,"bidder":5,"price":101,"bid_dateTime":+6000,"bid_extra":"acc"}"#
            ),
        ],
    );
}

#[test]
fn q11_ends_a_session_after_more_than_the_gap() {
    check(
        "q11",
        &[
            bid(1, 5, 100, 0),
            bid(2, 5, 100, 10_000),
            bid(1, 6, 100, 15_000),
            bid(1, 5, 100, 20_001),
        ],
        &[
            r#"5={"bidder":5,"bid_count":2,"starttime":+0,"endtime":+20000}"#,
            r#"6={"bidder":6,"bid_count":1,"starttime":+15000,"endtime":+25000}"#,
            r#"5={"bidder":5,"bid_count":1,"starttime":+20001,"endtime":+30001}"#,
        ],
    );
}

#[test]
fn q12_counts_by_the_clock() {
    let mut driver = driver("q12");
    write(&mut driver, &[bid(1, 5, 100, 0), bid(2, 5, 100, 60_000), bid(1, 6, 100, 0)]);
    assert_eq!(rows(&mut driver, "q12"), [""; 0], "the window is open");
    driver.advance(Duration::from_secs(10));
    let mut told = rows(&mut driver, "q12");
    told.sort();
    assert_eq!(
        told,
        [
            r#"5={"bidder":5,"bid_count":2,"starttime":0,"endtime":10000}"#,
            r#"6={"bidder":6,"bid_count":1,"starttime":0,"endtime":10000}"#,
        ]
    );
    write(&mut driver, &[bid(1, 5, 100, 0)]);
    driver.advance(Duration::from_secs(10));
    assert_eq!(
        rows(&mut driver, "q12"),
        [r#"5={"bidder":5,"bid_count":1,"starttime":10000,"endtime":20000}"#]
    );
}

#[test]
fn q14_knows_the_time_of_day() {
    // The first event is ten seconds before midnight.
    let hours = |count: u64| count * 3_600_000;
    let row = |price: &str, time_type: &str, at_ms: u64| {
        format!(
            r#"={{"auction":1,"bidder":2,"price":{price},"bidTimeType":"{time_type}","dateTime":+{at_ms},"extra":"acc","c_counts":2}}"#
        )
    };
    check(
        "q14",
        &[
            bid(1, 2, 2_000_000, 0),
            bid(1, 2, 1_101_321, hours(1)),
            bid(1, 2, 1_101_322, hours(8)),
            bid(1, 2, 55_066_079, hours(9)),
            bid(1, 2, 55_066_080, hours(9)),
        ],
        &[
            row("1816000.0", "nightTime", 0),
            row("1000000.376", "otherTime", hours(8)),
            row("49999999.732", "dayTime", hours(9)),
        ],
    );
}

/// Bids of all ranges of prices on one day, and one on the next.
fn varied() -> [Event; 5] {
    [
        bid(1, 5, 9999, 0),
        bid(2, 5, 10_000, 1),
        bid(1, 6, 1_000_000, 2),
        bid(1, 6, 1_000_001, 9999),
        bid(1, 5, 100, 10_000),
    ]
}

const FIRST_DAY: &str = concat!(
    r#""total_bids":4,"rank1_bids":1,"rank2_bids":1,"rank3_bids":2,"#,
    r#""total_bidders":2,"rank1_bidders":1,"rank2_bidders":1,"rank3_bidders":1,"#,
    r#""total_auctions":2,"rank1_auctions":1,"rank2_auctions":1,"rank3_auctions":1}"#
);

const SECOND_DAY: &str = concat!(
    r#""total_bids":1,"rank1_bids":1,"rank2_bids":0,"rank3_bids":0,"#,
    r#""total_bidders":1,"rank1_bidders":1,"rank2_bidders":0,"rank3_bidders":0,"#,
    r#""total_auctions":1,"rank1_auctions":1,"rank2_auctions":0,"rank3_auctions":0}"#
);

#[test]
fn q15_counts_each_once_a_day() {
    check_last(
        "q15",
        &varied(),
        &[
            format!(r#"2025-12-31={{"day":"2025-12-31",{FIRST_DAY}"#),
            format!(r#"2026-01-01={{"day":"2026-01-01",{SECOND_DAY}"#),
        ],
    );
}

#[test]
fn q16_counts_each_once_a_channel_and_day() {
    let row = |day: &str, minute: &str, tally: &str| {
        format!(r#"Google, {day}={{"channel":"Google","day":"{day}","minute":"{minute}",{tally}"#)
    };
    check_last(
        "q16",
        &varied(),
        &[row("2025-12-31", "23:59", FIRST_DAY), row("2026-01-01", "00:00", SECOND_DAY)],
    );
}

#[test]
fn q17_knows_the_prices_of_an_auction_and_day() {
    check_last(
        "q17",
        &[bid(1, 5, 100, 0), bid(1, 6, 10_301, 1), bid(1, 5, 7, 10_000)],
        &[
            concat!(
                r#"1, 2025-12-31={"auction":1,"day":"2025-12-31","#,
                r#""total_bids":2,"rank1_bids":1,"rank2_bids":1,"rank3_bids":0,"#,
                r#""min_price":100,"max_price":10301,"avg_price":5200,"sum_price":10401}"#
            ),
            concat!(
                r#"1, 2026-01-01={"auction":1,"day":"2026-01-01","#,
                r#""total_bids":1,"rank1_bids":1,"rank2_bids":0,"rank3_bids":0,"#,
                r#""min_price":7,"max_price":7,"avg_price":7,"sum_price":7}"#
            ),
        ],
    );
}

#[test]
fn q18_tells_the_latest_bid_whatever_comes_last() {
    let row = |bidder: usize, price: usize, at_ms: u64| {
        format!(
            r#"{bidder}, 1={{"auction":1,"bidder":{bidder},"price":{price},"channel":"Google","url":"u","dateTime":+{at_ms},"extra":"acc"}}"#
        )
    };
    let bid = |bidder, price, at_ms| bid_with_url(1, bidder, price, at_ms, "u".to_owned());
    check_last(
        "q18",
        &[bid(5, 100, 7), bid(6, 200, 8), bid(5, 300, 6)],
        &[row(5, 100, 7), row(6, 200, 8)],
    );
}

#[test]
fn q19_ranks_the_ten_highest_bids() {
    let events: Vec<Event> =
        (1..=12).map(|price| bid_with_url(1, 5, price, price as u64, "u".to_owned())).collect();
    let expected: Vec<String> = (1..=10)
        .map(|rank| {
            let price = 13 - rank;
            format!(
                r#"1, {rank}={{"auction":1,"bidder":5,"price":{price},"channel":"Google","url":"u","dateTime":+{price},"extra":"acc","rank_number":{rank}}}"#
            )
        })
        .collect();
    check_last("q19", &events, &expected);
}

#[test]
fn q20_expands_bids_before_and_after_their_auction() {
    let row = |price: usize, at_ms: u64| {
        format!(
            concat!(
                r#"1={{"auction":1,"bidder":5,"price":{},"channel":"Google","url":"u","#,
                r#""bid_dateTime":+{},"bid_extra":"acc","itemName":"item 1","description":"fine","#,
                r#""initialBid":1,"reserve":2,"auction_dateTime":+1,"expires":+5001,"seller":9,"#,
                r#""category":10,"auction_extra":"a"}}"#
            ),
            price, at_ms
        )
    };
    let bid = |auction, price, at_ms| bid_with_url(auction, 5, price, at_ms, "u".to_owned());
    check(
        "q20",
        &[
            bid(1, 100, 0),
            bid(2, 200, 0),
            auction(1, 9, 10, 1),
            auction(2, 9, 11, 1),
            bid(1, 300, 90_000),
            bid(2, 400, 2),
        ],
        &[row(100, 0), row(300, 90_000)],
    );
}

#[test]
fn q22_takes_links_apart() {
    check(
        "q22",
        &[bid(1, 2, 300, 0), bid_with_url(1, 2, 301, 0, "https://www.nexmark.com/one".to_owned())],
        &[
            r#"={"auction":1,"bidder":2,"price":300,"channel":"Google","dir1":"one","dir2":"two","dir3":"three"}"#,
            r#"={"auction":1,"bidder":2,"price":301,"channel":"Google","dir1":"one","dir2":null,"dir3":null}"#,
        ],
    );
}

#[test]
fn what_is_no_event_goes_to_the_dead_letters() {
    let mut driver = driver("q2");
    write(&mut driver, &[(2, "no bid".to_owned()), bid(123, 2, 300, 0)]);
    assert_eq!(rows(&mut driver, "q2"), [r#"={"auction":123,"price":300}"#]);
    let dead = driver.pipe_out("nexmark-q2-dead");
    assert_eq!(dead.iter().map(TestRecord::text).collect::<Vec<_>>(), ["=no bid"]);
}

#[test]
fn an_auction_does_not_outlive_its_end() {
    let mut driver = driver("q9");
    write(&mut driver, &contested());
    flush(&mut driver);
    assert!(!rows(&mut driver, "q9").is_empty());
    write(&mut driver, &[bid(1, 5, 1_000_000, 3000), bid(1, 5, 1_000_000, 3000)]);
    assert_eq!(rows(&mut driver, "q9"), [""; 0], "it is late, and nothing is remembered");
}

#[test]
fn the_same_events_come_each_time_a_millisecond_apart() {
    let events: Vec<Written> = generate().take(200).collect();
    assert!(generate().take(200).eq(events.iter().cloned()));
    let times = events.iter().map(|event| event.time_ms as u64 - BASE_TIME_MS);
    assert!(times.eq(0..200));
    let of = |topic| events.iter().filter(|event| event.topic == topic).count();
    assert_eq!([of(0), of(1), of(2)], [4, 12, 184]);
    let first: Person = serde_json::from_slice(&events[0].value).expect("a person");
    assert_eq!((first.id, first.date_time), (1000, BASE_TIME_MS));
}

#[test]
fn queries_are_found_by_name() {
    let names = |chosen: &[&str]| -> Vec<&str> {
        Query::chosen(chosen.iter().copied()).iter().map(|query| query.name).collect()
    };
    assert_eq!(names(&["q8", "q5", "q8"]), ["q5", "q8"]);
    assert_eq!(names(&["all"]).len(), QUERIES.len());
    let distinct: BTreeSet<&str> = QUERIES.iter().map(|query| query.name).collect();
    assert_eq!(distinct.len(), QUERIES.len());
    for query in &QUERIES {
        query.topology(1).build().expect("every query is a good topology");
    }
}

#[test]
fn the_help_names_every_query_and_what_it_tells() {
    let help = feed::command().render_long_help().to_string();
    for query in &QUERIES {
        let lines = help.lines().filter(|line| line.contains(query.about));
        let names = lines.filter(|line| line.contains(&format!(" {}:", query.name)));
        assert_eq!(names.count(), 1, "{}:\n{help}", query.name);
    }
}

#[test]
fn the_command_takes_the_flags_of_the_node_too() {
    let ask = |arguments: &[&str]| {
        let arguments = ["tidemill"].iter().chain(arguments).map(OsString::from);
        let missing = |_: &Path| Err(io::ErrorKind::NotFound.into());
        Action::with_commands([feed::command()], arguments, [], missing)
    };
    let arguments = ["nexmark", "--query", "q5,q8", "--shards", "3", "--events", "7"];
    let Ok((Action::Serve(config), Some(own))) = ask(&arguments) else { panic!("it serves") };
    assert_eq!((config.shards.resolve(), &*own.name), (3, "nexmark"));
    let queries: Vec<&String> = own.arguments.get_many("query").expect("two").collect();
    assert_eq!(queries, ["q5", "q8"]);
    assert!(matches!(ask(&["--shards", "3"]), Ok((Action::Serve(_), None))));
    for wrong in [
        &["nexmark"][..],
        &["nexmark", "--query", "q6"],
        &["nexmark", "--query", "q5", "--flush"],
        &["nexmark", "--query", "q5", "--from-topics", "--events", "1"],
    ] {
        assert!(matches!(ask(wrong), Err(LoadError::Usage(_))), "{wrong:?}");
    }
}
