"""A contender without a model: takes its orders from the options and from the prompts' first tokens."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from lightvllm.bench.compare.drivers import serve

FAIL, DIE, HANG, SHORT = 100, 101, 102, 103


def load(options):
    print("loading, says a library on stdout", flush=True)
    if options.get("fail"):
        raise OSError(2, "no such\nmodel")
    if options.get("die"):
        print("Segmentation fault", file=sys.stderr)
        os._exit(3)
    if options.get("spin"):
        threading.Thread(target=_spin, daemon=True).start()
    if "child" in options:
        child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        Path(options["child"]).write_text(str(child.pid))

    def generate(prompts, output_lens):
        order = prompts[0][0]
        if order == FAIL:
            raise ValueError("out of memory")
        if order == DIE:
            print("killed", file=sys.stderr, flush=True)
            os._exit(9)
        if order == HANG:
            time.sleep(60)
        print("a library says more", flush=True)
        os.system("echo and a process of its own, too")
        lens = [1] * len(output_lens) if order == SHORT else output_lens
        return {"first": [0.5] * len(lens), "last": [float(n) for n in lens], "lens": lens, "seconds": sum(lens)}

    return "1.2", generate


def _spin():
    while True:
        pass


if __name__ == "__main__":
    serve.serve(load)
