"""``polarizer verify``: what has been changed, lost or mixed up in a run is told, and what is as it was holds."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import neural_polarizer as npz
from neural_polarizer.data.parquet import write_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import sha256_of_file
from neural_polarizer.models.definition import Definition, network_named
from neural_polarizer.runs.verify import Given, verify_run
from neural_polarizer.runs.verify_checks import Check
from run_files import Outcome, coloured, run
from toys import tiny_images, tiny_model
from verify_cases import MEASURING, by_name, edit, flip_last_byte, make_verified

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_verified(tmp_path_factory)


@pytest.fixture
def purified(runs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(runs / "purified", tmp_path / "purified")


@pytest.fixture
def attacked(runs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(runs / "attack", tmp_path / "attack")


def checked(folder: Path, **given: Any) -> dict[str, Check]:
    return by_name(verify_run(folder, Given(**given), MEASURING))


def failing(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.holds is False}


def unchecked(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.holds is None}


def forget(path: Path, *names: str) -> None:
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in names}))


def said(outcome: Outcome) -> list[str]:
    return [line.strip() for line in outcome.out.splitlines() if ": " in line]


OWN = """
from torch import nn

class Pair(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, num_classes)

    def forward(self, pixels):
        maps = self.features(pixels)
        return {"maps": maps, "scores": self.head(maps.mean((2, 3)))}
