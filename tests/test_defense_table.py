"""The benchmark of the defenses, on a model and images of a moment."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark_scripts import script
from run_files import coloured, make_runs

TABLE = script("defense_table")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


@pytest.fixture
def data(runs: Path, tmp_path: Path) -> Path:
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    for name in ("train.parquet", "test.parquet"):
        shutil.copy(runs / name, tmp_path / "data" / "cifar10" / name)
    return tmp_path / "data"


class CaughtError(Exception):
    """Carries what was asked of the cache."""


def request_of(module: Any, call: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a benchmark asks the cache of attacks for."""

    def caught(attack: Any, train: Any, test: Any, **options: Any) -> None:
        raise CaughtError(attack, train.sha256(), test.sha256(), options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "cached_attack", caught)
        with pytest.raises(CaughtError) as found:
            call()
    return found.value.args


@pytest.mark.parametrize("victim", TABLE.VICTIMS, ids=lambda victim: victim.name)
def test_the_victims_are_those_of_the_attack_table(victim: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attacks = script("attack_table")
    monkeypatch.setattr(attacks, "clean_model", lambda *_, **__: None)
    monkeypatch.setattr(attacks, "evaluate", lambda *_, **__: None)
    cell = attacks.Cell("cifar10", victim.attack, victim.rule)
    theirs = request_of(attacks, lambda: attacks.run(cell, attacks.victim_of(cell, 0, None), data, data), monkeypatch)
    ours = request_of(TABLE, lambda: TABLE.train(victim, data, 0, None), monkeypatch)
    assert ours == theirs
    assert cell in attacks.CELLS


def test_every_method_has_its_settings_for_every_victim() -> None:
    cpu = torch.device("cpu")
    for victim in TABLE.VICTIMS:
        for method in TABLE.METHODS:
            defense = TABLE.defense_for(method, victim, cpu)
            target = getattr(defense, "target", None)
            expected = ("next" if victim.name == "badnets-a2a" else 0) if method in ("npd-tp", "npd-tu") else None
            assert target == expected
            assert getattr(defense, "data", None) == ("mixture" if method == "ep" else None)


def test_a_cell_is_computed_once_and_again_when_it_failed(
    runs: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, out = TABLE.Planted("badnets"), tmp_path / "out"
    arguments = (runs / "attack", data, out, 0)
    first = TABLE.purify(victim, "ft", *arguments)  # 5 % of 48 images are none
    assert "must hold 1..48 images, got 0" in first["error"]
    monkeypatch.setattr(TABLE, "CLEAN_SHARE", 0.5)
    cells = {method: TABLE.purify(victim, method, *arguments) for method in ("ft", "ep", "npd-tp")}
    for method, cell in cells.items():
        assert json.loads((out / "badnets" / method / "cell.json").read_text()) == cell
        assert cell["after"].keys() >= {"acc", "asr", "ra"}
        assert cell["seconds"] > 0
        assert cell["peak_mb"] > 10
    assert "24 images of the poisoned training set" in cells["ep"]["warnings"][0]
    monkeypatch.setattr(TABLE, "_purified", lambda *_: pytest.fail("computed again"))
    assert TABLE.purify(victim, "ft", *arguments) == cells["ft"]
    with pytest.raises(pytest.fail.Exception):
        TABLE.purify(victim, "ft", *arguments[:3], 1)


def test_the_mixture_holds_the_victims_trigger_at_its_rate(runs: Path) -> None:
    pool = coloured(48, 0)
    mixed = TABLE.poisoned(runs / "attack", pool, 20, 0)
    corners = (mixed.images[:, :, -1, -1] == 255).all(dim=1)  # brighter than any clean image
    assert len(mixed) == 20
    assert int(corners.sum()) == 4
    assert mixed.labels[corners].tolist() == [0] * 4


def test_the_table_shows_means_failures_and_the_papers_figures(tmp_path: Path) -> None:
    (tmp_path / "table01_cifar10_preactresnet18.csv").write_text(
        "dataset,model,attack,defense,poisoning_ratio_pct,clean_ratio_pct,acc,asr,der\n"
        "cifar10,preactresnet18,badnets_a2o,none,10,5,91.82,93.79,\n"
        "cifar10,preactresnet18,badnets_a2o,i_bau,10,5,87.43,4.48,92.46\n"
        "cifar10,preactresnet18,avg,i_bau,10,5,88.00,5.00,92.00\n"
    )
    rates = {"acc": 0.9, "asr": 0.95, "ra": 0.05}
    cell = {
        "before": rates,
        "after": {"acc": 0.8, "asr": 0.1, "ra": 0.7},
        "der": 0.875,
        "seconds": 61.4,
        "peak_mb": 900.2,
    }
    other = {**cell, "after": {"acc": 0.6, "asr": 0.3, "ra": 0.5}, "der": 0.7, "seconds": 81.4}
    cells = {
        ("badnets", "i-bau"): cell,
        ("badnets", "nc"): {"error": "no images"},
        ("wanet", "i-bau"): other,
    }
    shown = TABLE.report(cells, TABLE.read_paper(tmp_path)).splitlines()
    assert shown[4:] == [
        "| badnets | none | 90.00 | 95.00 | 5.00 | - | - | - | 91.82 | 93.79 | - |",
        "| badnets | nc | failed: no images | | | | | | | | |",
        "| badnets | i-bau | 80.00 | 10.00 | 70.00 | 87.50 | 61 | 900 | 87.43 | 4.48 | 92.46 |",
        "| wanet | none | 90.00 | 95.00 | 5.00 | - | - | - | - | - | - |",
        "| wanet | i-bau | 60.00 | 30.00 | 50.00 | 70.00 | 81 | 900 | - | - | - |",
        "| mean of 2 | i-bau | 70.00 | 20.00 | 60.00 | 78.75 | 71 | 900 | - | - | - |",
    ]
    everywhere = {(victim.name, "i-bau"): cell for victim in TABLE.VICTIMS}
    last = TABLE.report(everywhere, TABLE.read_paper(tmp_path)).splitlines()[-1]
    assert last == "| mean of 8 | i-bau | 80.00 | 10.00 | 70.00 | 87.50 | 61 | 900 | 88.00 | 5.00 | 92.00 |"
    assert {line.count("|") for line in shown[2:]} == {12}
    assert {line.count("|") for line in TABLE.report(cells, {}).splitlines()[2:]} == {9}
