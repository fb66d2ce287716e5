"""confluent-kafka (librdkafka) behind the command line of ../README.md."""

import sys

from confluent_kafka import Consumer, KafkaException, Producer

from line_protocol import Arguments, complain, end_of_input, say, say_assigned, say_record


def settings(arguments):
    return {
        "bootstrap.servers": arguments.broker,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 200,
        "retry.backoff.ms": 50,
    }


def produce(arguments):
    failed = []

    def on_delivery(error, message):
        if error is not None:
            failed.append(message.key())
            complain("record", message.key().decode(), error)
        else:
            say("ack", message.partition(), message.offset(), message.key().decode())

    producer = Producer(
        settings(arguments)
        | {
            "acks": "all",
            "enable.idempotence": True,
            "batch.size": 8192,
            "linger.ms": 1,
            "queue.buffering.max.messages": 2000,
            "compression.type": arguments.options.get("codec", "none"),
            "message.timeout.ms": 60000,
            "request.timeout.ms": 10000,
            "on_delivery": on_delivery,
        }
    )
    for partition, key, value in arguments.records():
        while True:
            try:
                producer.produce(arguments.topic, value, key, partition)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    unsent = producer.flush(60)
    return 1 if failed or unsent else 0


def consume(arguments):
    extra = {}
    if "instance" in arguments.options:
        extra["group.instance.id"] = arguments.options["instance"]
    if "assignor" in arguments.options:
        extra["partition.assignment.strategy"] = arguments.options["assignor"]
    consumer = Consumer(
        settings(arguments)
        | {
            "group.id": arguments.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": 10000,
            "heartbeat.interval.ms": 300,
            "fetch.error.backoff.ms": 50,
        }
        | extra
    )
    is_cooperative = arguments.options.get("assignor") == "cooperative-sticky"
    owned = set()

    def on_assign(consumer, partitions):
        if not is_cooperative:
            owned.clear()
        owned.update(partition.partition for partition in partitions)
        say_assigned(owned)

    def on_revoke(consumer, partitions):
        owned.difference_update(partition.partition for partition in partitions)

    consumer.subscribe([arguments.topic], on_assign=on_assign, on_revoke=on_revoke)
    ended = end_of_input()
    while not ended.is_set():
        count = 0
        for message in consumer.consume(500, 0.1):
            if message.error() is not None:
                complain("consume:", message.error())
                continue
            count += 1
            say_record(message.partition(), message.offset(), message.key(), message.value())
        if count == 0:
            continue
        try:
            for at in consumer.commit(asynchronous=False):
                if at.error is not None:
                    complain("commit:", at.error)
                elif at.offset >= 0:
                    say("committed", at.partition, at.offset)
        except KafkaException as error:
            # Not committed: whoever owns the partitions next reads these again.
            complain("commit:", error)
    consumer.close()
    return 0


arguments = Arguments(sys.argv)
sys.exit(produce(arguments) if arguments.mode == "produce" else consume(arguments))
