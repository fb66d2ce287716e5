package tidemill.clients;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.util.Arrays;
import java.util.Map;
import org.apache.kafka.common.utils.Exit;

/**
 * Kafka's command-line tools in one JVM: each line of standard input is one command, its words
 * separated by tabs; what the tool prints is followed by a line "--- exit STATUS".
 */
public final class Tools {
    private static final Map<String, String> CLASSES = Map.of(
        "kafka-topics", "org.apache.kafka.tools.TopicCommand",
        "kafka-configs", "kafka.admin.ConfigCommand",
        "kafka-consumer-groups", "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
        "kafka-get-offsets", "org.apache.kafka.tools.GetOffsetShell",
        "kafka-delete-records", "org.apache.kafka.tools.DeleteRecordsCommand",
        "kafka-log-dirs", "org.apache.kafka.tools.LogDirsCommand",
        "kafka-broker-api-versions", "org.apache.kafka.tools.BrokerApiVersionsCommand",
        "kafka-cluster", "org.apache.kafka.tools.ClusterTool",
        "kafka-transactions", "org.apache.kafka.tools.TransactionsCommand");

    private Tools() {}

    /** Thrown in place of ending the process. */
    private static final class Ended extends Error {}

    /** How the current command ended, if it has. */
    private static Integer status;

    public static void main(String[] args) throws IOException {
        PrintStream out = System.out;
        Exit.setExitProcedure((exitStatus, message) -> {
            if (status == null) {
                status = exitStatus;
                // Some tools catch everything around their own exit, and would print it.
                System.setOut(new PrintStream(PrintStream.nullOutputStream()));
                System.setErr(System.out);
            }
            throw new Ended();
        });
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            status = null;
            System.setOut(out);
            System.setErr(out);
            run(line.split("\t"));
            out.println("--- exit " + (status == null ? 0 : status));
            out.flush();
        }
        Exit.resetExitProcedure();
        System.exit(0);
    }

    private static void run(String[] words) {
        try {
            Method main = Class.forName(CLASSES.get(words[0])).getMethod("main", String[].class);
            main.invoke(null, (Object) Arrays.copyOfRange(words, 1, words.length));
        } catch (InvocationTargetException error) {
            if (status == null) {
                status = 255;
                error.getCause().printStackTrace();
            }
        } catch (ReflectiveOperationException error) {
            throw new IllegalStateException("no such tool: " + words[0], error);
        }
    }
}
