"""How soon a server is ready, what it costs when idle, how soon its engine is back: python benchmarks/server_life.py

Each is the median of --repeats servers with the default model: seconds from starting `lightvllm serve` to a 200 of
/health; processor time of its processes in --idle seconds without a request; and seconds from `kill -9` of the engine
until /health is 200 again. Run it on a machine that does nothing else.
"""

import argparse
import statistics
import time

import psutil

from lightvllm.bench.load.server_process import running_server
from lightvllm.client import Client


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--idle", type=float, default=5.0)
    args = parser.parse_args()
    figures = [measure(args.idle) for _ in range(args.repeats)]
    labels = ("ready after (s)", f"processor time in {args.idle:g} idle s (s)", "back after kill -9 (s)")
    for label, values in zip(labels, zip(*figures, strict=True), strict=True):
        print(f"{label:36} {statistics.median(values):6.2f}   of {', '.join(f'{value:.2f}' for value in values)}")


def measure(idle: float) -> tuple[float, float, float]:
    """One server's seconds: until ready, of processor time when idle, and until its engine is back."""
    start = time.monotonic()
    with running_server({"access_log": False}) as url, Client(url) as client:
        ready = time.monotonic() - start
        client.complete("SELECT", max_tokens=5)
        [server] = [child for child in psutil.Process().children() if "serve" in child.cmdline()]
        [engine] = server.children()
        time.sleep(1)  # what a request leaves to do
        before = processor_time(server, engine)
        time.sleep(idle)
        used = processor_time(server, engine) - before
        killed = time.monotonic()
        engine.kill()
        while server.children() in ([], [engine]) or not client.health():
            time.sleep(0.01)
        return ready, used, time.monotonic() - killed


def processor_time(*processes: psutil.Process) -> float:
    """Seconds that they have used so far."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


if __name__ == "__main__":
    main()
