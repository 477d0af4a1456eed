"""``polarizer verify`` of the results of the benchmark: what has been changed or lost is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neural_polarizer.bench.verify import verify_results
from neural_polarizer.cache import key_of
from neural_polarizer.files import sha256_of_file
from neural_polarizer.runs.verify import Given
from neural_polarizer.runs.verify_checks import Check
from run_files import run
from verify_cases import MEASURING, by_name, edit, flip_last_byte, make_verified

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_verified(tmp_path_factory)


def written(folder: Path, kind: str, request: dict[str, Any], result: dict[str, Any]) -> str:
    """A record of the benchmark; its id."""
    head = {"schema": 1, "kind": kind, "request": request, "status": "done", "error": None, "result": result}
    name = key_of({"schema": 1, "kind": kind, **request})[:20]
    record = {**head, "id": name}
    (folder / "records").mkdir(parents=True, exist_ok=True)
    (folder / "records" / f"{name}.json").write_text(json.dumps({**record, "sha256": key_of(record)}))
    return name


@pytest.fixture
def results(runs: Path, tmp_path: Path) -> Path:
    """A victim, a purification and an analysis with a picture."""
    folder = tmp_path / "results"
    record = json.loads((runs / "attack" / "attack.json").read_text())
    figures = {name: record[name] for name in ("acc", "asr", "ra", "model_sha256")}
    victim = written(folder, "victim", {"data": "x"}, figures)
    shutil.copytree(runs / "attack", folder / "artefacts" / victim)
    after = {"acc": record["acc"], "asr": 0.0, "ra": 0.5, "before": figures, "der": (record["asr"] + 1) / 2}
    weights = {"model_sha256": figures["model_sha256"]}
    written(folder, "purification", {"victim": victim}, {**after, **weights})
    picture = runs / "attack" / "trigger.png"
    hashes = {"pictures": ["a.png"], "files": {"a.png": sha256_of_file(picture)}}
    analysis = written(folder, "gradcam", {"victim": victim}, {**weights, **hashes})
    (folder / "artefacts" / analysis).mkdir()
    shutil.copyfile(picture, folder / "artefacts" / analysis / "a.png")
    return folder


def the(results: Path, kind: str) -> Path:
    """The record of that kind."""
    (path,) = (
        path
        for path in (results / "records").iterdir()
        if path.read_text().startswith(f'{{"schema": 1, "kind": "{kind}"')
    )
    return path


def results_checked(folder: Path, test: str | None = None) -> dict[str, Check]:
    return by_name(verify_results(folder, Given(test=test), MEASURING))


@pytest.mark.long
def test_results_of_the_benchmark_hold(results: Path, runs: Path, capsys: Capsys) -> None:
    checks = results_checked(results, str(runs / "test.parquet"))
    sorts = {"records", "victims", "files of victims", "figures of victims", "victims of purifications", "DER"}
    assert set(checks) == {*sorts, "pictures"}
    assert all(check.holds for check in checks.values())
    assert checks["figures of victims"].found == "3"
    assert run(capsys, "verify", results, "--device", "cpu").code == 0


def spoil_hash(results: Path) -> None:
    edit(the(results, "victim"), lambda record: record.update(error="none"))


def spoil_request(results: Path) -> None:
    edit(the(results, "gradcam"), lambda record: record["request"].update(seed=1))


def spoil_der(results: Path) -> None:
    edit(the(results, "purification"), lambda record: record["result"].update(der=0.25))


def spoil_victim(results: Path) -> None:
    flip_last_byte(results / "artefacts" / the(results, "victim").stem / "model.safetensors")


def lose_trigger(results: Path) -> None:
    (results / "artefacts" / the(results, "victim").stem / "trigger.safetensors").unlink()


def retrain_victim(results: Path) -> None:
    edit(the(results, "victim"), lambda record: record["result"].update(model_sha256="0" * 64))


def lose_picture(results: Path) -> None:
    (results / "artefacts" / the(results, "gradcam").stem / "a.png").unlink()


def cut_record(results: Path) -> None:
    the(results, "purification").write_text('{"schema": 1, "kind": "purification"')


@pytest.mark.parametrize(
    ("spoil", "sort", "remark"),
    [
        (spoil_hash, "records", "has been changed since it was written"),
        (spoil_request, "records", "its name does not follow from its request"),
        (spoil_der, "DER", "its DER does not follow from its ACC and ASR"),
        (spoil_victim, "files of victims", "has been modified since the run"),
        (lose_trigger, "files of victims", "is missing"),
        (retrain_victim, "victims of purifications", "was made of other weights than its victim has now"),
        (lose_picture, "pictures", "is missing"),
        (cut_record, "records", "cannot be read as JSON"),
    ],
)
def test_changed_results_are_told(spoil: Callable[[Path], None], sort: str, remark: str, results: Path) -> None:
    spoil(results)
    checks = verify_results(results, Given(), MEASURING)
    assert [check.holds for check in checks if check.what == sort] == [False]
    assert any(remark in check.remark for check in checks if check.what != sort)


def test_victims_whose_files_were_not_published_are_not_checked(results: Path) -> None:
    place = results / "artefacts" / the(results, "victim").stem
    for name in ("model.safetensors", "triggered.parquet", "trigger.safetensors", "attack.json"):
        (place / name).unlink()
    checks = results_checked(results)
    assert checks["victims"].holds is None
    assert all(check.holds is not False for check in checks.values())