"""


@pytest.mark.long
def test_a_purification_of_a_network_of_ones_own_is_verified_with_its_code(
    runs: Path, tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / "pairs.py").write_text(OWN)
    code = ("--arch", f"{tmp_path / 'pairs.py'}:Pair")
    own = network_named(code[1])
    assert isinstance(own, Definition)
    first, second = own.build(3).state_dict(), own.build(3).state_dict()
    torch.save({"state_dict": first, "state_dict_ema": second}, tmp_path / "m.pt")
    form = (*code, "--output", "scores", "--weights", "state_dict_ema", "--method", "ft", "--set", "schedule.epochs=1")
    words = ("purify", tmp_path / "m.pt", "--clean", runs / "train.parquet", "--test", runs / "test.parquet", "--force")
    assert run(capsys, *words, "--out", tmp_path / "out", *form, "--device", "cpu").code == 0
    without = run(capsys, "verify", tmp_path / "out", "--device", "cpu")
    assert (without.code, "give --arch FILE.py:NAME" in " ".join(without.out.split())) == (0, True)
    outcome = run(capsys, "verify", tmp_path / "out", *code, "--device", "cpu")
    assert (outcome.code, "not checked" in outcome.out) == (0, False)
    other = tuple("state_dict" if word == "state_dict_ema" else word for word in form)
    refused = run(capsys, *words, "--out", tmp_path / "out", *other, "--device", "cpu")
    assert (refused.code, "holds another run" in " ".join(refused.err.split())) == (3, True)


PURIFICATION = (
    *("purified.safetensors", "polarizer.safetensors", "folded.safetensors", "exported.pt", "exported.pt.json"),
    *("clean_index.json", "report.html", "verdict.json", "verdict.sarif"),
)
ATTACK = ("model.safetensors", "triggered.parquet", "trigger.safetensors", "trigger.png")
RATES = ("ACC", "ASR", "RA")


@pytest.mark.long
def test_a_run_that_nobody_has_touched_holds(runs: Path, capsys: Capsys) -> None:
    attack, purification = checked(runs / "attack"), checked(runs / "purified")
    assert set(attack) == {*ATTACK, *RATES, "training images", "test images"}
    rates = {f"{rate} {when}" for rate in RATES for when in ("before", "after")}
    images = {"clean images", "test images", "triggered images"}
    assert set(purification) == {*PURIFICATION, *images, *rates, "original model", "DER", "ACC folded"}
    for checks in (attack, purification):
        assert {name: check.holds for name, check in checks.items()} == dict.fromkeys(checks, True)
    told = run(capsys, "verify", runs / "purified", "--device", "cpu")
    assert (told.code, told.err) == (0, "")
    assert told.out.rstrip().endswith(f"{len(purification)} hold, 0 do not, 0 could not be checked")
    assert run(capsys, "verify", runs / "attack", "--device", "cpu", "--quiet").code == 0


def test_a_modified_and_a_missing_file_cost_one_line_and_exit_code_1(purified: Path, capsys: Capsys) -> None:
    flip_last_byte(purified / "polarizer.safetensors")
    (purified / "report.html").unlink()
    told = run(capsys, "verify", purified, "--device", "cpu")
    assert (told.code, told.err) == (1, "")
    assert [line for line in said(told) if not line.startswith("evaluate")] == [
        "does not hold: report.html: is missing",
        "does not hold: polarizer.safetensors: has been modified since the run",
    ]
    assert "19 hold, 2 do not, 0 could not be checked" in told.out


def test_what_was_saved_from_python_is_verified_as_far_as_it_tells(tmp_path: Path) -> None:
    quick: dict[str, Any] = {"epochs": 1, "batch_size": 8, "site": "after:features", "device": "cpu", "force": True}
    npz.purify(tiny_model(), tiny_images(16), "npd", **quick).save(tmp_path / "run")
    checks = checked(tmp_path / "run")
    assert {name: check.holds for name, check in checks.items() if check.holds is not None} == dict.fromkeys(
        ("purified.safetensors", "polarizer.safetensors", "report.html"), True
    )
    assert "purified in Python" in checks["original model"].remark
    (tmp_path / "run" / "purified.safetensors").unlink()
    assert checked(tmp_path / "run")["purified.safetensors"].holds is False


def test_every_file_of_a_run_is_checked(purified: Path, attacked: Path) -> None:
    for folder, names in ((purified, PURIFICATION), (attacked, ATTACK)):
        for name in names:
            flip_last_byte(folder / name)
        checks = checked(folder)
        assert {checks[name].remark for name in names} == {"has been modified since the run"}
        for name in names:
            (folder / name).unlink()
        checks = checked(folder)
        assert {checks[name].remark for name in names} == {"is missing"}


def test_another_test_set_is_told_and_nothing_is_measured_on_it(purified: Path, tmp_path: Path, capsys: Capsys) -> None:
    write_images(tmp_path / "other.parquet", coloured(21, 7))
    told = run(capsys, "verify", purified, "--test", tmp_path / "other.parquet", "--device", "cpu")
    assert told.code == 1
    assert f"does not hold: test images: {tmp_path / 'other.parquet'} does not hold those of the run" in said(told)
    checks = checked(purified, test=str(tmp_path / "other.parquet"))
    assert failing(checks) == {"test images"}
    assert unchecked(checks) == {"ACC before", "ACC after", "ACC folded"}


def test_other_clean_and_training_images_are_told(purified: Path, attacked: Path, runs: Path) -> None:
    assert failing(checked(purified, clean=str(runs / "test.parquet"))) == {"clean images"}
    assert failing(checked(attacked, clean=str(runs / "test.parquet"))) == {"training images"}


def test_another_triggered_set_is_told(purified: Path, attacked: Path, runs: Path, tmp_path: Path) -> None:
    images = coloured(14, 3)
    write_images(tmp_path / "other.parquet", images, true_label=(images.labels + 1) % 3)
    checks = checked(purified, triggered=tmp_path / "other.parquet")
    assert failing(checks) == {"triggered images"}
    assert unchecked(checks) == {f"{rate} {when}" for rate in ("ASR", "RA") for when in ("before", "after")}
    shutil.copyfile(tmp_path / "other.parquet", attacked / "triggered.parquet")
    assert checked(attacked)["ASR"].remark == "triggered.parquet is not that of the run"


@pytest.mark.long
@pytest.mark.parametrize("rate", ["acc", "asr", "ra"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_figure_that_was_changed_is_told(rate: str, when: str, purified: Path) -> None:
    def shift(record: dict[str, Any]) -> None:
        record[when][rate] += 0.25

    edit(purified / "run.json", shift)
    checks = checked(purified)
    assert f"{rate.upper()} {when}" in failing(checks) <= {f"{rate.upper()} {when}", "ACC folded"}
    assert checks[f"{rate.upper()} {when}"].remark == "differs by 25.00 points"


def test_the_effectiveness_and_the_cost_of_folding_are_checked(purified: Path) -> None:
    def shift(record: dict[str, Any]) -> None:
        record["der"] -= 0.1
        record["fold"]["acc_difference"] += 0.1

    edit(purified / "run.json", shift)
    assert failing(checked(purified)) == {"DER", "ACC folded"}


def test_the_tolerance_is_that_of_the_option(attacked: Path, capsys: Capsys) -> None:
    edit(attacked / "attack.json", lambda record: record.update(acc=record["acc"] + 0.02))
    assert run(capsys, "verify", attacked, "--device", "cpu", "--quiet").code == 1
    assert run(capsys, "verify", attacked, "--device", "cpu", "--quiet", "--tolerance", 0.03).code == 0


def test_other_weights_with_a_hash_to_match_are_found_by_their_figures(purified: Path, runs: Path) -> None:
    shutil.copyfile(runs / "attack" / "model.safetensors", purified / "purified.safetensors")
    digest = sha256_of_file(purified / "purified.safetensors")
    edit(purified / "run.json", lambda record: record["files"].update({"purified.safetensors": digest}))
    checks = checked(purified)
    assert checks["purified.safetensors"].holds
    assert failing(checks) >= {"ASR after", "DER"}


def test_an_original_that_was_replaced_is_told(purified: Path, runs: Path, tmp_path: Path) -> None:
    other = shutil.copyfile(runs / "attack" / "model.safetensors", tmp_path / "model.safetensors")
    edit(purified / "run.json", lambda record: record["model"].update(path=str(other)))
    assert failing(checked(purified)) == set()
    flip_last_byte(other)
    assert failing(checked(purified)) == {"original model"}
    other.unlink()
    checks = checked(purified)
    assert failing(checks) == set()
    assert unchecked(checks) == {"original model", "ACC before", "ASR before", "RA before"}


def test_folders_of_earlier_versions_are_checked_as_far_as_they_tell(purified: Path, attacked: Path) -> None:
    forget(purified / "run.json", "files", "test_sha256", "triggered_sha256")
    forget(attacked / "attack.json", "files", "n_train")
    old, older = checked(purified), checked(attacked)
    assert failing(old) == failing(older) == set()
    assert unchecked(older) == {*ATTACK[1:], "training images"}
    assert {"ACC after", "ASR after", "RA after", "DER", "clean images"} & unchecked(old) == set()
    assert old["report.html"].remark == "the record has no hash to compare with"
    (purified / "report.html").unlink()
    assert failing(checked(purified)) == {"report.html"}


@pytest.mark.long
@pytest.mark.parametrize("spec", ["gone.parquet", "hf:someone/something"])
def test_data_that_are_not_here_are_not_checked_and_can_be_named(purified: Path, runs: Path, spec: str) -> None:
    edit(purified / "run.json", lambda record: record["data"].update(test=spec))
    checks = checked(purified)
    assert failing(checks) == set()
    assert unchecked(checks) == {"test images", "ACC before", "ACC after", "ACC folded"}
    assert checks["test images"].remark.endswith("give --test")
    assert unchecked(checked(purified, test=str(runs / "test.parquet"))) == set()


def test_a_folder_that_is_no_run_costs_one_line(tmp_path: Path, capsys: Capsys) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        refused = run(capsys, "verify", folder)
        assert refused.code == 3
        assert refused.err.count("\n") == 1
        assert f"{folder}: is no run" in refused.err
    (tmp_path / "records").mkdir()
    assert run(capsys, "verify", tmp_path).code == 3


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ""])
def test_a_record_leads_to_no_file_outside_of_its_folder(name: str, purified: Path, capsys: Capsys) -> None:
    edit(purified / "run.json", lambda record: record["files"].update({name: "0"}))
    refused = run(capsys, "verify", purified, "--device", "cpu")
    assert refused.code == 3
    assert f"names {name!r} as a file of this folder" in refused.err


def judged(folder: Path) -> list[Check] | str:
    """What is found out about a run, or why it is refused."""
    try:
        return verify_run(folder, Given(), MEASURING)
    except BadInputError as error:
        return str(error)


@pytest.mark.long
@pytest.mark.parametrize("value", [None, 7, "[red]\u202e", [], {"path": 3, "n": [], "acc": "high"}])
def test_records_of_nonsense_are_judged_without_a_traceback(value: Any, purified: Path, attacked: Path) -> None:
    for path in (purified / "run.json", attacked / "attack.json"):
        record = json.loads(path.read_text())
        for only in (set(record), {"model"}, {"data"}, {"files"}, {"after", "der"}):
            if not only & set(record):
                continue
            path.write_text(json.dumps(record | dict.fromkeys(only & set(record), value)))
            found = judged(path.parent)
            assert str(path.parent) in found if isinstance(found, str) else not all(check.holds for check in found)


def test_a_record_of_a_later_version_is_refused(purified: Path, attacked: Path, capsys: Capsys) -> None:
    for path in (purified / "run.json", attacked / "attack.json"):
        edit(path, lambda record: record.update(schema=99))
        refused = run(capsys, "verify", path.parent, "--device", "cpu")
        assert (refused.code, refused.err.count("\n")) == (3, 1)
        assert f"{path}: has schema 99, but this version reads" in refused.err


def test_names_from_a_record_are_printed_as_they_are(purified: Path, capsys: Capsys) -> None:
    edit(purified / "run.json", lambda record: record["files"].update({"[red]a\u202e": "0"}))
    told = run(capsys, "verify", purified, "--device", "cpu")
    assert told.code == 1
    assert r"does not hold: [red]a\u202e: is missing" in said(told)
