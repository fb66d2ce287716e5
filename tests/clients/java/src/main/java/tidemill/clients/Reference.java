package tidemill.clients;

import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.Admin;

/**
 * An Apache Kafka broker with the command line of `tidemill serve`, so that the tests of this
 * directory can be run against the broker whose behaviour they expect.
 */
public final class Reference {
    private Reference() {}

    public static void main(String[] args) throws IOException {
        Map<String, String> flags = new HashMap<>();
        for (int i = 1; i + 1 < args.length; i += 2) {
            flags.put(args[i], args[i + 1]);
        }
        Path data = Path.of(flags.get("--data-dir")).toAbsolutePath();
        String listen = flags.get("--kafka-listen");
        int admin = Integer.parseInt(flags.get("--admin-listen").replaceAll(".*:", ""));
        // The controller needs a port of its own, and the same one after a restart.
        int controller = freePort(data);

        Files.createDirectories(data);
        Path settings = data.resolve("server.properties");
        Files.writeString(settings, String.join("\n",
            "process.roles=broker,controller",
            "node.id=1",
            "controller.quorum.voters=1@127.0.0.1:" + controller,
            "listeners=PLAINTEXT://" + listen + ",CONTROLLER://127.0.0.1:" + controller,
            "advertised.listeners=PLAINTEXT://" + listen,
            "controller.listener.names=CONTROLLER",
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs=" + data.resolve("logs"),
            "num.partitions=" + flags.getOrDefault("--shards", "1"),
            "offsets.topic.num.partitions=2",
            "offsets.topic.replication.factor=1",
            "transaction.state.log.num.partitions=2",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "share.coordinator.state.topic.replication.factor=1",
            "group.initial.rebalance.delay.ms=0",
            "log.cleaner.dedupe.buffer.size=16777216",
            ""));
        if (!Files.exists(data.resolve("logs"))) {
            kafka.tools.StorageTool.execute(new String[] {
                "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", settings.toString()}, System.err);
        }
        HttpServer http = HttpServer.create(new InetSocketAddress("127.0.0.1", admin), 8);
        http.createContext("/health/ready", exchange -> {
            exchange.sendResponseHeaders(isReady(listen) ? 200 : 503, -1);
            exchange.close();
        });
        http.start();
        // A JVM that is asked to end says 143; what the tests expect of a clean end is 0.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> Runtime.getRuntime().halt(0)));
        kafka.Kafka.main(new String[] {settings.toString()});
    }

    private static int freePort(Path data) throws IOException {
        Path file = data.resolveSibling(data.getFileName() + ".controller-port");
        if (!Files.exists(file)) {
            try (var socket = new java.net.ServerSocket(0)) {
                Files.writeString(file, Integer.toString(socket.getLocalPort()));
            }
        }
        return Integer.parseInt(Files.readString(file));
    }

    private static boolean isReady(String listen) {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", listen))) {
            return !admin.describeCluster().nodes().get(2, TimeUnit.SECONDS).isEmpty();
        } catch (Exception error) {
            return false;
        }
    }
}
