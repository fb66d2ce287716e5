import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.core.execution.CheckpointingMode;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.util.Collector;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * Counts the records of a topic by key into another topic, exactly once, with a checkpoint each
 * second, and otherwise with the defaults of Flink. Arguments: broker, topic of the records, topic of
 * the counts, directory.
 */
public final class FlinkCount {
    /** Between checkpoints, in milliseconds. */
    private static final long CHECKPOINT_INTERVAL = 1000;

    /** The broker's limit; Flink's own default is above it. In milliseconds. */
    private static final String TRANSACTION_TIMEOUT = "900000";

    private FlinkCount() {}

    public static void main(String[] arguments) throws Exception {
        Configuration settings = new Configuration();
        String directory = Path.of(arguments[3]).toUri().toString();
        settings.set(CheckpointingOptions.CHECKPOINT_STORAGE, "filesystem");
        settings.set(CheckpointingOptions.CHECKPOINTS_DIRECTORY, directory);
        // A failure ends the process, and with it the run.
        settings.set(RestartStrategyOptions.RESTART_STRATEGY, "none");
        StreamExecutionEnvironment environment =
                StreamExecutionEnvironment.createLocalEnvironment(settings);
        environment.enableCheckpointing(CHECKPOINT_INTERVAL, CheckpointingMode.EXACTLY_ONCE);

        KafkaSource<String> source = KafkaSource.<String>builder()
                .setBootstrapServers(arguments[0])
                .setTopics(arguments[1])
                .setGroupId("count")
                .setStartingOffsets(OffsetsInitializer.earliest())
                .setDeserializer(new Keys())
                .build();
        KafkaSink<Tuple2<String, Long>> sink = KafkaSink.<Tuple2<String, Long>>builder()
                .setBootstrapServers(arguments[0])
                .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
                .setTransactionalIdPrefix("count")
                .setProperty("transaction.timeout.ms", TRANSACTION_TIMEOUT)
                .setRecordSerializer(new Counts(arguments[2]))
                .build();
        environment.fromSource(source, WatermarkStrategy.noWatermarks(), "records")
                .keyBy(key -> key)
                .map(new Count())
                .sinkTo(sink);
        environment.execute("count");
    }

    /** The key of a record: its value has no part in the count. */
    private static final class Keys implements KafkaRecordDeserializationSchema<String> {
        @Override
        public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<String> out) {
            out.collect(new String(record.key(), StandardCharsets.UTF_8));
        }

        @Override
        public TypeInformation<String> getProducedType() {
            return Types.STRING;
        }
    }

    /** One more record of a key. */
    private static final class Count extends RichMapFunction<String, Tuple2<String, Long>> {
        private transient ValueState<Long> count;

        @Override
        public void open(OpenContext context) {
            count = getRuntimeContext().getState(new ValueStateDescriptor<>("count", Types.LONG));
        }

        @Override
        public Tuple2<String, Long> map(String key) throws Exception {
            Long before = count.value();
            long now = before == null ? 1 : before + 1;
            count.update(now);
            return Tuple2.of(key, now);
        }
    }

    /** A key and its count, as Kafka's own serializers have them. */
    private static final class Counts
            implements KafkaRecordSerializationSchema<Tuple2<String, Long>> {
        private final String topic;

        private Counts(String topic) {
            this.topic = topic;
        }

        @Override
        public ProducerRecord<byte[], byte[]> serialize(
                Tuple2<String, Long> count, KafkaSinkContext context, Long timestamp) {
            byte[] key = count.f0.getBytes(StandardCharsets.UTF_8);
            byte[] value = ByteBuffer.allocate(Long.BYTES).putLong(count.f1).array();
            return new ProducerRecord<>(topic, key, value);
        }
    }
}
