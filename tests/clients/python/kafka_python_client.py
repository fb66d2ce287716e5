"""kafka-python behind the command line of ../README.md."""

import os
import sys
import time

from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from line_protocol import Arguments, complain, end_of_input, say, say_assigned, say_record

# A consumer that reads nothing for so long begins anew, in seconds.
SILENCE_MAX = 20


def settings(arguments):
    return {
        "bootstrap_servers": arguments.broker,
        "reconnect_backoff_ms": 50,
        "reconnect_backoff_max_ms": 200,
        "retry_backoff_ms": 50,
        "request_timeout_ms": 15000,
    }


def produce(arguments):
    failed = []
    producer = KafkaProducer(
        **settings(arguments),
        acks="all",
        enable_idempotence=True,
        batch_size=8192,
        linger_ms=1,
        delivery_timeout_ms=60000,
        compression_type=arguments.options.get("codec"),
    )

    def on_ack(key):
        return lambda at: say("ack", at.partition, at.offset, key)

    def on_error(key):
        def complain_and_remember(error):
            failed.append(key)
            complain("record", key, repr(error))

        return complain_and_remember

    for partition, key, value in arguments.records():
        name = key.decode()
        sent = producer.send(arguments.topic, value, key, partition=partition)
        sent.add_callback(on_ack(name)).add_errback(on_error(name))
    producer.flush(60)
    producer.close()
    return 1 if failed else 0


def begin_anew(why):
    """What a supervisor does. kafka-python 3.0.12 may stop asking for metadata for ever when the
    node was away at the wrong moment, and then neither reads nor fails."""
    complain("begins anew:", why)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.argv])


def consume(arguments):
    ended = end_of_input()
    consumer = KafkaConsumer(
        **settings(arguments),
        group_id=arguments.group,
        group_instance_id=arguments.options.get("instance"),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=10000,
        heartbeat_interval_ms=300,
    )

    class Listener(ConsumerRebalanceListener):
        def on_partitions_revoked(self, revoked):
            pass

        def on_partitions_assigned(self, assigned):
            say_assigned(at.partition for at in consumer.assignment())

    consumer.subscribe([arguments.topic], listener=Listener())
    heard_at = time.monotonic()
    while not ended.is_set():
        if time.monotonic() - heard_at > SILENCE_MAX:
            begin_anew("nothing to read")
        read = {}
        # kafka-python 3.0.12 joins twice at its start, and forgets the second join for ever if a poll
        # ends in the middle of it; so no poll ends there.
        timeout_ms = 100 if consumer.assignment() else 10000
        try:
            polled = consumer.poll(timeout_ms=timeout_ms)
        except KafkaError as error:
            begin_anew(repr(error))
        for at, messages in polled.items():
            for message in messages:
                say_record(message.partition, message.offset, message.key, message.value)
            read[at] = OffsetAndMetadata(messages[-1].offset + 1, "", -1)
        if not read:
            continue
        heard_at = time.monotonic()
        try:
            consumer.commit(read, timeout_ms=30000)
            for at, offset in read.items():
                say("committed", at.partition, offset.offset)
        except KafkaError as error:
            # Not committed: whoever owns the partitions next reads these again.
            complain("commit:", repr(error))
    consumer.close(autocommit=False)
    return 0


arguments = Arguments(sys.argv)
sys.exit(produce(arguments) if arguments.mode == "produce" else consume(arguments))
