"""Produces at a rate with librdkafka and prints the latencies, from due time to delivery report.

The same open loop as the bench tool's own client: due times are fixed beforehand, and a request
that is sent late has waited all the same. Arguments: address, topic, requests a second, bytes of a
record, seconds of warm-up, seconds measured.
"""

import json
import os
import sys
import time

from confluent_kafka import Producer


def main() -> None:
    address, topic = sys.argv[1:3]
    rate, size, warm_up, duration = (float(text) for text in sys.argv[3:7])
    refused = 0
    times = []
    producer = Producer(
        {
            "bootstrap.servers": address,
            "acks": "all",
            "linger.ms": 0,
            "socket.nagle.disable": True,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    producer.list_topics(topic, timeout=10)
    value = os.urandom(int(size))
    start = time.perf_counter_ns()
    begin = start + int(warm_up * 1e9)
    end = begin + int(duration * 1e9)
    gap = 1e9 / rate
    number = 0

    def on_delivery_of(due: int):
        def on_delivery(error, _message) -> None:
            nonlocal refused
            now = time.perf_counter_ns()
            if error is not None:
                refused += 1
            elif due >= begin:
                times.append(now - due)

        return on_delivery

    while (due := start + int(number * gap)) < end:
        now = time.perf_counter_ns()
        if now < due:
            producer.poll((due - now) / 1e9)
            continue
        producer.produce(topic, value, on_delivery=on_delivery_of(due))
        number += 1
    left = producer.flush(30)
    times.sort()

    def at(quantile: float) -> float:
        return times[min(int(quantile * len(times)), len(times) - 1)] / 1e3 if times else 0.0

    print(
        json.dumps(
            {
                "count": len(times),
                "refused": refused,
                "unanswered": left,
                "p50_us": at(0.5),
                "p99_us": at(0.99),
            }
        )
    )


main()
