"""The baselines from the command line, as folders: the same outputs as NPD's."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import neural_polarizer
from baseline_cases import BASELINES, record_in, words
from neural_polarizer import BadInputError
from neural_polarizer.data.parquet import write_images
from neural_polarizer.data.poison import poison
from neural_polarizer.defenses import (
    EntropyPruning,
    FineTuning,
)
from neural_polarizer.files import UNFINISHED
from neural_polarizer.model_files.load import load_model
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.runs.inspect import Evidence
from neural_polarizer.runs.purification import Purification
from neural_polarizer.runs.purify import run_purify
from run_files import attack_words, coloured, make_runs, run, states_equal

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


@pytest.mark.long
@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_leaves_what_npd_leaves_but_for_the_layer(
    runs: Path, tmp_path: Path, capsys: Capsys, method: str
) -> None:
    done = run(capsys, *words(method, runs, tmp_path))
    assert (done.code, done.err) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("purified.safetensors", "run.json", "report.html", "clean_index.json", "verdict.json", "verdict.sarif")
    }
    record = record_in(tmp_path)
    promised = "seed config n_clean before after der seconds history model_sha256 versions audit suspect precision"
    assert set(promised.split()) <= record.keys()
    assert (record["method"], record["site"], record["n_clean"]) == (method, None, 12)
    assert {"acc", "asr", "ra"} <= record["before"].keys() == record["after"].keys()
    assert record["seconds"].keys() > {"load", "evaluate", "total"}
    assert "ASR" in done.out
    report = (tmp_path / "report.html").read_text()
    assert "Learning curves" not in report
    assert "polarizer, was inserted" not in report


@pytest.mark.long
@pytest.mark.parametrize("method", BASELINES)
def test_the_purified_model_is_plain_and_loads_without_us(
    runs: Path, tmp_path: Path, capsys: Capsys, method: str
) -> None:
    assert run(capsys, *words(method, runs, tmp_path)).code == 0
    state = load_file(tmp_path / "purified.safetensors")
    attacked = load_file(runs / "attack" / "model.safetensors")
    assert state.keys() == attacked.keys()
    assert not states_equal(state, attacked)
    plain: nn.Module = PreActResNet18(3, 2)
    plain.load_state_dict(state)
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(pixels), neural_polarizer.load(tmp_path)(pixels))


def test_nc_reports_every_class_in_numbers_and_pictures(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    done = run(capsys, *words("nc", runs, tmp_path))
    assert "Inverted a trigger for each of 3 classes" in " ".join(done.out.split())
    by_class = record_in(tmp_path)["audit"]["by_class"]
    assert by_class.keys() == {"mask_size", "reached", "anomaly_index", "flagged"}
    assert {len(values) for values in by_class.values()} == {3}
    report = (tmp_path / "report.html").read_text()
    assert "What was found, class by class" in report
    assert "<b>Inverted triggers</b>" in report
    assert report.count("data:image/png;base64,") == 3


@pytest.mark.long
def test_another_method_in_the_same_folder_is_refused_and_the_same_one_shown_again(
    runs: Path, tmp_path: Path, capsys: Capsys
) -> None:
    assert run(capsys, *words("ft", runs, tmp_path)).code == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(capsys, *words("ft", runs, tmp_path)).code == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    other = run(capsys, *words("fp", runs, tmp_path))
    assert other.code == 3
    assert "holds another run (method ft, seed 0)" in other.err


def test_the_result_of_an_older_algorithm_is_not_shown_as_that_of_this_one(
    runs: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capsys, *words("ft", runs, tmp_path)).code == 0
    assert record_in(tmp_path)["revision"] == FineTuning.revision == 1
    monkeypatch.setattr(FineTuning, "revision", 2)
    other = run(capsys, *words("ft", runs, tmp_path))
    assert other.code == 3
    assert "holds another run (method ft, seed 0)" in other.err


def test_a_layer_that_a_killed_run_left_is_taken_away(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "polarizer.safetensors").write_bytes(b"of another method")
    (tmp_path / UNFINISHED).touch()
    assert run(capsys, *words("ft", runs, tmp_path)).code == 0
    assert not (tmp_path / "polarizer.safetensors").exists()
    assert not (tmp_path / UNFINISHED).exists()


def test_a_model_with_a_polarizer_keeps_it_when_it_is_fine_tuned(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    done = run(
        capsys,
        *words("ft", runs, tmp_path / "a", "--n-clean", 9)[:1],
        runs / "purified",
        *words("ft", runs, tmp_path / "a")[2:],
    )
    assert (done.code, done.err) == (0, "")
    state = load_file(tmp_path / "a" / "purified.safetensors")
    assert state.keys() == load_file(runs / "purified" / "purified.safetensors").keys()
    assert load_model(tmp_path / "a").record.site == "before:layer4.1"


OPTIONS: dict[str, tuple[str, tuple[object, ...], dict[str, Any]]] = {
    "precision": ("ft", ("--precision", "bf16"), {"schedule.precision": "bf16"}),
    "precision of nc": ("nc", ("--precision", "bf16"), {"precision": "bf16", "schedule.precision": "bf16"}),
    "precision of anp": ("anp", ("--precision", "bf16"), {"precision": "bf16"}),
    "precision of nad": ("nad", ("--precision", "bf16"), {"teacher.precision": "bf16", "student.precision": "bf16"}),
    "epochs": ("nad", ("--epochs", 2), {"student.epochs": 2, "teacher.epochs": 1}),
    "epochs of nc": ("nc", ("--epochs", 2), {"epochs": 2, "schedule.epochs": 2}),
    "batch size": ("nad", ("--batch-size", 5), {"teacher.batch_size": 5, "student.batch_size": 5}),
    "a list": ("nad", ("--set", "weights=[1, 2.5]"), {"weights": [1, 2.5]}),
    "laptop": ("anp", ("--scale", "laptop"), {"lr": 0.04, "batch_size": 6, "iterations": 2, "flip": False}),
    "profile": ("anp", ("--profile", "cifar10"), {"lr": 0.01, "flip": True}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_reaches_the_baseline(runs: Path, tmp_path: Path, capsys: Capsys, name: str) -> None:
    method, more, expected = OPTIONS[name]
    done = run(capsys, *words(method, runs, tmp_path, *more))
    assert (done.code, done.err) == (0, "")
    config = record_in(tmp_path)["config"]
    for place, value in expected.items():
        found: Any = config
        for part in place.split("."):
            found = found[part]
        assert found == value, place
    if "precision" in name:
        assert record_in(tmp_path)["precision"] == "bf16"


@pytest.mark.long
def test_the_data_set_is_known_by_the_models_normalisation(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    assert run(capsys, *attack_words(runs, tmp_path / "attack", "--profile", "cifar10", "--epochs", 1)).code == 0
    base = words("anp", runs, tmp_path / "out")
    assert run(capsys, base[0], tmp_path / "attack", *base[2:]).code == 0
    assert record_in(tmp_path / "out")["config"]["flip"]
    assert run(capsys, *words("anp", runs, tmp_path / "other")).code == 0
    assert not record_in(tmp_path / "other")["config"]["flip"]


WRONG: dict[str, tuple[str, tuple[object, ...]]] = {
    "site makes no sense for ft": ("ft", ("--site", "after:layer4")),
    "radius makes no sense for anp": ("anp", ("--radius", 1)),
    "nc takes no preset": ("nc", ("--preset", "paper")),
    "i-bau takes no target": ("i-bau", ("--target", 0)),
    "epochs makes no sense for ep": ("ep", ("--epochs", 3)),
    "epochs makes no sense for anp": ("anp", ("--epochs", 3)),
    "precision makes no sense for i-bau": ("i-bau", ("--precision", "bf16")),
    "mixture makes no sense for fp": ("fp", ("--mixture", "x.parquet")),
    "npd has presets, not scales": ("npd", ("--scale", "laptop")),
}


@pytest.mark.parametrize("message", WRONG)
def test_an_option_without_meaning_is_wrong_usage(tmp_path: Path, capsys: Capsys, message: str) -> None:
    method, more = WRONG[message]
    out = tmp_path / "out"
    done = run(capsys, "purify", tmp_path / "gone", "--clean", "c", "--out", out, "--method", method, *more)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not out.exists()


BAD: dict[str, tuple[str, tuple[object, ...]]] = {
    "--set colour=1: expected NAME=VALUE with a NAME of schedule.epochs": ("ft", ("--set", "colour=1")),
    "threshold cannot be 'high': expected float": ("anp", ("--set", "threshold=high")),
    "lr cannot be 'NaN': expected float": ("anp", ("--set", "lr=NaN")),
    "iterations cannot be 1.5: expected int": ("anp", ("--set", "iterations=1.5")),
    "weights cannot be 3: expected tuple": ("nad", ("--set", "weights=3")),
    "ANP needs a positive eps": ("anp", ("--set", "eps=-1")),
    "the loss was not finite in epoch 1 of 1; lower the learning rate": ("ft", ("--set", "schedule.lr=1e30")),
    "FT needs at least 2 images, got 1": ("ft", ("--n-clean", 1)),
    "NC needs at least 2 images, got 1": ("nc", ("--n-clean", 1)),
    "ep with data=mixture needs poisoned training images: give them with --mixture": ("ep", ("--set", "data=mixture")),
    "no such file or folder": ("ep", ("--mixture", "gone.parquet")),
    "a clean subset must hold 1..48 images, got 49": ("fp", ("--n-clean", 49)),
}


@pytest.mark.long
@pytest.mark.parametrize("message", BAD)
def test_bad_input_of_a_baseline_is_one_line(runs: Path, tmp_path: Path, capsys: Capsys, message: str) -> None:
    method, more = BAD[message]
    done = run(capsys, *words(method, runs, tmp_path / "out", *more))
    assert done.code == 3, done.err
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.long
@pytest.mark.parametrize("method", ["ft", "fp", "nad", "nc", "ft-sam", "fst", "sau"])
def test_a_class_without_images_is_refused_where_all_weights_are_trained(
    runs: Path, tmp_path: Path, capsys: Capsys, method: str
) -> None:
    pool = coloured(48, 0)
    write_images(tmp_path / "two.parquet", pool.select(pool.labels != 2))
    done = run(capsys, *words(method, runs, tmp_path / "out", "--clean", tmp_path / "two.parquet"))
    assert done.code == 3
    assert re.search(r"two.parquet: no image of 1 of 3 classes, the first is 2 \(blue\); [\w-]+ trains", done.err)
    assert done.err.count("\n") == 1


def test_a_class_without_images_is_warned_of_elsewhere(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    pool = coloured(48, 0)
    write_images(tmp_path / "two.parquet", pool.select(pool.labels != 2))
    done = run(capsys, *words("anp", runs, tmp_path / "out", "--clean", tmp_path / "two.parquet"))
    assert done.code == 0
    assert any("1 of 3 classes have no clean image" in text for text in record_in(tmp_path / "out")["warnings"])


@pytest.mark.long
def test_ep_says_whether_it_saw_poisoned_images(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    poisoned, _, _ = poison(coloured(48, 0), neural_polarizer.BadNets(), rate=0.3, seed=0)
    write_images(tmp_path / "mixture.parquet", poisoned)
    assert run(capsys, *words("ep", runs, tmp_path / "clean")).code == 0
    with_it = words("ep", runs, tmp_path / "mixed", "--mixture", tmp_path / "mixture.parquet")
    done = run(capsys, *with_it)
    assert done.code == 0
    clean, mixed = record_in(tmp_path / "clean"), record_in(tmp_path / "mixed")
    assert clean["mixture"] is None
    assert clean["config"]["data"] == "clean"
    assert any("was given clean images only" in warning for warning in clean["warnings"])
    assert mixed["mixture"] == {"n": 48, "sha256": poisoned.sha256()}
    assert mixed["config"]["data"] == "mixture"
    assert mixed["data"]["mixture"] == str(tmp_path / "mixture.parquet")
    exception = "exception: ep was given 48 images of the poisoned training set"
    assert [warning.startswith(exception) for warning in mixed["warnings"]].count(True) == 1
    assert "warning: exception: ep was given" in done.out
    assert "exception: ep was given 48 images" in (tmp_path / "mixed" / "report.html").read_text()


def test_poisoned_images_reach_only_a_defense_that_is_declared_to_see_them(runs: Path, tmp_path: Path) -> None:
    for defense, mixture, match in (
        (EntropyPruning(), coloured(9, 3), "ep sees clean images only"),
        (FineTuning(), coloured(9, 3), "ep sees clean images only"),
        (EntropyPruning(data="mixture"), None, "needs poisoned training images"),
    ):
        job = Purification(
            loaded=load_model(runs / "attack"),
            pool=coloured(48, 0),
            defense=defense,
            method="ep",
            n_clean=9,
            seed=0,
            evidence=Evidence(),
            sources={},
            mixture=mixture,
        )
        with pytest.raises(BadInputError, match=match):
            run_purify(job, tmp_path / "out", device=torch.device("cpu"))
    assert not (tmp_path / "out").exists()
