"""Asks DuckDB what the queries of Nexmark have to tell, and compares it with what they told.

    nexmark_oracle.py BROKER EVENT_COUNT START_MS QUERY,QUERY,...

Events are read from the topics that the node read them from, rows from the topics that it wrote, both
with librdkafka. Rows are compared as multisets; of a query that updates, the last row of each key. q12
counts by the node's clock, which only its rows know: these have to be whole windows between START_MS and
now, one for each bidder and window, with all bids in them. Status 1 says that something differs.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from decimal import Decimal

import duckdb
from confluent_kafka import Consumer, KafkaError, TopicPartition

# Longest wait for rows that are still to come: those of windows on the clock are ten seconds long.
PATIENCE_S = 60
CLOCK_WINDOW_MS = 10_000

INPUTS = {
    "person": "id BIGINT, name VARCHAR, email_address VARCHAR, credit_card VARCHAR, city VARCHAR, "
    "state VARCHAR, date_time BIGINT, extra VARCHAR",
    "auction": "id BIGINT, item_name VARCHAR, description VARCHAR, initial_bid BIGINT, "
    "reserve BIGINT, date_time BIGINT, expires BIGINT, seller BIGINT, category BIGINT, extra VARCHAR",
    "bid": "auction BIGINT, bidder BIGINT, price BIGINT, channel VARCHAR, url VARCHAR, "
    "date_time BIGINT, extra VARCHAR",
}

VIEWS = """
CREATE VIEW dated AS
  SELECT *, strftime(make_timestamp(date_time * 1000), '%Y-%m-%d') AS day,
    strftime(make_timestamp(date_time * 1000), '%H:%M') AS hour_and_minute
  FROM bid;
CREATE VIEW won AS
  SELECT A.*, B.auction, B.bidder, B.price, B.date_time AS bid_time, B.extra AS bid_extra,
    row_number() OVER (
      PARTITION BY A.id ORDER BY B.price DESC, B.date_time, B.bidder, B.extra) AS place
  FROM auction A JOIN bid B ON A.id = B.auction AND B.date_time BETWEEN A.date_time AND A.expires
"""

TALLY = """
    count(*) AS total_bids,
    count(*) FILTER (price < 10000) AS rank1_bids,
    count(*) FILTER (price >= 10000 AND price < 1000000) AS rank2_bids,
    count(*) FILTER (price >= 1000000) AS rank3_bids,
    count(DISTINCT bidder) AS total_bidders,
    count(DISTINCT bidder) FILTER (price < 10000) AS rank1_bidders,
    count(DISTINCT bidder) FILTER (price >= 10000 AND price < 1000000) AS rank2_bidders,
    count(DISTINCT bidder) FILTER (price >= 1000000) AS rank3_bidders,
    count(DISTINCT auction) AS total_auctions,
    count(DISTINCT auction) FILTER (price < 10000) AS rank1_auctions,
    count(DISTINCT auction) FILTER (price >= 10000 AND price < 1000000) AS rank2_auctions,
    count(DISTINCT auction) FILTER (price >= 1000000) AS rank3_auctions
