"""The command line and the output of ../README.md, shared by the three Python programs."""

import sys
import threading

VALUE_SIZE = 120


class Arguments:
    def __init__(self, argv):
        self.mode, self.broker, self.topic = argv[1:4]
        positional = [word for word in argv[4:] if "=" not in word]
        self.options = dict(word.split("=", 1) for word in argv[4:] if "=" in word)
        if self.mode == "produce":
            self.first, self.count, self.partitions = map(int, positional)
        elif self.mode == "consume":
            (self.group,) = positional
        else:
            sys.exit(f"produce or consume, not {self.mode}")

    def records(self):
        """Partition, key and value of each record to produce."""
        for number in range(self.first, self.first + self.count):
            key = str(number)
            yield number % self.partitions, key.encode(), key.ljust(VALUE_SIZE, ".").encode()


def say(*words):
    print(*words, flush=True)


def complain(*words):
    print(*words, file=sys.stderr, flush=True)


def say_assigned(partitions):
    say("assigned", ",".join(str(partition) for partition in sorted(partitions)))


def say_record(partition, offset, key, value):
    say("record", partition, offset, key.decode(), value.decode())


def end_of_input(then=lambda: None):
    """An event that is set, and a call that is made, when standard input ends."""
    ended = threading.Event()

    def wait():
        sys.stdin.buffer.read()
        ended.set()
        then()

    threading.Thread(target=wait, daemon=True).start()
    return ended
