"""Full disks, damaged files, two runs at once, no memory, no finite loss, signals: what is promised then."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark_scripts import script
from neural_polarizer import cache, files
from neural_polarizer.bench.store import Store
from neural_polarizer.bench.work import NEEDED
from neural_polarizer.defenses.npd.presets import preset
from neural_polarizer.errors import BadInputError, EnvironmentFaultError
from neural_polarizer.runs import attack as attacks
from neural_polarizer.runs import purify as purifications
from neural_polarizer.runs.attack import Victim, clean_model
from neural_polarizer.train.fit import fit
from neural_polarizer.train.schedule import Schedule
from run_files import Outcome, attack_words, coloured, make_runs, purify_words, run, states_equal
from toys import tiny_images, tiny_model

Capsys = pytest.CaptureFixture[str]
INJECTION = script("fault_injection")
COMMANDS = ("attack", "purify", "export", "bench")
SCHEDULE = Schedule(epochs=1, batch_size=16)
VICTIM = Victim(architecture="preactresnet18", width=2, profile="none", schedule=SCHEDULE, seed=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv(cache.VARIABLE, str(home))
    return home


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            stack.enter_context(INJECTION.small_disk(tmp_path / "disk", 2048))
        except PermissionError as error:
            pytest.skip(str(error))
        yield tmp_path / "disk"


def words(command: str, runs: Path, out: Path) -> tuple[object, ...]:
    """A command that takes a moment and writes to ``out``."""
    to = ("--out", out)
    data = f"digits={runs / 'train.parquet'},{runs / 'test.parquet'}"
    bench = ("bench", "run", "smoke", "--data", data, "--only", "attack=badnets", "--only", "defense=none")
    return {
        "attack": attack_words(runs, out),
        "purify": purify_words(runs / "attack", runs, out, "--method", "ft", "--batch-size", 4, "--epochs", 1),
        "audit": ("audit", runs / "attack", "--clean", runs / "train.parquet", "--n-clean", 6, "--device", "cpu", *to),
        "export": ("export", runs / "purified", "--to", "state-dict", "--out", out / "exported.pt"),
        "bench": (*bench, "--engine", "inline", "--device", "cpu", "--out", out),
    }[command]


def told(done: Outcome, code: int, reason: str) -> bool:
    """Whether a command ended with this code and one line."""
    return done.code == code and done.err.startswith("error: ") and done.err.count("\n") == 1 and reason in done.err


def flip(path: Path, at: int = -9) -> bytes:
    """Flip one bit of a file; returns what it was."""
    before = path.read_bytes()
    data = bytearray(before)
    data[at] ^= 1
    path.write_bytes(data)
    return before


def reason_beside(path: Path) -> str:
    """Why a file was set aside."""
    return (path.parent / "damaged" / f"{path.name}.reason.txt").read_text()


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_costs_nothing_but_the_time(
    runs: Path, disk: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    calm = INJECTION.Place(tmp_path)
    calm.out.mkdir()
    assert run(capsys, *words(command, runs, calm.out)).code == 0
    place = INJECTION.Place(disk)
    place.out.mkdir()
    monkeypatch.setenv(cache.VARIABLE, str(place.home))
    for free in (0, 12):
        INJECTION.fill(disk, free)
        assert told(run(capsys, *words(command, runs, place.out)), 4, "o space left on device")
        assert not INJECTION.damaged(place)
        assert not list(disk.rglob("*.part"))
        (disk / "ballast").unlink()
    assert run(capsys, *words(command, runs, place.out)).code == 0
    assert not INJECTION.differences(place, calm)


@pytest.mark.process
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_can_only_be_read_is_told(runs: Path, disk: Path, capsys: Capsys, command: str) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = run(capsys, *words(command, runs, disk))
    assert told(done, 4 if command == "export" else 3, "Read-only file system")


@pytest.mark.process
def test_a_cache_that_can_only_be_read_is_told(
    runs: Path, disk: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    monkeypatch.setenv(cache.VARIABLE, str(disk))
    done = run(capsys, *words("attack", runs, tmp_path / "out"))
    assert told(done, 3, "Read-only file system; set POLARIZER_HOME")
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", ["model.safetensors", "attack.json"])
def test_a_damaged_attack_in_the_cache_is_made_again(
    runs: Path, own_home: Path, tmp_path: Path, capsys: Capsys, name: str
) -> None:
    assert run(capsys, *words("attack", runs, tmp_path / "a")).code == 0
    (entry,) = (own_home / "attacks").iterdir()
    flip(entry / name)
    assert run(capsys, *words("attack", runs, tmp_path / "b")).code == 0
    for each in ("model.safetensors", "triggered.parquet", "trigger.safetensors", "trigger.png"):
        assert (tmp_path / "b" / each).read_bytes() == (tmp_path / "a" / each).read_bytes()
    assert f"{name} has the SHA-256" in reason_beside(entry / name)
    assert cache.damage(entry) is None


def test_a_damaged_clean_model_is_trained_again(own_home: Path) -> None:
    first = clean_model(coloured(32, 0), VICTIM, device=torch.device("cpu")).state_dict()
    (entry,) = (own_home / "clean").iterdir()
    flip(entry / "model.safetensors")
    assert states_equal(clean_model(coloured(32, 0), VICTIM, device=torch.device("cpu")).state_dict(), first)
    assert "has the SHA-256" in reason_beside(entry / "model.safetensors")


def test_damaged_tensors_in_the_cache_are_computed_again(own_home: Path) -> None:
    def cached() -> dict[str, torch.Tensor]:
        return cache.cached_tensors("masks", {"seed": 0}, lambda: {"mask": torch.arange(40.0)})

    cached()
    (path,) = own_home.rglob("*.safetensors")
    flip(path)
    assert torch.equal(cached()["mask"], torch.arange(40.0))
    assert "its values have the SHA-256" in reason_beside(path)


@pytest.mark.long
def test_damaged_weights_of_a_finished_run_are_made_again(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    for command, name in (("attack", "model.safetensors"), ("purify", "purified.safetensors")):
        out = tmp_path / command
        assert run(capsys, *words(command, runs, out)).code == 0
        before = flip(out / name)
        assert run(capsys, *words(command, runs, out)).code == 0
        assert (out / name).read_bytes() == before
        assert f"{name} has the SHA-256" in reason_beside(out / name)


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "lost"),
    [("attack", "trigger.png"), ("purify", "verdict.sarif"), ("purify", "clean_index.json"), ("purify", "report.html")],
)
def test_a_lost_or_damaged_file_of_a_finished_run_is_made_again(
    command: str, lost: str, runs: Path, tmp_path: Path, capsys: Capsys
) -> None:
    assert run(capsys, *words(command, runs, tmp_path)).code == 0
    (tmp_path / lost).unlink()
    assert run(capsys, *words(command, runs, tmp_path)).code == 0
    (tmp_path / lost).write_bytes(b"<html>")
    assert run(capsys, *words(command, runs, tmp_path)).code == 0
    assert (tmp_path / lost).read_bytes() != (tmp_path / "damaged" / lost).read_bytes() == b"<html>"
    assert f"{lost} has the SHA-256" in reason_beside(tmp_path / lost)


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "record"), [("attack", "attack.json"), ("purify", "run.json"), ("audit", "audit.json")]
)
def test_a_damaged_record_of_a_finished_run_is_set_aside_with_its_files(
    command: str, record: str, runs: Path, tmp_path: Path, capsys: Capsys
) -> None:
    assert run(capsys, *words(command, runs, tmp_path)).code == 0
    names, whole = {each.name for each in tmp_path.iterdir()} - {"home"}, (tmp_path / record).read_bytes()
    (tmp_path / record).write_bytes(whole[:-30])
    assert run(capsys, *words(command, runs, tmp_path)).code == 0
    assert {each.name for each in tmp_path.iterdir()} - {"home", "damaged"} == names
    assert names <= {each.name for each in (tmp_path / "damaged").iterdir()}
    assert (tmp_path / "damaged" / record).read_bytes() == whole[:-30]
    assert "cannot be read as JSON" in reason_beside(tmp_path / record)


@pytest.mark.long
def test_a_damaged_record_or_artefact_of_the_benchmark_is_computed_again(
    runs: Path, tmp_path: Path, capsys: Capsys
) -> None:
    out = tmp_path / "out"
    assert "1 computed" in run(capsys, *words("bench", runs, out)).out
    assert "0 computed" in run(capsys, *words("bench", runs, out)).out
    (record,) = (out / "records").iterdir()
    before = json.loads(flip(record, record.read_text().index('"acc": 0.') + 9))
    assert json.loads(record.read_text())["result"]["acc"] != before["result"]["acc"]
    assert "1 computed" in run(capsys, *words("bench", runs, out)).out
    assert json.loads(record.read_text())["result"]["acc"] == before["result"]["acc"]
    assert "hash" in reason_beside(record)

    model = out / "artefacts" / record.stem / "model.safetensors"
    whole = flip(model)
    assert Store(str(out)).with_artefacts([record.stem], NEEDED) == set()
    record.unlink()
    assert "1 computed" in run(capsys, *words("bench", runs, out)).out
    assert model.read_bytes() == whole
    assert "model.safetensors has the SHA-256" in reason_beside(model)


@pytest.mark.long
@pytest.mark.parametrize("command", ["attack", "purify", "bench"])
def test_the_second_run_in_a_folder_says_so_and_changes_nothing(
    runs: Path, tmp_path: Path, capsys: Capsys, command: str
) -> None:
    out = tmp_path / "out"
    held = out / "records" if command == "bench" else out
    held.mkdir(parents=True)
    with files.sole_use(held):
        assert told(run(capsys, *words(command, runs, out)), 4, "another run is at work in this folder; wait")
    assert [path for path in out.rglob("*") if path != held] == []
    assert run(capsys, *words(command, runs, out)).code == 0


def test_a_run_waits_for_another_that_makes_the_same_thing_in_the_cache() -> None:
    steps: list[str] = []
    waits = threading.Event()

    def second() -> None:
        with cache.entry("clean", {"seed": 0}, waits.set):
            steps.append("second")

    with cache.entry("clean", {"seed": 0}):
        other = threading.Thread(target=second)
        other.start()
        assert waits.wait(30)
        steps.append("first")
    other.join(30)
    assert steps == ["first", "second"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    (tmp_path / ".a.json.part").write_text("what a killed run has left of a longer file")
    with files.atomic_path(path) as temporary:
        other = threading.Thread(target=files.write_text, args=(path, "second"))
        other.start()
        temporary.write_text("first")
        other.join(0.2)
        assert temporary.read_text() == "first"
        assert not path.exists()
    other.join(30)
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_with_the_name_of_a_temporary_file_leads_nowhere(tmp_path: Path) -> None:
    """In a folder that came from somebody else."""
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".run.json.part").symlink_to(mine)
    with pytest.raises(EnvironmentFaultError, match=r"cannot write .*run\.json"):
        files.write_text(tmp_path / "out" / "run.json", "theirs")
    assert mine.read_text() == "mine"


LIMITED = """
import resource, sys
from neural_polarizer.cli.main import main
import torch
torch.zeros(1 << 20)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
main(sys.argv[1:])
"""


@pytest.mark.process
def test_too_little_memory_is_told_in_one_line(runs: Path, tmp_path: Path) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell how much memory a process uses")
    command = [
        sys.executable,
        "-c",
        LIMITED,
        *map(str, attack_words(runs, tmp_path / "out", "--width", 2000, "--quiet")),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (4, "error: out of memory; try a smaller --batch-size or fewer images\n")
    assert not (tmp_path / "out").exists()


def test_an_attack_whose_loss_is_not_finite_stops(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    done = run(capsys, *attack_words(runs, tmp_path / "out", "--lr", 1e30))
    assert told(done, 3, "the loss was not finite in epoch 1 of 2; lower the learning rate, which is 1e+30")
    assert not (tmp_path / "out").exists()


def test_training_that_is_not_finite_keeps_the_state_before(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    model = VICTIM.build(3)
    bad = coloured(32, 0)

    def spoil(phase: str, done: int, total: int) -> None:
        if done == 3:  # the first step of the second epoch
            next(model.parameters()).data.fill_(float("nan"))

    schedule = replace(VICTIM.schedule, epochs=3)
    with pytest.raises(BadInputError, match="not finite in epoch 2 of 3"):
        fit(model, bad, schedule, seed=0, checkpoint=state, progress=spoil)
    kept = cache.kept_tensors(state)
    assert kept is not None
    assert kept.about["epochs_done"] == "1"
    assert all(bool(value.isfinite().all()) for value in kept.tensors.values())


@pytest.mark.parametrize("name", ["npd", "npd-warm-up"])
def test_a_purification_whose_loss_is_not_finite_keeps_the_last_finite_polarizer(name: str) -> None:
    defense = replace(preset("npd"), epochs=2, lr=1e30)
    if name == "npd-warm-up":
        defense = replace(defense, init="default", warmup_epochs=2, warmup_lr=1e30)
    purified = defense.repair(tiny_model(), tiny_images(), seed=0)
    assert purified.polarizer is not None
    assert all(bool(value.isfinite().all()) for value in purified.polarizer.state_dict().values())
    assert any("the loss was not finite in epoch" in note for note in purified.notes)


@pytest.mark.process
def test_output_that_goes_to_a_full_disk_is_told_in_one_line(runs: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no file that is always full")
    command = [sys.executable, "-c", "from neural_polarizer.cli import start; start()"]
    words = ("evaluate", runs / "attack", "--test", runs / "test.parquet", "--device", "cpu")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*command, *map(str, words)], stdout=full, stderr=subprocess.PIPE, text=True)
    said = "error: cannot write the output: the disk is full; make room and start the same command again\n"
    assert (done.returncode, done.stderr) == (4, said)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal: jobs in the background of a shell begin with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.long
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("sent", "code", "command", "module"),
    [(signal.SIGINT, 130, "attack", attacks), (signal.SIGTERM, 143, "purify", purifications)],
)
def test_a_signal_ends_a_run_in_one_line_and_the_next_one_goes_on(
    runs: Path,
    tmp_path: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
    sent: signal.Signals,
    code: int,
    command: str,
    module: Any,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    evaluate = module.evaluate

    def interrupted(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), sent)
        return evaluate(*args, **options)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", interrupted)
        done = run(capsys, *words(command, runs, out))
    assert told(done, code, "; start the same command again to go on")
    assert not out.exists()
    assert not list(tmp_path.rglob("*.part"))
    assert signal.getsignal(signal.SIGTERM) is before
    assert run(capsys, *words(command, runs, out)).code == 0


def test_a_full_disk_stops_the_benchmark_instead_of_failing_every_cell(
    runs: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise EnvironmentFaultError("cannot write model.safetensors: No space left on device")

    monkeypatch.setattr(attacks, "save_model", full)
    assert told(run(capsys, *words("bench", runs, tmp_path / "out")), 4, "No space left on device")
    assert list((tmp_path / "out" / "records").iterdir()) == []


@pytest.mark.long
def test_what_the_fault_injection_would_find(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    place, other = (INJECTION.Place(tmp_path / name) for name in ("one", "other"))
    assert run(capsys, *words("purify", runs, place.out)).code == 0
    shutil.copytree(place.root, other.root)
    assert (INJECTION.damaged(place), INJECTION.differences(place, other)) == ([], [])
    flip(place.out / "purified.safetensors")
    assert [line for line in INJECTION.damaged(place) if "purified.safetensors has the SHA-256" in line]
    assert INJECTION.differences(place, other) == ["out/purified.safetensors: not the same"]
