"""``polarizer audit`` from the command line, and ``--target auto``."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_toys import CLASSES, DOOR, Corridor, banded
from torch import nn

from neural_polarizer import purify
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import read_json
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.build import build
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.report.run.audit_page import judge_audit, render_audit
from neural_polarizer.runs.audit import run_audit
from run_files import Outcome, make_runs, purify_words, run

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


def audit(capsys: Capsys, model: Path, runs: Path, out: Path, *more: object) -> Outcome:
    return run(capsys, "audit", model, "--clean", runs / "train.parquet", "--out", out, "--device", "cpu", *more)


@pytest.mark.long
def test_an_audit_writes_its_record_and_its_page(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    more = ("--purified", runs / "purified", "--n-clean", 12)
    first = audit(capsys, runs / "attack", runs, tmp_path / "one", *more)
    assert (first.code, first.err) == (0, "")
    assert "report:" in first.out
    record, page = read_json(tmp_path / "one" / "audit.json"), (tmp_path / "one" / "report.html").read_text()
    assert (record["verdict"], record["suspect"]) == ("cannot say", None)  # three classes
    assert record["n_clean"] == 12
    for part in (record, record["purified"]):
        assert {len(values) for values in part["by_class"].values()} == {3}
        assert part["p_value"] >= part["level"]
        assert isinstance(part["reason"], str)
    assert record["purified"]["spectrum"]["distance"] > 0
    assert "What the layer does to the features" in page
    assert "Purified model, class by class" in page
    assert "<script" not in page


@pytest.mark.long
def test_threats_and_findings_of_the_purified_model_are_told_too(runs: Path, tmp_path: Path) -> None:
    loaded = load_model(runs / "attack")
    purified = replace(loaded, threats=("this file tries to run posix.system",), findings=("taken from model",))
    pool = read_images(str(runs / "train.parquet"), size=loaded.record.image_size)
    more: dict[str, Any] = {"n_clean": 12, "seed": 0, "settings": Settings(), "device": torch.device("cpu")}
    record = run_audit(loaded, pool, tmp_path / "out", purified=purified, sources={"clean": "these"}, **more)
    assert record["threats"] == ["the purified model: this file tries to run posix.system"]
    assert record["findings"] == ["the purified model: taken from model"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "the purified model: this file tries" in page
    assert "the purified model: taken from model" in page


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("another run's folder", "holds run.json"),
        ("another model", "knows 4 classes"),
        ("labels that it does not know", "has label"),
    ],
)
def test_what_an_audit_cannot_use_is_told_in_a_line(
    case: str, words: str, runs: Path, tmp_path: Path, capsys: Capsys
) -> None:
    out, more = tmp_path / "out", []
    if case == "another run's folder":
        out = tmp_path / "copy"
        out.mkdir()
        (out / "run.json").write_text("{}")
    elif case == "another model":
        record = runs / "attack" / "model.safetensors"
        more = ["--purified", _with_more_classes(record, tmp_path)]
    else:
        more = ["--num-classes", 2]
    found = audit(capsys, runs / "attack", runs, out, *more)
    assert found.code == 3
    assert len(found.err.strip().splitlines()) == 1
    if case != "labels that it does not know":
        assert words in found.err
    assert not (out / "audit.json").exists()


def _with_more_classes(file: Path, folder: Path) -> Path:
    loaded = load_model(file)
    network = Normalized(build("preactresnet18", 4, width=2), loaded.record.mean, loaded.record.std)
    save_model(folder / "other.safetensors", network, replace(loaded.record, num_classes=4, classes=None))
    return folder / "other.safetensors"


@pytest.mark.parametrize("command", [True, False])
def test_target_auto_looks_with_the_settings_of_the_method(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys, command: bool
) -> None:
    def looked(method: str, model: nn.Module, clean: ImageSet, settings: Settings, **more: object) -> None:
        raise BadInputError(f"batches of {settings.batch_size}, {settings.site}")

    module = import_module(f"neural_polarizer.{'cli.purify' if command else 'api.purifying'}")
    monkeypatch.setattr(module, "choose_target", looked)
    if command:
        more = ("--method", "npd-tu", "--target", "auto", "--site", "after:layer3", "--batch-size", 3)
        found = run(capsys, *purify_words(runs / "attack", runs, tmp_path / "out", *more))
        assert (found.code, found.err) == (3, "error: batches of 3, after:layer3\n")
    else:
        own: dict[str, Any] = {"site": "after:0", "batch_size": 3, "device": "cpu"}
        with pytest.raises(BadInputError, match="batches of 3, after:0"):
            purify(Corridor(60.0), banded(), "npd-tu", target="auto", **own)


@pytest.mark.long
def test_target_auto_falls_back_to_npd_and_says_so(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    more = ("--method", "npd-tu", "--target", "auto")
    assert run(capsys, *purify_words(runs / "attack", runs, tmp_path / "out", *more)).code == 0
    record = read_json(tmp_path / "out" / "run.json")
    assert record["method"] == "npd"
    assert record["config"]["target"] is None
    assert any("no class stands out" in text for text in record["warnings"])
    wrong = run(capsys, *purify_words(runs / "attack", runs, tmp_path / "no", "--method", "fp", "--target", "auto"))
    assert wrong.code == 2


@pytest.mark.long
def test_target_auto_takes_the_suspect_where_the_audit_is_confident() -> None:
    found = purify(Corridor(60.0), banded(), "npd-tu", target="auto", device="cpu", epochs=1)
    assert f"class {DOOR}" in found.notes[-1]
    assert "takes" in found.notes[-1]


NAMEABLE = {"nameable": {"dense": 0.4, "head": 0.7, "features": None}}


def _record(**changes: Any) -> dict[str, Any]:
    usual = {"verdict": "backdoor", "suspect": 1, "likeliest": 1, "p_value": 0.004, "level": 0.05, "prior": 0.5}
    usual |= {"posterior": 0.98, "accuracy": 0.9, "reason": None, "makes_sense": True, "nameable": {}, "purified": None}
    about = {"model": {"path": "m.pt", "classes": []}, "model_sha256": "00", "n_clean": 9, "clean_sha256": "00"}
    return {**usual, **about, "seed": 0, "versions": {}, "threats": [], "findings": [], **changes}


def test_the_page_spells_out_what_others_have_named() -> None:
    hostile = "<img src=x onerror=alert(1)>\u202e"
    model = {"path": f"/tmp/{hostile}.pt", "architecture": hostile, "classes": [hostile] * CLASSES}
    told = {"findings": [hostile], "threats": [hostile], "data": {"clean": hostile}}
    record = _record(model=model, by_class={"norm_dense": [1.0] * CLASSES}, **told)
    page = render_audit(record, [])
    assert "<img src=x" not in page
    assert "\u202e" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > CLASSES


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ("probably carries a backdoor", "class 1 stands out", "p 0.004", "not proof")),
        (
            {"verdict": "none seen", "p_value": 0.6, "posterior": 0.3} | NAMEABLE,
            ("No backdoor seen", "does not stand out", "70.0%", "no proof"),
        ),
        (
            {"verdict": "none seen", "p_value": 0.19, "posterior": 0.85} | NAMEABLE,
            ("a backdoor is likelier than before", "does not stand out", "50.0%", "85.0%", "no proof"),
        ),
        ({"verdict": "cannot say", "reason": "too few classes"}, ("cannot say", "Nothing can be said: too few")),
        ({"likeliest": "next"}, ("all-to-all",)),
    ],
)
def test_the_verdict_in_words(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    found = judge_audit(_record(**changes))
    assert all(word in f"{found.headline} {found.text}" for word in words)
    assert (found.tone == "good") == ("No backdoor seen" in words)  # never a green tick beside likely guilt


@pytest.mark.long
@pytest.mark.parametrize(("refused", "code"), [("backdoor", 0), ("cannot-say", 5)])
def test_a_gate_refuses_the_verdicts_that_it_names(
    refused: str, code: int, runs: Path, tmp_path: Path, capsys: Capsys
) -> None:
    found = audit(capsys, runs / "attack", runs, tmp_path / "out", "--n-clean", 12, "--fail-on", refused)
    assert found.code == code
    assert read_json(tmp_path / "out" / "verdict.json")["verdict"] == "cannot say"
