"""Processes, threads, both together, or asyncio? Four kinds of work, each done in every way that could suit it.

Pure Python holds the interpreter's lock, NumPy lets go of it inside its kernels, requests to a server and many
files wait. A pipeline fetches pages and computes with them. What is compared is within one kind of work.
"""

import asyncio
import contextlib
import functools
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

import parcompute as pc

LATENCY_S, FILE_BYTES, PAGE_BYTES = 0.01, 2**16, 200_000
MANY = 16  # threads, or requests under way, where the work is to wait


# --- the kinds of work: each returns 1 if its result is right ----------------------------------------------


def python(i):
    """Collatz steps in pure Python: the interpreter's lock is held throughout."""
    steps, n = 0, 837_799
    for _ in range(40):
        n, steps = 837_799, 0
        while n != 1:
            n, steps = n // 2 if n % 2 == 0 else 3 * n + 1, steps + 1
    return int(steps == 524)  # Project Euler 14


def numpy(i):
    """Sines by NumPy, which lets go of the lock: the sum over a whole period is 0."""
    x = np.linspace(0, 2 * np.pi, 400_000, endpoint=False)
    return int(abs(float(np.sin(x).sum())) < 1e-6)


def request(port, i):
    """Ask a server that takes its time."""
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/{i}") as answer:
        return int(answer.read() == str(i * i).encode())


def read_file(folder, i):
    """Read a file and check what stands in it."""
    return int(Path(folder, f"{i % 64}").read_bytes() == bytes([i % 64]) * FILE_BYTES)


def digest(content):
    """Add up a page's bytes, in pure Python as a parser would."""
    total = 0
    for byte in content:
        total += byte
    return int(total == content[0] * PAGE_BYTES)


# --- where the waiting is done -----------------------------------------------------------------------------


class Squares(BaseHTTPRequestHandler):
    """Answers /i with i², and /page/i with some bytes, after a while."""

    def do_GET(self):
        threading.Event().wait(LATENCY_S)  # it is a server's latency that is simulated
        number = int(self.path[1:].removeprefix("page/"))
        content = bytes([number % 256]) * PAGE_BYTES if "page" in self.path else str(number * number).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Lets as many wait as ask at once; one that is turned away would try again after a second."""

    request_queue_size = 128


@contextlib.contextmanager
def server():
    """Serve on a free port of this machine."""
    with Server(("127.0.0.1", 0), Squares) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield http.server_port
        finally:
            http.shutdown()
            thread.join()


@functools.cache
def files():
    """Return a folder of 64 files, which goes when the program ends."""
    folder = tempfile.TemporaryDirectory()
    for i in range(64):
        Path(folder.name, f"{i}").write_bytes(bytes([i]) * FILE_BYTES)
    return folder


async def asked_at_once(port, n):
    """Ask by asyncio, with so many requests under way as threads would have."""
    turns = asyncio.Semaphore(MANY)

    async def ask(i):
        async with turns:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /{i} HTTP/1.0\r\n\r\n".encode())
            content = (await reader.read()).rpartition(b"\r\n\r\n")[2]
            writer.close()
            return int(content == str(i * i).encode())

    return sum(await asyncio.gather(*(ask(i) for i in range(n))))


# --- the ways ----------------------------------------------------------------------------------------------


def threads(work: Callable[[int], int], n, n_threads):
    """Do it with threads."""
    with ThreadPoolExecutor(n_threads) as pool:
        return sum(pool.map(work, range(n)))


def processes(work: Callable[[int], int], n, n_workers=2):
    """Do it with worker processes, their start included: it is part of the choice."""
    with pc.Executor(n_workers) as executor:
        return sum(executor.map(work, range(n)))


def fetch(port, i):
    """Fetch a page from a server that takes its time."""
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/page/{i}") as answer:
        return answer.read()


def fetch_and_digest(port, i):
    """Do both steps in one place."""
    return digest(fetch(port, i))


def pipeline(port, n):
    """Fetch with threads, and compute with processes what has been fetched."""
    with ThreadPoolExecutor(MANY) as readers, pc.Executor(2) as executor:
        return sum(executor.map(digest, readers.map(functools.partial(fetch, port), range(n))))


WAYS = {
    "python: serial": lambda n: sum(map(python, range(n))),
    "python: threads": lambda n: threads(python, n, 2),
    "python: processes": lambda n: processes(python, n),
    "numpy: serial": lambda n: sum(map(numpy, range(n))),
    "numpy: threads": lambda n: threads(numpy, n, 2),
    "numpy: processes": lambda n: processes(numpy, n),
    "requests: serial": lambda n: _served(lambda port: sum(request(port, i) for i in range(n))),
    "requests: threads": lambda n: _served(lambda port: threads(functools.partial(request, port), n, MANY)),
    "requests: asyncio": lambda n: _served(lambda port: asyncio.run(asked_at_once(port, n))),
    "requests: processes": lambda n: _served(lambda port: processes(functools.partial(request, port), n)),
    "files: serial": lambda n: sum(read_file(files().name, i) for i in range(n)),
    "files: threads": lambda n: threads(functools.partial(read_file, files().name), n, MANY),
    "files: processes": lambda n: processes(functools.partial(read_file, files().name), n),
    "pipeline: serial": lambda n: _served(lambda port: sum(fetch_and_digest(port, i) for i in range(n))),
    "pipeline: threads": lambda n: _served(lambda port: threads(functools.partial(fetch_and_digest, port), n, MANY)),
    "pipeline: processes": lambda n: _served(lambda port: processes(functools.partial(fetch_and_digest, port), n)),
    "pipeline: both": lambda n: _served(lambda port: pipeline(port, n)),
}


def _served(ask):
    with server() as port:
        return ask(port)


def all_right(n_right, n_items):
    """Compare the number of right results with that of all."""
    return pc.Check(n_right, n_items, 0, "equality: every result is right")


@pc.experiment(
    n_items={"quick": 32, "default": 128, "full": 1024},
    truth=all_right,
    variants=tuple(WAYS),
    backends=("serial",),
)
def concurrency(executor, n_items, seed, variant):
    return WAYS[variant](n_items)


if __name__ == "__main__":
    concurrency.main()
