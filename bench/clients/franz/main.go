// The same third-party client against every server that speaks Kafka's protocol: as many records as
// go through with a number of them in flight, and then all of them back.
//
//	franz produce BROKER TOPIC seconds=S warmup=S size=N inflight=N [linger_ms=N]
//	franz consume BROKER TOPIC records=N warmup=N    (of the N, about that many before the time)
//
// Says "begin" when the measured time begins and "end" when it is over, each on a line and when it
// is, so that whoever started it can look at the server then. Then one line: records=N seconds=S.
package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Different values; making one for each record would cost more than sending it.
const valueCount = 4096

// Longest time without a record before consuming is given up.
const patience = 60 * time.Second

func main() {
	if len(os.Args) < 4 {
		fail("arguments", fmt.Errorf("see the head of main.go"))
	}
	options := map[string]string{}
	for _, argument := range os.Args[4:] {
		name, value, _ := strings.Cut(argument, "=")
		options[name] = value
	}
	switch os.Args[1] {
	case "produce":
		produce(os.Args[2], os.Args[3], options)
	case "consume":
		consume(os.Args[2], os.Args[3], options)
	default:
		fail("arguments", fmt.Errorf("produce or consume, not %q", os.Args[1]))
	}
}

func produce(broker, topic string, options map[string]string) {
	inFlight := number(options, "inflight", 20000)
	client, err := kgo.NewClient(
		kgo.SeedBrokers(broker),
		kgo.DefaultProduceTopic(topic),
		kgo.MaxBufferedRecords(inFlight),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(time.Duration(number(options, "linger_ms", 0))*time.Millisecond),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
	)
	if err != nil {
		fail("client", err)
	}
	defer client.Close()
	values := makeValues(number(options, "size", 256))
	var acknowledged atomic.Int64
	promise := func(_ *kgo.Record, err error) {
		if err != nil {
			fail("produce", err)
		}
		acknowledged.Add(1)
	}
	run := func(seconds int) {
		until := time.Now().Add(time.Duration(seconds) * time.Second)
		for i := 0; ; i++ {
			if i%256 == 0 && !time.Now().Before(until) {
				return
			}
			// Waits while inFlight records have no answer.
			client.Produce(context.Background(), &kgo.Record{Value: values[i%valueCount]}, promise)
		}
	}
	run(number(options, "warmup", 2))
	before, began := acknowledged.Load(), time.Now()
	fmt.Println("begin")
	run(number(options, "seconds", 10))
	after, took := acknowledged.Load(), time.Since(began)
	fmt.Println("end")
	if err := client.Flush(context.Background()); err != nil {
		fail("flush", err)
	}
	fmt.Printf("records=%d seconds=%.6f total=%d\n", after-before, took.Seconds(), acknowledged.Load())
}

func consume(broker, topic string, options map[string]string) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(broker),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(500*time.Millisecond),
	)
	if err != nil {
		fail("client", err)
	}
	defer client.Close()
	warm := poll(client, number(options, "warmup", 0))
	fmt.Println("begin")
	began := time.Now()
	got := poll(client, number(options, "records", 1)-warm)
	took := time.Since(began)
	fmt.Println("end")
	fmt.Printf("records=%d seconds=%.6f total=%d\n", got, took.Seconds(), warm+got)
}

// Takes at least so many records, and says how many it took.
func poll(client *kgo.Client, wanted int) int {
	got := 0
	for got < wanted {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		fetches := client.PollFetches(ctx)
		cancel()
		if err := fetches.Err0(); err != nil {
			fail("consume", fmt.Errorf("after %d of %d records: %w", got, wanted, err))
		}
		fetches.EachError(func(_ string, _ int32, err error) { fail("consume", err) })
		got += fetches.NumRecords()
	}
	return got
}

func makeValues(size int) [][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	values := make([][]byte, valueCount)
	for i := range values {
		values[i] = make([]byte, size)
		for j := range values[i] {
			values[i][j] = byte('a' + random.IntN(26))
		}
	}
	return values
}

func number(options map[string]string, name string, otherwise int) int {
	text, given := options[name]
	if !given {
		return otherwise
	}
	value, err := strconv.Atoi(text)
	if err != nil {
		fail(name, err)
	}
	return value
}

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "franz: %s: %v\n", what, err)
	os.Exit(1)
}
