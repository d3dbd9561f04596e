"""Latency of appends over HTTP alone, and beside many connections that hardly read; memory of the server meanwhile.

    python -m bench.slow_readers [--connections 200] [--seconds 10] [--turns 3] [--scratch FOLDER]

Of 20 connections 15 are tails from the beginning, 4 ask for large pages of conversations, 1 for a large answer of a query, again
and again; each reads 4 KiB a second. Turns alternate, so that what else the machine does falls on both. Every process is its own:
the server, the readers, the one that appends and measures.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

CONTENT = "x" * 1000
EVENTS = 20_000
READ_BYTES = 4096
SQL = "SELECT * FROM events LIMIT 5000"
HEADERS = {"Content-Type": "application/json"}
POST = b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def started(folder: Path) -> tuple[subprocess.Popen[bytes], str, int]:
    """A server in `folder`: its process, host and port."""
    log = (folder / "serve.log").open("wb")
    command = [sys.executable, "-m", "thermocline", "serve", "--port", "0"]
    settings = {"THERMOCLINE_SERVE__REQUESTS_PER_S": "0", "THERMOCLINE_SERVE__ANSWERS_MAX": "200"}
    server = subprocess.Popen(command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log)
    while "listening on " not in (said := (folder / "serve.log").read_text()):
        if server.poll() is not None:
            raise SystemExit(said)
        time.sleep(0.05)
    host, port = said.partition("listening on http://")[2].split()[0].rsplit(":", 1)
    return server, host, int(port)


def asked(number: int) -> bytes:
    """The request of one reader."""
    place = number % 20
    if place == 0:
        body = json.dumps({"sql": SQL}).encode()
        return POST % len(body) + body
    if place < 5:
        return b"GET /v1/conversations/c%d/events?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n" % (number % 10)
    return b"GET /v1/tail?start=begin HTTP/1.1\r\nHost: localhost\r\n\r\n"


def read_slowly(host: str, port: int, connections: int, ready: Any, stop: Any) -> None:
    """Keep so many connections open that each read a little every second; come back when one is closed."""
    chosen = selectors.DefaultSelector()
    begun: set[int] = set()

    def opened(number: int) -> None:
        connection = socket.create_connection((host, port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_BYTES)
        connection.sendall(asked(number))
        connection.setblocking(False)
        chosen.register(connection, selectors.EVENT_READ, number)

    for number in range(connections):
        opened(number)
    waiting = connections
    while waiting:  # until each has got its first bytes: what is measured is reading, not arriving
        for key, _ in chosen.select():
            if isinstance(key.fileobj, socket.socket) and key.data not in begun:
                begun.add(key.data)
                waiting -= 1
        time.sleep(0.05)
    ready.set()
    while not stop.is_set():
        begin_s = time.monotonic()
        for key, _ in chosen.select(0.1):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            try:
                alive = connection.recv(READ_BYTES)
            except OSError:
                alive = b""
            if not alive:
                chosen.unregister(connection)
                connection.close()
                opened(key.data)
        stop.wait(max(0.0, 1 - (time.monotonic() - begin_s)))


def latencies(host: str, port: int, seconds: float) -> list[float]:
    """Seconds of each append of one event, one after the other."""
    line = http.client.HTTPConnection(host, port)
    body = json.dumps({"conversation_id": "measured", "event_type": "t", "content": CONTENT})
    found = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        begin_s = time.perf_counter()
        line.request("POST", "/v1/events", body, HEADERS)
        answer = line.getresponse()
        answer.read()
        found.append(time.perf_counter() - begin_s)
        if answer.status != 200:
            raise SystemExit(f"an append is answered {answer.status}")
    line.close()
    return found


def filled(host: str, port: int) -> None:
    """Put in what the readers are to read."""
    line = http.client.HTTPConnection(host, port)
    for start in range(0, EVENTS, 1000):
        events = [
            {"conversation_id": f"c{number % 10}", "event_type": "t", "content": CONTENT} for number in range(start, start + 1000)
        ]
        line.request("POST", "/v1/events", json.dumps(events), HEADERS)
        line.getresponse().read()
    line.close()


def told(name: str, found: list[float], resident: int) -> dict[str, Any]:
    cuts = statistics.quantiles(found * 2, n=100)
    speed = f"p50 {cuts[49] * 1e3:7.2f} ms   p99 {cuts[98] * 1e3:7.2f} ms"
    print(f"{name:8} {len(found):7,} appends   {speed}   server {resident >> 20:5} MiB", flush=True)
    return {"p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3, "resident_bytes": resident}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=None)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as scratch:
        server, host, port = started(Path(scratch))
        try:
            filled(host, port)
            latencies(host, port, 2)
            resident = psutil.Process(server.pid).memory_info
            alone: list[float] = []
            beside: list[float] = []
            most = 0
            spawn = multiprocessing.get_context("spawn")
            for _ in range(chosen.turns):
                found = latencies(host, port, chosen.seconds)
                told("alone", found, resident().rss)
                alone += found
                ready, stop = spawn.Event(), spawn.Event()
                readers = spawn.Process(target=read_slowly, args=(host, port, chosen.connections, ready, stop))
                readers.start()
                ready.wait()
                found = latencies(host, port, chosen.seconds)
                most = max(most, resident().rss)
                told("beside", found, resident().rss)
                beside += found
                stop.set()
                readers.join()
            one, other = told("alone", alone, 0), told("beside", beside, most)
            ratios = f"p50 {other['p50_ms'] / one['p50_ms']:.2f}, p99 {other['p99_ms'] / one['p99_ms']:.2f}"
            print(f"ratio beside to alone: {ratios}; {chosen.connections} connections")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


if __name__ == "__main__":
    main()
