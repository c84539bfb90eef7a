"""Two processes that take turns: each carries out one update when it is told to, and says how long it took."""

import json
import os
import sys
import time


class Turns:
    """A child's end: `wait` for the word, work, `done`. What libraries print goes to the log with the errors."""

    def __init__(self):
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> None:
        """Until the parent says go; the end of its words is the end of this process."""
        if not sys.stdin.readline():
            os._exit(0)
        self.started, self.processor = time.perf_counter(), time.process_time()

    def tell(self, **facts) -> None:
        """Say what the update took."""
        seconds, processor = time.perf_counter() - self.started, time.process_time() - self.processor
        self.answers.write(json.dumps({"seconds": seconds, "processor_seconds": processor, **facts}) + "\n")
        self.answers.flush()

    def done(self, **facts) -> None:
        """Say what the update took, and wait for the next turn."""
        self.tell(**facts)
        self.wait()
