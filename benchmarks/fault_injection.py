"""Kill -9 at random moments, or a disk that is full: is anything damaged, and is the result the same in the end?

    python benchmarks/fault_injection.py --kills 34
    python benchmarks/fault_injection.py --full-disk      # as root, who may mount a small tmpfs

An attack, a purification and a small benchmark are run undisturbed once. Then each is run in new folders again and
again, and killed at a moment that is drawn from the duration of the undisturbed run: one to three times before it may
go on to its end. As writing takes a small part of that time, each is also killed in the middle of its first write, and
again in the middle of the second one from there, the third ... until it comes to its end.

After each kill every file under a final name must be whole (readable, and with its recorded hash), in the results and
in the cache. In the end folders and cache must hold the same files as those of the undisturbed run: weights, images and
triggers byte for byte, records but for times. A run is a forked process that begins where the command line is called,
after Python's imports, so that no kill is wasted on those.

With ``--full-disk`` results and cache lie on a tmpfs that other data fill up to a few KiB. The command is run, finds
the disk full, gets a little more room and is run again, until it succeeds.
"""

import argparse
import importlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image

from neural_polarizer.cache import SEAL, VARIABLE, damage, kept_tensors, key_of
from neural_polarizer.cli.main import main as polarizer
from neural_polarizer.data.parquet import write_images
from neural_polarizer.data.sources import read_images
from neural_polarizer.data.subset import clean_subset
from neural_polarizer.errors import NeuralPolarizerError
from neural_polarizer.files import damage_in

TIMES = ("seconds", "phases", "peak_mb", "started", "command", "sha256")
"""Names in records of what another run does not repeat, and of hashes over that."""
HOLDING_TIMES = ("report.html", "attack.json", "run.json")
IMPORTED_LATE = ("pandas", "torch._dynamo")
"""What commands import when they need it; imported before the forks, where no kill could do harm."""
FORK = multiprocessing.get_context("fork")
ROOM = 48  # KiB more after each time that the disk was full


@dataclass(frozen=True)
class Place:
    """Where a command writes: results in ``out``, the cache in ``home``."""

    root: Path

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def log(self) -> Path:
        """What the command prints; beside ``root``, where there is room."""
        return self.root.with_suffix(".log")


@dataclass
class Tally:
    """What happened to one command."""

    kills: int = 0
    kills_in_writes: int = 0
    completed: int = 0
    damaged: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def well(self) -> bool:
        return not self.damaged and not self.different


def command(name: str, data: Path, place: Place) -> list[str]:
    """The command line of a run that takes a moment."""
    train, test, attacked = data / "train.parquet", data / "test.parquet", data / "attacked"
    computing = ["--device", "cpu"]
    commands: Mapping[str, Sequence[object]] = {
        "attack": (
            *("attack", "trojan", "--data", train, "--test", test, "--out", place.out, "--width", 2, "--epochs", 2),
            *("--batch-size", 20, "--scale", "laptop", "--set", "steps=5", "--precision", "fp32"),
        ),
        "purify": (
            *("purify", attacked, "--clean", train, "--test", test, "--triggered", attacked / "triggered.parquet"),
            *("--out", place.out, "--n-clean", 10, "--epochs", 2, "--fold"),
            *("--precision", "fp32"),
        ),
        "bench": (
            *("bench", "run", "smoke", "--data", f"digits={train},{test}", "--only", "attack=badnets"),
            *("--only", "defense=none", "--only", "defense=ft", "--engine", "inline", "--out", place.out),
        ),
        "export": ("export", data / "purified", "--to", "state-dict", "--out", place.out / "exported.pt"),
    }
    return [*map(str, commands[name]), *([] if name == "export" else computing), "--quiet"]


def start(words: Sequence[str], place: Place, dying_in: int = 0) -> Any:
    """The command in a process of its own; what it prints goes to ``place.log``.

    Args:
        words: the command.
        place: where it writes.
        dying_in: kill it in the middle of its n-th write; 0: never.
    """
    place.root.mkdir(parents=True, exist_ok=True)
    process = FORK.Process(target=_run, args=(words, place, dying_in))
    process.start()
    return process


