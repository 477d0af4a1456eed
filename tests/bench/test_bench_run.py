"""The command ``polarizer bench`` on real, small cells."""

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from neural_polarizer.attacks import BadNets
from neural_polarizer.attacks.base import LearnedTrigger
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.memory import peak_memory, reset_peak_memory
from neural_polarizer.bench.sources import parse_sources
from neural_polarizer.bench.suite import load_suite
from neural_polarizer.bench.work import mixture
from neural_polarizer.errors import BadInputError
from run_files import coloured, run, write_data

Capsys = pytest.CaptureFixture[str]
SMALL = ("--only", "attack=badnets", "--only", "defense=ft", "--only", "defense=none", "--only", "defense=npd")
POLARIZER = (sys.executable, "-c", "from neural_polarizer.cli.main import main; main()")
INLINE = ("--engine", "inline", "--device", "cpu")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARIZER_HOME", str(tmp_path / "home"))


def records_in(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (out / "records").iterdir()}


@pytest.mark.long
def test_a_suite_runs_goes_on_and_is_reported(tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "results"
    done = run(capsys, "bench", "run", "smoke", *SMALL, *INLINE, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert "3 cells, 3 computed, 0 failed" in done.out
    records = records_in(out)
    assert sorted(record["kind"] for record in records.values()) == ["purification", "purification", "victim"]
    for name, record in records.items():
        assert (record["id"], record["status"], record["error"]) == (name, "done", None)
        result = record["result"]
        assert 0 <= result["acc"] <= 1
        assert result["seconds"] > 0
        assert record["provenance"]["versions"].keys() >= {"torch"}
        if record["kind"] == "purification":
            drop = max(0, result["before"]["acc"] - result["acc"])
            fall = max(0, result["before"]["asr"] - result["asr"])
            assert result["der"] == pytest.approx((fall - drop + 1) / 2)
            assert result["n_clean"] == 50
            assert result["peak_mb"] > 50
    again = run(capsys, "bench", "run", "smoke", *SMALL, *INLINE, "--out", out)
    assert "3 cells, 0 computed, 0 failed" in again.out
    assert records_in(out) == records
    status = run(capsys, "bench", "status", "smoke", "--out", out)
    cells = len(planned(load_suite("smoke")))
    assert str(cells) in status.out
    assert str(cells - 3) in status.out
    site = run(capsys, "bench", "report", "smoke", "--results", out, "--out", tmp_path / "site")
    assert site.code == 0
    assert (tmp_path / "site" / "index.html").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("suite", "attack", "values"),
    [
        ("lemma1", None, {"covariance_before", "covariance_after", "curve"}),
        ("fig04", "blended", {"distance_targeted", "distance_untargeted", "distances"}),
        ("fig05-07", "badnets", {"cam_in_trigger_before", "cam_in_trigger_after", "trigger_area", "acc", "der"}),
    ],
)
def test_an_analysis_is_a_cell_with_figures_and_pictures(
    tmp_path: Path, capsys: Capsys, suite: str, attack: str | None, values: set[str]
) -> None:
    if suite == "fig05-07":
        pytest.importorskip("captum", reason="captum is not installed")
    out = tmp_path / "results"
    only = () if attack is None else ("--only", f"attack={attack}")
    done = run(capsys, "bench", "run", suite, "--scale", "smoke", *only, *INLINE, "--out", out)
    assert (done.code, done.err) == (0, "")
    found = [record for record in records_in(out).values() if record["kind"] not in ("victim", "purification")]
    assert found
    for record in found:
        result = record["result"]
        assert values <= result.keys()
        names = {path.name for path in (out / "artefacts" / record["id"]).iterdir()}
        assert set(result["pictures"]) == names
        assert all((out / "artefacts" / record["id"] / name).read_bytes()[:4] == b"\x89PNG" for name in names)
    run(capsys, "bench", "report", suite, "--scale", "smoke", "--results", out, "--out", tmp_path / "site")
    page = (tmp_path / "site" / f"{suite}.html").read_text()
    assert page.count("data:image/png;base64,") == sum(len(record["result"]["pictures"]) for record in found)


@pytest.mark.long
def test_a_failed_cell_is_told_and_does_not_stop_the_others(tmp_path: Path, capsys: Capsys) -> None:
    suite = tmp_path / "bad.toml"
    suite.write_text(
        """
scale = "smoke"
[[grid]]
defense = ["npd", "ft"]
site = ["before:nowhere", ""]
"""
    )
    words = ("bench", "run", suite, *INLINE, "--out", tmp_path / "results")
    told = run(capsys, *words)
    assert told.code == 3  # ft has no site at all: the suite makes no sense
    assert "site makes no sense for ft" in told.err
    suite.write_text(suite.read_text().replace(', "ft"', ""))
    done = run(capsys, *words)
    assert done.code == 1
    assert "1 failed" in done.out
    failed = [record for record in records_in(tmp_path / "results").values() if record["status"] == "failed"]
    assert len(failed) == 1
    assert "nowhere" in failed[0]["error"]
    assert failed[0]["result"] is None


def test_data_is_named_and_its_absence_told_before_anything_is_computed(tmp_path: Path, capsys: Capsys) -> None:
    write_data(tmp_path)
    (tmp_path / "suite.toml").write_text(
        """
[[grid]]
data = ["coloured"]
defense = ["none"]
"""
    )
    words = ("bench", "run", tmp_path / "suite.toml", *INLINE, "--out", tmp_path / "results")
    missing = run(capsys, *words)
    assert missing.code == 3
    assert "no such data set 'coloured'" in missing.err
    assert not (tmp_path / "results").exists()
    assert run(capsys, *words, "--dry-run").code == 0
    with pytest.raises(BadInputError, match="expected a folder"):
        parse_sources([str(tmp_path / "nowhere")])
    found = parse_sources([f"coloured={tmp_path / 'train.parquet'},{tmp_path / 'test.parquet'}"])
    train, test = found.read("coloured")
    assert (len(train), len(test)) == (48, 21)
    (tmp_path / "all" / "coloured").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").rename(tmp_path / "all" / "coloured" / f"{split}.parquet")
    assert len(parse_sources([str(tmp_path / "all")]).read("coloured", 30)[0]) == 30


@pytest.mark.long
def test_a_purification_refuses_other_images_than_its_victim_was_trained_on(tmp_path: Path, capsys: Capsys) -> None:
    write_data(tmp_path)
    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    words = ("bench", "run", "smoke", *INLINE, "--only", "attack=badnets", "--out", tmp_path / "results")
    first = run(capsys, *words, "--only", "defense=none", "--data", f"digits={train},{test}")
    assert (first.code, first.err) == (0, "")
    done = run(capsys, *words, "--only", "defense=npd", "--data", f"digits={test},{train}")
    assert done.code == 1
    assert "not the images that the victim" in done.out


def test_ep_sees_a_part_of_the_training_set_with_the_victims_trigger_at_its_rate() -> None:
    """As published; every other defense sees clean images alone."""
    mixed = mixture(LearnedTrigger(BadNets(poison_rate=0.2), {}), coloured(48, 0), 20, 0)
    corners = (mixed.images[:, :, -1, -1] == 255).all(dim=1)  # brighter than any clean image
    assert len(mixed) == 20
    assert mixed.labels[corners].tolist() == [0] * 4


@pytest.mark.process
def test_a_killed_run_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "results"
    words = [*POLARIZER, "bench", "run", "smoke", *SMALL, *INLINE]
    begun = subprocess.Popen([*words, "--out", str(out)], stdout=subprocess.DEVNULL, env=dict(os.environ))
    records = out / "records"
    for _ in range(1200):
        if records.is_dir() and any(path.suffix == ".json" for path in records.iterdir()):
            break
        time.sleep(0.1)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    before = {path: path.read_bytes() for path in records.glob("*.json")}
    assert before
    subprocess.run([*words, "--out", str(out)], check=True, capture_output=True, timeout=300)
    assert len(records_in(out)) == 3
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.process
def test_ray_computes_the_same_cells(tmp_path: Path, capsys: Capsys) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    words = [*POLARIZER, "bench", "run", "smoke", *SMALL, "--device", "cpu"]
    told = subprocess.run(
        [*words, "--workers", "2", "--out", str(tmp_path / "ray")], capture_output=True, text=True, timeout=300
    )
    assert told.returncode == 0, told.stderr
    assert run(capsys, "bench", "run", "smoke", *SMALL, *INLINE, "--out", tmp_path / "inline").code == 0
    ray, inline = (records_in(tmp_path / name) for name in ("ray", "inline"))
    assert ray.keys() == inline.keys()
    rates = ("acc", "asr", "ra")
    assert all(ray[name]["result"][rate] == inline[name]["result"][rate] for name in ray for rate in rates)


def test_the_peak_of_memory_begins_anew() -> None:
    reset_peak_memory()
    before, size = _peak(), 200 << 20
    with mmap.mmap(-1, size) as block:  # not from the heap, which may hold freed memory
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1
        assert _peak() - before > 150 << 20
    reset_peak_memory()
    assert _peak() - before < 100 << 20


def _peak() -> int:
    peak = peak_memory()
    assert peak is not None
    return peak
