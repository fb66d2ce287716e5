//! Queries over two kinds of events: q3, q8, q20.

use ::nexmark::event::{Auction, Bid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Number, auctions, bids, persons};
use crate::topology::{
    Context, Either, FiredTimer, Int64, Json, Keyed, MapState, Operator, OperatorError, States,
    TimeDomain, Topology, ValueState,
};

/// The category that q3 and q20 are about.
const CATEGORY: usize = 10;

/// Length of the windows of q8, in milliseconds.
const WINDOW_MS: i64 = 10_000;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Seller {
    id: usize,
    name: String,
    city: String,
    state: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Offer {
    seller: usize,
    id: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Suggestion {
    name: String,
    city: String,
    state: String,
    id: usize,
}

pub(super) fn q3(topology: &Topology, to: &str) {
    let sellers = persons(topology)
        .map(|it| Seller { id: it.id, name: it.name, city: it.city, state: it.state })
        .key_by("seller", Number, Json::<Seller>::new(), |seller| seller.id)
        // The crate writes states in small letters, the reference in capital ones.
        .map(|_, seller| {
            let is_near =
                ["or", "id", "ca"].iter().any(|state| seller.state.eq_ignore_ascii_case(state));
            is_near.then_some(seller)
        });
    let offers = auctions(topology)
        .filter(|auction| auction.category == CATEGORY)
        .map(|auction| Offer { seller: auction.seller, id: auction.id })
        .key_by("offer", Number, Json::<Offer>::new(), |offer| offer.seller);
    one_to_many("suggest", &sellers, &offers, |seller: &Seller, offer: Offer| Suggestion {
        name: seller.name.clone(),
        city: seller.city.clone(),
        state: seller.state.clone(),
        id: offer.id,
    })
    .sink(to, Json::<Suggestion>::new());
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Expanded {
    auction: usize,
    bidder: usize,
    price: usize,
    channel: String,
    url: String,
    #[serde(rename = "bid_dateTime")]
    bid_date_time: u64,
    bid_extra: String,
    #[serde(rename = "itemName")]
    item_name: String,
    description: String,
    #[serde(rename = "initialBid")]
    initial_bid: usize,
    reserve: usize,
    #[serde(rename = "auction_dateTime")]
    auction_date_time: u64,
    expires: u64,
    seller: usize,
    category: usize,
    auction_extra: String,
}

pub(super) fn q20(topology: &Topology, to: &str) {
    let auctions = auctions(topology)
        .key_by("auction", Number, Json::<Auction>::new(), |auction| auction.id)
        .map(|_, auction| (auction.category == CATEGORY).then_some(auction));
    let bids = bids(topology).key_by("bid", Number, Json::<Bid>::new(), |bid| bid.auction);
    one_to_many("expand", &auctions, &bids, |auction: &Auction, bid: Bid| Expanded {
        auction: bid.auction,
        bidder: bid.bidder,
        price: bid.price,
        channel: bid.channel,
        url: bid.url,
        bid_date_time: bid.date_time,
        bid_extra: bid.extra,
        item_name: auction.item_name.clone(),
        description: auction.description.clone(),
        initial_bid: auction.initial_bid,
        reserve: auction.reserve,
        auction_date_time: auction.date_time,
        expires: auction.expires,
        seller: auction.seller,
        category: auction.category,
        auction_extra: auction.extra.clone(),
    })
    .sink(to, Json::<Expanded>::new());
}

/// Every pair of the one value that a key has on the left, and its many on the right, whichever comes
/// first. Time does not matter: like the reference's join, it remembers for ever. `None` on the left
/// is a value that pairs with nothing, so that nobody waits for it.
fn one_to_many<L, R, U>(
    name: &str,
    left: &Keyed<Number, Option<L>>,
    right: &Keyed<Number, R>,
    pair: impl Fn(&L, R) -> U + Send + Sync + 'static,
) -> Keyed<Number, U>
where
    L: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    R: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    U: Clone + Send + 'static,
{
    let operator = OneToMany::<L, R, U> {
        one: ValueState::new("one", Json::new()),
        waiting: MapState::new("waiting", Int64, Json::new()),
        next: ValueState::new("next", Int64),
        pair: Box::new(pair),
    };
    let left = left.map(|_, one| Either::Left(one));
    left.union(&right.map(|_, many| Either::Right(many))).process(name, operator)
}

type Pair<L, R, U> = Box<dyn Fn(&L, R) -> U + Send + Sync>;

struct OneToMany<L, R, U> {
    one: ValueState<Json<Option<L>>>,
    /// What came before the one, by number.
    waiting: MapState<Int64, Json<R>>,
    next: ValueState<Int64>,
    pair: Pair<L, R, U>,
}

impl<L, R, U> Operator for OneToMany<L, R, U>
where
    L: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    R: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    U: Clone + Send + 'static,
{
    type Key = usize;
    type In = Either<Option<L>, R>;
    type Out = U;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.one);
        states.declare(&self.waiting);
        states.declare(&self.next);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, U>,
        _key: &usize,
        value: Self::In,
    ) -> Result<(), OperatorError> {
        let known = self.one.get(context)?;
        match (value, known) {
            // Ids are unique: the first counts.
            (Either::Left(_), Some(_)) | (Either::Right(_), Some(None)) => Ok(()),
            (Either::Left(one), None) => {
                for (_, many) in self.waiting.entries(context)? {
                    if let Some(one) = &one {
                        context.emit((self.pair)(one, many));
                    }
                }
                self.waiting.clear(context)?;
                self.next.clear(context)?;
                self.one.set(context, &one)
            }
            (Either::Right(many), Some(Some(one))) => {
                context.emit((self.pair)(&one, many));
                Ok(())
            }
            (Either::Right(many), None) => {
                let number = self.next.get(context)?.unwrap_or(0);
                self.waiting.insert(context, &number, &many)?;
                self.next.set(context, &(number + 1))
            }
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Joined {
    id: usize,
    name: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sold {
    seller: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct NewSeller {
    id: usize,
    name: String,
    stime: i64,
}

pub(super) fn q8(topology: &Topology, to: &str) {
    let joined = persons(topology)
        .map(|person| Joined { id: person.id, name: person.name })
        .key_by("joined", Number, Json::<Joined>::new(), |joined| joined.id)
        .map(|_, joined| Either::Left(joined));
    let sold = auctions(topology)
        .map(|auction| Sold { seller: auction.seller })
        .key_by("sold", Number, Json::<Sold>::new(), |sold| sold.seller)
        .map(|_, sold| Either::Right(sold));
    let windows = MapState::new("windows", Int64, Json::new());
    joined
        .union(&sold)
        .process("new sellers", NewSellers { windows })
        .sink(to, Json::<NewSeller>::new());
}

/// What a window has seen of a person.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Seen {
    names: Vec<String>,
    has_sold: bool,
}

struct NewSellers {
    /// By their beginning.
    windows: MapState<Int64, Json<Seen>>,
}

impl Operator for NewSellers {
    type Key = usize;
    type In = Either<Joined, Sold>;
    type Out = NewSeller;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.windows);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, NewSeller>,
        _key: &usize,
        value: Self::In,
    ) -> Result<(), OperatorError> {
        let start_ms = context.timestamp_ms().div_euclid(WINDOW_MS) * WINDOW_MS;
        let last_ms = start_ms + WINDOW_MS - 1;
        if last_ms <= context.watermark_ms() {
            context.count_late();
            return Ok(());
        }
        let mut seen = self.windows.get(context, &start_ms)?.unwrap_or_default();
        match value {
            Either::Left(joined) if !seen.names.contains(&joined.name) => {
                seen.names.push(joined.name);
            }
            Either::Left(_) => {}
            Either::Right(_) => seen.has_sold = true,
        }
        self.windows.insert(context, &start_ms, &seen)?;
        context.set_timer(TimeDomain::Event, last_ms);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, NewSeller>,
        id: &usize,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let stime = timer.time_ms + 1 - WINDOW_MS;
        let seen = self.windows.get(context, &stime)?.unwrap_or_default();
        self.windows.remove(context, &stime)?;
        for name in seen.names.into_iter().filter(|_| seen.has_sold) {
            context.emit(NewSeller { id: *id, name, stime });
        }
        Ok(())
    }
}