def _run(words: Sequence[str], place: Place, dying_in: int) -> None:
    fsync, writes = os.fsync, itertools.count(1)

    def dying(descriptor: int) -> None:
        if next(writes) == dying_in:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = dying  # type: ignore[assignment]
    os.environ[VARIABLE] = str(place.home)
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    polarizer(list(words))


def finish(words: Sequence[str], place: Place) -> float:
    """Run a command to its end, which must be a good one; the seconds."""
    begun = time.perf_counter()
    process = start(words, place)
    process.join()
    if process.exitcode != 0:
        sys.exit(f"{' '.join(words)}: exit code {process.exitcode}\n{place.log.read_text()}")
    return time.perf_counter() - begun


def write_data(data: Path) -> None:
    data.mkdir()
    digits = read_images("digits:train")
    for name, count, seed in (("train", 60, 0), ("test", 20, 1)):
        write_images(data / f"{name}.parquet", digits.select(clean_subset(digits, count, seed=seed)))


def prepare(root: Path) -> Path:
    """Data, an attacked model and a purified one, below ``root``."""
    data = root / "data"
    process = FORK.Process(target=write_data, args=(data,))  # this process stays without threads, as forks need it
    process.start()
    process.join()
    for name, result in (("attack", "attacked"), ("purify", "purified")):
        place = Place(root / f"first-{name}")
        finish(command(name, data, place), place)
        shutil.copytree(place.out, data / result)
    return data


def files_below(place: Place) -> dict[str, Path]:
    """All files of results and cache, by their names from ``place.root``."""
    return {
        str(path.relative_to(place.root)): path
        for top in (place.out, place.home)
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }


def damaged(place: Place) -> list[str]:
    """What is wrong with the files under final names."""
    found = []
    for name, path in files_below(place).items():
        if path.suffix == ".part":
            continue
        try:
            reason = _wrong_with(path)
        except (OSError, ValueError, KeyError, SyntaxError, NeuralPolarizerError) as error:
            reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            found.append(f"{name}: {reason}")
    return found


def _read_picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


READERS: Mapping[str, Callable[[Path], object]] = {
    ".parquet": pq.read_table,
    ".png": _read_picture,
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".sarif": lambda path: json.loads(path.read_text()),
}
"""What raises an error where a file of that kind is not whole."""


def _wrong_with(path: Path) -> str | None:
    if path.name == SEAL:
        return damage(path.parent)
    if path.suffix == ".json":
        record = json.loads(path.read_text())
        if path.parent.name == "records" and record.pop("sha256") != key_of(record):
            return "its hash is another one"
        return damage_in(path.parent, record.get("files", {}) if path.name in HOLDING_TIMES else {})
    if path.suffix == ".safetensors":
        return "no whole tensors" if kept_tensors(path) is None else None
    if path.suffix == ".html":
        return None if path.read_text().rstrip().endswith("</html>") else "cut off"
    if path.suffix not in READERS:
        return "a file that nobody expects"
    READERS[path.suffix](path)
    return None


def differences(place: Place, calm: Place) -> list[str]:
    """Files of a finished run that an undisturbed one has not, or has otherwise, and the other way round."""
    ours, theirs = files_below(place), files_below(calm)
    found = [f"{name}: in one of the two alone" for name in ours.keys() ^ theirs.keys()]
    for name in ours.keys() & theirs.keys():
        one, other = (path.read_bytes() for path in (ours[name], theirs[name]))
        if name.endswith(".json"):
            one, other = (json.dumps(_timeless(json.loads(each)), sort_keys=True).encode() for each in (one, other))
        if one != other and not name.endswith(".html"):
            found.append(f"{name}: not the same")
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(each) for name, each in value.items() if name not in (*TIMES, *HOLDING_TIMES)}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def kill(name: str, data: Path, root: Path, kills: int, chance: random.Random) -> Tally:
    """Run one command again and again until it has been killed so many times."""
    calm = Place(root / name / "calm")
    seconds = finish(command(name, data, calm), calm)
    tally, turn = Tally(), 0
    place = Place(root / name / "in-writes")
    while True:
        process = start(command(name, data, place), place, dying_in=tally.kills_in_writes + 1)
        process.join()
        tally.damaged += damaged(place)
        if process.exitcode != -signal.SIGKILL:
            break
        tally.kills_in_writes += 1
    _complete(name, data, place, calm, tally)
    while tally.kills < kills:
        turn += 1
        place = Place(root / name / f"turn{turn}")
        words = command(name, data, place)
        for _ in range(chance.randint(1, 3)):
            process = start(words, place)
            process.join(chance.uniform(0, seconds))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            tally.kills += 1
            tally.damaged += damaged(place)
        _complete(name, data, place, calm, tally)
    print(
        f"{name}: undisturbed {seconds:.1f} s; {tally.kills} kills at random moments, {tally.kills_in_writes} in the "
        f"middle of writes; {tally.completed} runs went on to their end; damaged {len(tally.damaged)}; equal to the "
        f"undisturbed run: {'no' if tally.different else 'yes'}",
        flush=True,
    )
    return tally


