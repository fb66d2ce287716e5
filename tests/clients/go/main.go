// The franz-go client behind the command line of tests/clients/README.md.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const valueSize = 120

var (
	out      = bufio.NewWriter(os.Stdout)
	outMutex sync.Mutex
)

func say(format string, arguments ...any) {
	outMutex.Lock()
	defer outMutex.Unlock()
	fmt.Fprintf(out, format+"\n", arguments...)
	out.Flush()
}

func main() {
	if len(os.Args) < 5 {
		fail("arguments", fmt.Errorf("see README.md"))
	}
	options := map[string]string{}
	for _, argument := range os.Args {
		if name, value, found := strings.Cut(argument, "="); found {
			options[name] = value
		}
	}
	switch os.Args[1] {
	case "produce":
		produce(os.Args[2:], options)
	case "consume":
		consume(os.Args[2:], options)
	default:
		fail("arguments", fmt.Errorf("produce or consume, not %q", os.Args[1]))
	}
}

func produce(arguments []string, options map[string]string) {
	first, count, partitions := number(arguments[2]), number(arguments[3]), number(arguments[4])
	client, err := kgo.NewClient(
		kgo.SeedBrokers(arguments[0]),
		kgo.DefaultProduceTopic(arguments[1]),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(codec(options["codec"])),
		kgo.ProducerBatchMaxBytes(8192),
		kgo.MaxBufferedRecords(2000),
		kgo.RecordDeliveryTimeout(60*time.Second),
		kgo.ProduceRequestTimeout(10*time.Second),
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }),
	)
	if err != nil {
		fail("client", err)
	}
	var failed atomic.Bool
	for i := first; i < first+count; i++ {
		key := strconv.Itoa(i)
		record := &kgo.Record{
			Key:       []byte(key),
			Value:     []byte(key + strings.Repeat(".", valueSize-len(key))),
			Partition: int32(i % partitions),
		}
		client.Produce(context.Background(), record, func(record *kgo.Record, err error) {
			if err != nil {
				failed.Store(true)
				fmt.Fprintf(os.Stderr, "record %s: %v\n", key, err)
				return
			}
			say("ack %d %d %s", record.Partition, record.Offset, key)
		})
	}
	if err := client.Flush(context.Background()); err != nil {
		fail("flush", err)
	}
	client.Close()
	if failed.Load() {
		os.Exit(1)
	}
}

func consume(arguments []string, options map[string]string) {
	var mutex sync.Mutex
	assigned := map[int32]bool{}
	change := func(partitions map[string][]int32, owned bool) {
		mutex.Lock()
		defer mutex.Unlock()
		for _, list := range partitions {
			for _, partition := range list {
				if owned {
					assigned[partition] = true
				} else {
					delete(assigned, partition)
				}
			}
		}
	}
	settings := []kgo.Opt{
		kgo.SeedBrokers(arguments[0]),
		kgo.ConsumeTopics(arguments[1]),
		kgo.ConsumerGroup(arguments[2]),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
		kgo.SessionTimeout(10 * time.Second),
		kgo.HeartbeatInterval(300 * time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
			change(partitions, true)
			mutex.Lock()
			defer mutex.Unlock()
			list := []int{}
			for partition := range assigned {
				list = append(list, int(partition))
			}
			sort.Ints(list)
			words := []string{}
			for _, partition := range list {
				words = append(words, strconv.Itoa(partition))
			}
			say("assigned %s", strings.Join(words, ","))
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
			change(partitions, false)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
			change(partitions, false)
		}),
	}
	if options["instance"] != "" {
		settings = append(settings, kgo.InstanceID(options["instance"]))
	}
	if options["assignor"] == "range" {
		settings = append(settings, kgo.Balancers(kgo.RangeBalancer()))
	}
	client, err := kgo.NewClient(settings...)
	if err != nil {
		fail("client", err)
	}
	polling, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	for polling.Err() == nil {
		records := client.PollFetches(polling).Records()
		if len(records) == 0 {
			continue
		}
		offsets := map[int32]int64{}
		for _, record := range records {
			say("record %d %d %s %s", record.Partition, record.Offset, record.Key, record.Value)
			offsets[record.Partition] = record.Offset + 1
		}
		deadline, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		err := client.CommitRecords(deadline, records...)
		cancel()
		if err != nil {
			// Not committed: whoever owns the partitions next reads these again.
			fmt.Fprintf(os.Stderr, "commit: %v\n", err)
			continue
		}
		for partition, offset := range offsets {
			say("committed %d %d", partition, offset)
		}
	}
	client.Close()
}

func codec(name string) kgo.CompressionCodec {
	switch name {
	case "gzip":
		return kgo.GzipCompression()
	case "snappy":
		return kgo.SnappyCompression()
	case "lz4":
		return kgo.Lz4Compression()
	case "zstd":
		return kgo.ZstdCompression()
	default:
		return kgo.NoCompression()
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil {
		fail("arguments", err)
	}
	return value
}

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
	os.Exit(1)
}
