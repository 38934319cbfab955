"""A pre-forked HTTP server whose workers share their counters, though one of them is killed.

The parent opens the socket and forks; every worker accepts from it. The counters lie in
shared memory under a Lock, which the next one takes over when its holder is killed.

    python examples/prefork_server.py [REQUESTS]
"""

import signal
import sys
from contextlib import closing
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer

from ipcmap import Lock, Mapping, Process

WORKERS = 3


class Counters:
    """A count for each worker, and one for all."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._shared = Mapping.anonymous(8 * (WORKERS + 1))
        self.counts = self._shared.view().cast("Q")

    def add(self, worker: int) -> int:
        """Count one request of a worker; return how many there were."""
        with self.lock:
            self.counts[worker] += 1
            self.counts[WORKERS] += 1
            return self.counts[WORKERS]


def serve(server: HTTPServer, counters: Counters, worker: int) -> None:
    """Answer requests until the parent ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/die":
                counters.lock.acquire()  # the worst moment to be killed in
                signal.raise_signal(signal.SIGKILL)
            body = b"request %d, by worker %d\n" % (counters.add(worker), worker)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server.RequestHandlerClass = Handler
    server.serve_forever()


def ask(port: int, path: str) -> str:
    """Send one request; return the answer, or that there was none."""
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode().strip()
        except ConnectionError:
            return "no answer: the worker died"


def main() -> None:
    """Serve, ask, kill a worker, ask again, and add up."""
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    counters = Counters()
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        workers = [Process(target=serve, args=(server, counters, n)) for n in range(WORKERS)]
        for worker in workers:
            worker.start()
        for number in range(requests):
            if number == requests // 2:
                print(ask(server.server_port, "/die"))
            answer = ask(server.server_port, "/")
        print(answer)
        for worker in workers:
            worker.terminate()
            worker.join()
    *by_worker, total = counters.counts
    print(f"counted {total}, by worker {by_worker}")
    sys.exit(0 if total == sum(by_worker) == requests else 1)


if __name__ == "__main__":
    main()