def _complete(name: str, data: Path, place: Place, calm: Place, tally: Tally) -> None:
    """Let a run that was killed go on to its end, and compare it with the undisturbed one."""
    finish(command(name, data, place), place)
    tally.completed += 1
    tally.damaged += damaged(place)
    tally.different += differences(place, calm)
    if tally.well:
        shutil.rmtree(place.root)


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """A tmpfs of that size at ``folder``.

    Raises:
        PermissionError: this process may not mount one.
    """
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    try:
        subprocess.run(mounting, check=True, capture_output=True)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise PermissionError("a tmpfs cannot be mounted here") from error
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, free: int) -> None:
    with (folder / "ballast").open("wb") as ballast:
        there = os.statvfs(folder)
        ballast.write(bytes(max(0, there.f_bavail * there.f_frsize - free * 1024)))


def full_disk(name: str, data: Path, root: Path) -> Tally:
    """Run one command on a full disk, with a little more room each time, until it succeeds."""
    calm, tally, free = Place(root / name / "calm"), Tally(), 0
    calm.out.mkdir(parents=True)
    finish(command(name, data, calm), calm)
    with small_disk(root / name / "disk", 4096):
        place = Place(root / name / "disk")
        place.out.mkdir()
        code: int | None = None
        while code != 0:
            (place.root / "ballast").unlink(missing_ok=True)
            fill(place.root, free)
            before = {each: path.read_bytes() for each, path in files_below(place).items()}
            process = start(command(name, data, place), place)
            process.join()
            code, said, now = process.exitcode, place.log.read_text(), files_below(place)
            tally.damaged += damaged(place)
            tally.damaged += [f"{each}: left over" for each in now if each.endswith(".part")]
            if code == 4 and said.startswith("error: ") and said.count("\n") == 1:
                tally.kills += 1
            elif code != 0:
                tally.damaged.append(f"exit code {code}: {said}")
                break
            states = ("training.safetensors", "trigger.safetensors", "run.json")  # the last one grows with --fold
            tally.damaged += [
                f"{each}: changed"
                for each, data_before in before.items()
                if not each.endswith(states) and not (each in now and now[each].read_bytes() == data_before)
            ]
            free += ROOM
        tally.different += differences(place, calm)
    print(
        f"{name}: the disk was full {tally.kills} times (exit code 4, one line); damaged {len(tally.damaged)}; equal "
        f"to the undisturbed run: {'no' if tally.different else 'yes'}",
        flush=True,
    )
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="attack, purify, bench or (full disk) export; repeatable")
    parser.add_argument("--kills", type=int, default=34, help="of each of the three commands")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--full-disk", action="store_true", help="instead of kills")
    parser.add_argument("--keep", type=Path, help="folder for the runs; default: a temporary one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for module in IMPORTED_LATE:
        importlib.import_module(module)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = (options.keep or Path(folder)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        data = prepare(root)
        if options.full_disk:
            names = options.only or ("attack", "purify", "export", "bench")
            tallies = [full_disk(name, data, root) for name in names]
        else:
            names = options.only or ("attack", "purify", "bench")
            tallies = [kill(name, data, root, options.kills, chance) for name in names]
        for line in (line for tally in tallies for line in (*tally.damaged, *tally.different)):
            print(" ", line)
    if not all(tally.well for tally in tallies):
        sys.exit(1)


if __name__ == "__main__":
    main()
