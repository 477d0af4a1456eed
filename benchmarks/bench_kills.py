"""Kill -9 of the driver and of workers in the middle of a run: what is lost, damaged or computed twice?

    python benchmarks/bench_kills.py --suite smoke --kills 3

Runs the suite once undisturbed and once with kills: each time the driver is started, a worker is killed after a while,
and then the driver itself; after the last kill it runs to its end. Every record is watched: it must be whole whenever
it is there, must never change once it is done, and in the end the rates must equal those of the undisturbed run.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RATES = ("acc", "asr", "ra", "der")
POLARIZER = "from neural_polarizer.cli.main import main; main()"


def start(suite: str, out: Path, home: Path, data: list[str], only: list[str]) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", POLARIZER, "bench", "run", suite, "--out", str(out), "--device", "cpu"]
    words += [word for text in data for word in ("--data", text)] + [word for text in only for word in ("--only", text)]
    log = (out.parent / f"{out.name}.log").open("ab")
    return subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, "POLARIZER_HOME": str(home)})


def records_in(out: Path) -> dict[str, bytes]:
    folder = out / "records"
    return {path.name: path.read_bytes() for path in folder.glob("*.json")} if folder.is_dir() else {}


def done(records: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    found = {name: json.loads(text) for name, text in records.items()}  # fails where a record is damaged
    return {name: record for name, record in found.items() if record["status"] == "done"}


def rates_of(record: dict[str, Any]) -> list[float | None]:
    return [record["result"].get(rate) for rate in RATES]


def workers_of_ray() -> list[int]:
    """Processes that Ray computes cells in just now."""
    found = subprocess.run(["pgrep", "-f", "^ray::_computed"], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


def wait_for(out: Path, count: int, run: subprocess.Popen[bytes]) -> None:
    """Until so many cells are done, or the run is over."""
    while run.poll() is None and len(done(records_in(out))) < count:
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="smoke")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--keep", type=Path, help="folder for the runs; default: a temporary one")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = (options.keep or Path(folder)).resolve()
        calm = start(options.suite, root / "calm", root / "home-calm", options.data, options.only)
        calm.wait()
        wanted = done(records_in(root / "calm"))
        print(f"undisturbed: {len(wanted)} cells done, exit code {calm.returncode}", flush=True)
        out, rewritten, lost = root / "killed", 0, 0
        known: dict[str, bytes] = {}
        for turn in range(options.kills + 1):
            run = start(options.suite, out, root / "home-killed", options.data, options.only)
            if turn < options.kills:
                share = len(wanted) // (options.kills + 1)
                wait_for(out, len(known) + max(1, share // 2), run)
                workers = workers_of_ray()
                if workers:
                    os.kill(chance.choice(workers), signal.SIGKILL)
                wait_for(out, len(known) + max(2, share), run)
                time.sleep(chance.random() * 2)
                run.kill()
                run.wait()
                time.sleep(5)  # workers of the dead driver end by themselves
                killed = f"a worker of {len(workers)} and the driver killed" if workers else "the driver killed"
            else:
                run.wait()
                killed = f"to the end, exit code {run.returncode}"
            now = records_in(out)
            before = done(known)
            lost += len(known.keys() - now.keys())
            rewritten += sum(now[name] != known[name] for name in before.keys() & now.keys())
            print(f"run {turn + 1}: {killed}; {len(done(now))} done of {len(now)} records", flush=True)
            known = now
        found = done(known)
        same = {name for name in wanted.keys() & found.keys() if rates_of(found[name]) == rates_of(wanted[name])}
        for name in wanted.keys() - same:
            print("  differs:", name, found.get(name, {}).get("request"), flush=True)
        print(
            f"lost {lost}, computed twice {rewritten}, equal to the undisturbed run {len(same)} of {len(wanted)}; "
            f"temporary files left: {len(list(out.rglob('*.part')))}"
        )


if __name__ == "__main__":
    main()