"""

QUERIES = {
    "q0": 'SELECT auction, bidder, price, date_time AS "dateTime", extra FROM bid',
    "q1": """
        SELECT auction, bidder, 0.908 * price AS price, date_time AS "dateTime", extra FROM bid""",
    "q2": "SELECT auction, price FROM bid WHERE auction % 123 = 0",
    "q3": """
        SELECT P.name, P.city, P.state, A.id
        FROM auction A JOIN person P ON A.seller = P.id
        WHERE A.category = 10 AND upper(P.state) IN ('OR', 'ID', 'CA')""",
    "q4": """
        SELECT category AS id, CAST(sum(price) // count(*) AS BIGINT) AS final
        FROM won WHERE place = 1 GROUP BY category""",
    "q5": """
        WITH counts AS (
          SELECT auction, count(*) AS num, window_end
          FROM (SELECT auction, unnest(range(1, 6)) * 2000 + date_time // 2000 * 2000 AS window_end
                FROM bid)
          GROUP BY auction, window_end)
        SELECT auction, num FROM counts
        QUALIFY num = max(num) OVER (PARTITION BY window_end)""",
    "q7": """
        SELECT B.auction, B.bidder, B.price, B.date_time AS "dateTime", B.extra
        FROM bid B JOIN (
          SELECT max(price) AS price, date_time // 10000 * 10000 + 10000 AS window_end
          FROM bid GROUP BY window_end) M
        ON B.price = M.price AND B.date_time BETWEEN M.window_end - 10000 AND M.window_end""",
    "q8": """
        SELECT P.id, P.name, P.stime
        FROM (SELECT DISTINCT id, name, date_time // 10000 * 10000 AS stime FROM person) P
        JOIN (SELECT DISTINCT seller, date_time // 10000 * 10000 AS stime FROM auction) A
        ON P.id = A.seller AND P.stime = A.stime""",
    "q9": """
        SELECT id, item_name AS "itemName", description, initial_bid AS "initialBid", reserve,
          date_time AS "dateTime", expires, seller, category, extra,
          auction, bidder, price, bid_time AS "bid_dateTime", bid_extra
        FROM won WHERE place = 1""",
    "q11": """
        WITH marked AS (
          SELECT bidder, date_time, coalesce(date_time - lag(date_time) OVER (
            PARTITION BY bidder ORDER BY date_time) > 10000, false) AS is_first
          FROM bid),
        numbered AS (
          SELECT bidder, date_time, sum(CAST(is_first AS INTEGER)) OVER (
            PARTITION BY bidder ORDER BY date_time) AS number
          FROM marked)
        SELECT bidder, count(*) AS bid_count, min(date_time) AS starttime,
          max(date_time) + 10000 AS endtime
        FROM numbered GROUP BY bidder, number""",
    "q14": """
        SELECT auction, bidder, 0.908 * price AS price,
          CASE WHEN hour >= 8 AND hour <= 18 THEN 'dayTime'
               WHEN hour <= 6 OR hour >= 20 THEN 'nightTime'
               ELSE 'otherTime' END AS "bidTimeType",
          date_time AS "dateTime", extra,
          length(extra) - length(replace(extra, 'c', '')) AS c_counts
        FROM (SELECT *, date_time // 3600000 % 24 AS hour FROM bid)
        WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000""",
    "q15": f"SELECT day, {TALLY} FROM dated GROUP BY day",
    "q16": f"""
        SELECT channel, day, max(hour_and_minute) AS minute, {TALLY}
        FROM dated GROUP BY channel, day""",
    "q17": """
        SELECT auction, day, count(*) AS total_bids,
          count(*) FILTER (price < 10000) AS rank1_bids,
          count(*) FILTER (price >= 10000 AND price < 1000000) AS rank2_bids,
          count(*) FILTER (price >= 1000000) AS rank3_bids,
          min(price) AS min_price, max(price) AS max_price,
          CAST(sum(price) // count(*) AS BIGINT) AS avg_price, CAST(sum(price) AS BIGINT) AS sum_price
        FROM dated GROUP BY auction, day""",
    "q18": """
        SELECT auction, bidder, price, channel, url, date_time AS "dateTime", extra FROM bid
        QUALIFY row_number() OVER (
          PARTITION BY bidder, auction ORDER BY date_time DESC, price DESC, extra DESC) = 1""",
    "q19": """
        SELECT auction, bidder, price, channel, url, date_time AS "dateTime", extra, row_number() OVER (
          PARTITION BY auction ORDER BY price DESC, date_time, bidder, extra) AS rank_number
        FROM bid QUALIFY rank_number <= 10""",
    "q20": """
        SELECT B.auction, B.bidder, B.price, B.channel, B.url, B.date_time AS "bid_dateTime",
          B.extra AS bid_extra, A.item_name AS "itemName", A.description,
          A.initial_bid AS "initialBid", A.reserve, A.date_time AS "auction_dateTime", A.expires,
          A.seller, A.category, A.extra AS auction_extra
        FROM bid B JOIN auction A ON B.auction = A.id WHERE A.category = 10""",
    "q22": """
        SELECT auction, bidder, price, channel, string_split(url, '/')[4] AS dir1,
          string_split(url, '/')[5] AS dir2, string_split(url, '/')[6] AS dir3
        FROM bid""",
}

UPDATING = {"q4", "q9", "q15", "q16", "q17", "q18", "q19"}


# A node that says nothing for so long is none.
SILENCE_MAX_S = 60

class Reader:
    """Reads topics from their beginning, again and again to their end."""

    def __init__(self, broker):
        self.consumer = Consumer(
            {
                "bootstrap.servers": broker,
                "group.id": "nexmark-oracle",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
            }
        )

    def read(self, topic):
        """Key and value of every record, partition after partition, in order."""
        partitions = self.consumer.list_topics(topic, timeout=20).topics[topic].partitions
        records = {partition: [] for partition in sorted(partitions)}
        self.consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        open_partitions = set(partitions)
        heard = time.monotonic()
        while open_partitions:
            messages = self.consumer.consume(10_000, timeout=1)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() > heard + SILENCE_MAX_S:
                sys.exit(f"{topic}: nothing came for {SILENCE_MAX_S} s")
            for message in messages:
                fault = message.error()
                if fault is None:
                    records[message.partition()].append((message.key(), message.value()))
                elif fault.code() == KafkaError._PARTITION_EOF:
                    open_partitions.discard(message.partition())
                else:
                    sys.exit(f"{topic}: {fault}")
        self.consumer.unassign()
        return [record for partition in records.values() for record in partition]


class Oracle:
    def __init__(self, reader, event_count):
        self.reader = reader
        self.database = duckdb.connect()
        self.database.execute("SET TimeZone = 'UTC'")
        count = 0
        for name, columns in INPUTS.items():
            values = [value for _, value in reader.read(f"nexmark-{name}") if value is not None]
            count += len(values)
            self.load(name, columns, values)
        self.database.execute(VIEWS)
        if count != event_count:
            sys.exit(f"{count} events are in the topics, {event_count} should be")

    def load(self, name, columns, values):
        self.database.execute(f"CREATE TABLE {name} ({columns})")
        with tempfile.NamedTemporaryFile("wb", suffix=".json") as file:
            file.writelines(value + b"\n" for value in values)
            file.flush()
            names = [column.split()[0] for column in columns.split(", ")]
            kinds = [column.split()[1] for column in columns.split(", ")]
            wanted = ", ".join(f"{name}: '{kind}'" for name, kind in zip(names, kinds))
            self.database.execute(
                f"INSERT INTO {name} SELECT {', '.join(names)} FROM read_json("
                f"'{file.name}', format = 'newline_delimited', columns = {{{wanted}}})"
            )

    def rows(self, query):
        """What the query told: the rows that count, as they were decoded."""
        records = self.reader.read(f"nexmark-{query}")
        if query in UPDATING:
            records = dict(records).items()
        return [json.loads(value) for _, value in records if value is not None]

    def differences(self, query):
        """The number of rows that are right, and what is wrong."""
        result = self.database.execute(QUERIES[query])
        columns = [column[0] for column in result.description]
        expected = Counter(tuple(map(plain, row)) for row in result.fetchall())
        deadline = time.monotonic() + PATIENCE_S
        while True:
            rows = self.rows(query)
            found = Counter(tuple(row.get(column) for column in columns) for row in rows)
            if not expected - found or time.monotonic() > deadline:
                break
        wrong = [f"misses {row} {n} times" for row, n in (expected - found).items()]
        wrong += [f"has {row} {n} times too many" for row, n in (found - expected).items()]
        if any(set(row) != set(columns) for row in rows):
            wrong.append(f"has other columns than {columns}")
        if not expected:
            wrong.append("has nothing to tell: the events are too few")
        return sum((expected & found).values()), wrong

    def differences_by_the_clock(self, start_ms):
        """The same of q12, whose last rows come when the clock says so."""
        bids = dict(self.database.execute("SELECT bidder, count(*) FROM bid GROUP BY bidder").fetchall())
        deadline = time.monotonic() + PATIENCE_S
        while True:
            rows = self.rows("q12")
            counted = sum(row["bid_count"] for row in rows)
            if counted >= sum(bids.values()) or time.monotonic() > deadline:
                break
        counted = Counter()
        windows = Counter()
        wrong = []
        for row in rows:
            counted[row["bidder"]] += row["bid_count"]
            windows[row["bidder"], row["starttime"]] += 1
            is_whole = (
                row["starttime"] % CLOCK_WINDOW_MS == 0
                and row["endtime"] == row["starttime"] + CLOCK_WINDOW_MS
                and start_ms < row["endtime"] <= time.time() * 1000
            )
            if not is_whole:
                wrong.append(f"has a window that was none: {row}")
        wrong += [f"has {place} {n} times" for place, n in windows.items() if n > 1]
        wrong += [
            f"has {counted[bidder]} of {count} bids of {bidder}"
            for bidder, count in bids.items()
            if counted[bidder] != count
        ]
        return len(rows), wrong


def plain(value):
    """As JSON has it."""
    return float(value) if isinstance(value, Decimal) else value


def main():
    broker, event_count, start_ms, queries = sys.argv[1:]
    oracle = Oracle(Reader(broker), int(event_count))
    is_right = True
    for query in queries.split(","):
        if query == "q12":
            count, wrong = oracle.differences_by_the_clock(int(start_ms))
        else:
            count, wrong = oracle.differences(query)
        if oracle.reader.read(f"nexmark-{query}-dead"):
            wrong.append("has dead letters")
        print(query, count, "rows", f"{len(wrong)} WRONG" if wrong else "right", flush=True)
        for line in wrong[:5]:
            print(" ", query, line)
        is_right = is_right and not wrong
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
