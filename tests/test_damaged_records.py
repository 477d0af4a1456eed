"""A record in the folder of a finished run that is not as this version writes it."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from neural_polarizer.errors import BadInputError
from neural_polarizer.runs.purification import finished
from neural_polarizer.runs.purify import WRITTEN
from run_files import PURIFIED, make_runs, purify_words, run
from verify_cases import edit

Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, Change] = {
    "no surrogate": lambda record: record.pop("surrogate"),
    "no guard": lambda record: record.pop("guarded"),
    "no accuracy": lambda record: record["after"].update(acc=None),
    "files of another kind": lambda record: record.update(files=3),
    "a fold without a remark": lambda record: record.update(fold={}),
}


@pytest.fixture
def out(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return shutil.copytree(make_runs(tmp_path_factory) / "purified", tmp_path / "purified")


@pytest.mark.parametrize("name", CHANGES)
def test_the_same_command_refuses_it_in_one_line(
    name: str, out: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = make_runs(tmp_path_factory)
    edit(out / "run.json", CHANGES[name])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused = run(capsys, *purify_words(runs / "attack", runs, out, *PURIFIED, "--fold", "--quiet"))
    assert (refused.code, refused.err.count("error: "), "Traceback" in refused.err) == (3, 1, False)
    assert "run.json: is damaged" in refused.err
    assert " ".join(refused.err.split()).endswith("choose another --out or remove that folder")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_no_value_of_another_kind_gets_through_as_a_traceback(out: Path) -> None:
    whole = json.loads((out / "run.json").read_text())
    assert finished(out, whole["run_id"], WRITTEN) == whole
    for name in whole.keys() - {"run_id"}:
        for value in (None, 7, [3], {"a": 3}):
            (out / "run.json").write_text(json.dumps(whole | {name: value}))
            with suppress(BadInputError):
                assert finished(out, whole["run_id"], WRITTEN) == whole | {name: value}


def test_an_export_into_the_folder_leaves_no_traceback(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(out / "run.json", CHANGES["files of another kind"])
    for _ in range(2):
        assert run(capsys, "export", out, "--to", "state-dict", "--quiet").code == 0
