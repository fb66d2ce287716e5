"""aiokafka behind the command line of ../README.md."""

import asyncio
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka.errors import KafkaError

from line_protocol import Arguments, complain, end_of_input, say, say_assigned, say_record

IN_FLIGHT_MAX = 2000


async def produce(arguments):
    producer = AIOKafkaProducer(
        bootstrap_servers=arguments.broker,
        acks="all",
        enable_idempotence=True,
        max_batch_size=8192,
        linger_ms=1,
        retry_backoff_ms=50,
        request_timeout_ms=60000,
        compression_type=arguments.options.get("codec"),
    )
    await producer.start()
    failed = []
    room = asyncio.Semaphore(IN_FLIGHT_MAX)

    def on_done(key):
        def report(sent):
            room.release()
            if sent.exception() is not None:
                failed.append(key)
                complain("record", key, repr(sent.exception()))
            else:
                say("ack", sent.result().partition, sent.result().offset, key)

        return report

    for partition, key, value in arguments.records():
        await room.acquire()
        sent = await producer.send(arguments.topic, value, key, partition=partition)
        sent.add_done_callback(on_done(key.decode()))
    await producer.flush()
    for _ in range(IN_FLIGHT_MAX):
        await room.acquire()
    await producer.stop()
    return 1 if failed else 0


async def consume(arguments):
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    end_of_input(lambda: loop.call_soon_threadsafe(ended.set))
    consumer = AIOKafkaConsumer(
        bootstrap_servers=arguments.broker,
        group_id=arguments.group,
        group_instance_id=arguments.options.get("instance"),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=10000,
        heartbeat_interval_ms=300,
        retry_backoff_ms=50,
        request_timeout_ms=15000,
    )

    class Listener(ConsumerRebalanceListener):
        async def on_partitions_revoked(self, revoked):
            pass

        async def on_partitions_assigned(self, assigned):
            say_assigned(at.partition for at in assigned)

    await consumer.start()
    consumer.subscribe([arguments.topic], listener=Listener())
    while not ended.is_set():
        read = {}
        for at, messages in (await consumer.getmany(timeout_ms=100, max_records=500)).items():
            for message in messages:
                say_record(message.partition, message.offset, message.key, message.value)
            read[at] = messages[-1].offset + 1
        if not read:
            continue
        try:
            await consumer.commit(read)
            for at, offset in read.items():
                say("committed", at.partition, offset)
        except KafkaError as error:
            # Not committed: whoever owns the partitions next reads these again.
            complain("commit:", repr(error))
    await consumer.stop()
    return 0


arguments = Arguments(sys.argv)
sys.exit(asyncio.run(produce(arguments) if arguments.mode == "produce" else consume(arguments)))
