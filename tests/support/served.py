"""Servers for tests: a small one that answers as it is told, and `transformers serve`."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from luthier.errors import RunError
from luthier.sampling.http import HttpSampler


def completion(text, finish="stop", **more):
    return 200, json.dumps({"choices": [{"text": text, "finish_reason": finish, **more}]}).encode()


@contextmanager
def serving(answer, models=(200, b"{}")):
    """A server whose `answer(body, number of the call)` is (status, bytes); yields its address and what was asked."""
    asked, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(*models)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                asked.append({"path": self.path, "token": self.headers.get("Authorization"), **body})
                number = len(asked)
            self.reply(*answer(body, number))

        def reply(self, status, content):
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client gave up waiting

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(text, finish="stop"):
    """A chat model's answer."""
    return 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]}).encode()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def started(log, *more):
    """A server in a process of its own; yields its address at once, before anything listens."""
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), *more]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        )
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def answering(log):
    """`started`, and waited for."""
    with started(log) as url:
        waiting, end = HttpSampler(url, "any", None), time.monotonic() + 120
        while True:
            try:
                waiting.reach()
                break
            except RunError:
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.5)
        yield url
