package tidemill.clients;

import java.io.BufferedOutputStream;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.time.Duration;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.common.errors.RetriableException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** The Java client behind the command line of tests/clients/README.md. */
public final class Client {
    private static final int VALUE_SIZE = 120;
    private static final PrintStream OUT =
        new PrintStream(new BufferedOutputStream(new FileOutputStream(FileDescriptor.out), 256), false);

    private Client() {}

    public static void main(String[] args) {
        Map<String, String> options = new HashMap<>();
        for (String arg : args) {
            int equals = arg.indexOf('=');
            if (equals > 0) {
                options.put(arg.substring(0, equals), arg.substring(equals + 1));
            }
        }
        switch (args[0]) {
            case "produce" -> produce(args, options);
            case "consume" -> consume(args, options);
            default -> throw new IllegalArgumentException("produce or consume, not " + args[0]);
        }
    }

    private static void produce(String[] args, Map<String, String> options) {
        String topic = args[2];
        long first = Long.parseLong(args[3]);
        long end = first + Long.parseLong(args[4]);
        int partitions = Integer.parseInt(args[5]);

        Properties settings = settings(args[1]);
        settings.put("acks", "all");
        settings.put("enable.idempotence", "true");
        settings.put("batch.size", "8192");
        settings.put("linger.ms", "1");
        settings.put("buffer.memory", "1048576");
        settings.put("compression.type", options.getOrDefault("codec", "none"));
        settings.put("delivery.timeout.ms", "60000");
        settings.put("request.timeout.ms", "10000");
        AtomicBoolean failed = new AtomicBoolean();
        try (KafkaProducer<String, String> producer =
                new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            for (long i = first; i < end; i++) {
                String key = Long.toString(i);
                String value = key + ".".repeat(VALUE_SIZE - key.length());
                producer.send(new ProducerRecord<>(topic, (int) (i % partitions), key, value), (at, error) -> {
                    if (error != null) {
                        failed.set(true);
                        System.err.println("record " + key + ": " + error);
                    } else {
                        say("ack " + at.partition() + " " + at.offset() + " " + key);
                    }
                });
            }
        }
        System.exit(failed.get() ? 1 : 0);
    }

    private static void consume(String[] args, Map<String, String> options) {
        Properties settings = settings(args[1]);
        settings.put("group.id", args[3]);
        settings.put("group.protocol", "classic");
        settings.put("auto.offset.reset", "earliest");
        settings.put("enable.auto.commit", "false");
        settings.put("session.timeout.ms", "10000");
        settings.put("heartbeat.interval.ms", "300");
        if (options.containsKey("instance")) {
            settings.put("group.instance.id", options.get("instance"));
        }
        if (options.getOrDefault("assignor", "").equals("cooperative-sticky")) {
            settings.put("partition.assignment.strategy",
                "org.apache.kafka.clients.consumer.CooperativeStickyAssignor");
        }
        AtomicBoolean ended = endOfInput();
        try (KafkaConsumer<String, String> consumer =
                new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(args[2]), new ConsumerRebalanceListener() {
                @Override
                public void onPartitionsRevoked(Collection<TopicPartition> partitions) {}

                @Override
                public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
                    say("assigned " + consumer.assignment().stream().map(TopicPartition::partition)
                        .sorted().map(Object::toString).collect(Collectors.joining(",")));
                }
            });
            while (!ended.get()) {
                Map<TopicPartition, OffsetAndMetadata> read = new HashMap<>();
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(100))) {
                    say("record " + record.partition() + " " + record.offset() + " " + record.key() + " "
                        + record.value());
                    read.put(new TopicPartition(record.topic(), record.partition()),
                        new OffsetAndMetadata(record.offset() + 1));
                }
                if (read.isEmpty()) {
                    continue;
                }
                try {
                    consumer.commitSync(read, Duration.ofSeconds(30));
                    read.forEach((at, offset) -> say("committed " + at.partition() + " " + offset.offset()));
                } catch (CommitFailedException | RebalanceInProgressException | RetriableException error) {
                    // Not committed: whoever owns the partitions next reads these again.
                    System.err.println("commit: " + error);
                }
            }
        }
        System.exit(0);
    }

    private static Properties settings(String broker) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", broker);
        settings.put("reconnect.backoff.ms", "50");
        settings.put("reconnect.backoff.max.ms", "200");
        settings.put("retry.backoff.ms", "50");
        settings.put("retry.backoff.max.ms", "200");
        return settings;
    }

    private static AtomicBoolean endOfInput() {
        AtomicBoolean ended = new AtomicBoolean();
        Thread reader = new Thread(() -> {
            try {
                System.in.transferTo(PrintStream.nullOutputStream());
            } catch (IOException error) {
                System.err.println("standard input: " + error);
            }
            ended.set(true);
        });
        reader.setDaemon(true);
        reader.start();
        return ended;
    }

    private static synchronized void say(String line) {
        OUT.print(line + "\n");
        OUT.flush();
    }
}
