"""Suites: what their files may say, and which cells come of it."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_cases import TWO_BY_THREE, cells_of

from neural_polarizer.bench.cells import PurificationCell, VictimCell
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.paper import paper_values
from neural_polarizer.bench.suite import load_suite, parse_suite, suite_names
from neural_polarizer.defenses import DEFENSES, NPD, EntropyPruning, FineTuning
from neural_polarizer.defenses.npd.presets import VARIANTS, preset
from neural_polarizer.errors import BadInputError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "paper_scale.sh"
PAPER = {
    *(f"table{number:02}" for number in range(1, 16)),
    *("fig03", "fig04", "fig05-07", "lemma1"),
}


def test_every_table_and_figure_of_the_paper_has_its_suite() -> None:
    assert set(suite_names()) >= PAPER | {"smoke"}


@pytest.mark.long
@pytest.mark.parametrize("name", suite_names())
@pytest.mark.parametrize("scale", ["paper", "short", "laptop", "smoke"])
def test_every_suite_can_be_planned_at_every_scale(name: str, scale: str) -> None:
    suite = load_suite(name)
    cells = planned(suite, scale)  # type: ignore[arg-type]
    assert cells
    assert f"polarizer bench run {name}" in suite.about
    assert "Expected" in suite.about or "Times compare" in suite.about
    ids = [each.cell.id for each in cells]
    for place, each in enumerate(cells):
        needed = each.cell.needs
        assert needed is None or needed.id in ids[:place]


@pytest.mark.parametrize(
    ("name", "victims", "purifications"),
    [("table01", 8, 8 * 6 + 8 * 12), ("table05", 20, 40), ("table06", 3, 36), ("table08", 4, 12), ("fig03", 3, 51)],
)
def test_the_size_of_a_suite_is_that_of_the_papers_table(name: str, victims: int, purifications: int) -> None:
    cells = {each.cell.id: each.cell for each in planned(load_suite(name))}
    kinds = Counter(cell.kind for cell in cells.values())
    assert kinds == {"victim": victims, "purification": purifications}


def test_suites_share_cells_and_a_changed_option_makes_others() -> None:
    ids = {name: {each.cell.id for each in planned(load_suite(name))} for name in ("table01", "table04", "table06")}
    assert len(ids["table01"] & ids["table04"]) == 6 + 6  # the victims, and NPD on them
    assert len(ids["table01"] & ids["table06"]) == 3  # the victims alone: other numbers of clean images
    base = {cell.id for cell in cells_of(TWO_BY_THREE)}
    other = {cell.id for cell in cells_of(TWO_BY_THREE + "\n[options.defense.npd]\nlr = 0.01\n")}
    assert len(base & other) == 2 + 6
    assert {cell.id for cell in cells_of(TWO_BY_THREE + "\n[options.attack.blended]\nalpha = 0.1\n")} & base == {
        cell.id for cell in cells_of(TWO_BY_THREE.replace(', "blended"', ""))
    }


def test_a_network_can_be_trained_in_its_own_way_only_at_laptop_scale() -> None:
    text = """
scale = "laptop"
[[grid]]
model = ["preactresnet18", "timm:test_vit"]
defense = ["npd"]
[victims."timm:test_vit"]
images = 700
optimizer = "adamw"
lr = 0.001
"""
    first, _, second, _ = cells_of(text)
    assert isinstance(first, VictimCell)
    assert isinstance(second, VictimCell)
    assert (first.images, first.victim.schedule.optimizer, first.victim.schedule.lr) == (None, "sgd", 0.1)
    assert (second.images, second.victim.schedule.optimizer, second.victim.schedule.lr) == (700, "adamw", 0.001)
    assert "optimizer" not in first.request["victim"]["schedule"]
    assert second.request["victim"]["schedule"]["optimizer"] == "adamw"
    for scale, epochs in (("paper", 100), ("short", 10)):
        third = cells_of(text.replace("laptop", scale))[2]
        assert isinstance(third, VictimCell)
        assert (third.images, third.victim.schedule.optimizer, third.victim.schedule.epochs) == (None, "sgd", epochs)
    with pytest.raises(BadInputError, match="did you mean 'optimizer'"):
        cells_of(text.replace("optimizer =", "optimiser ="))


def test_labels_become_settings() -> None:
    text = """
[[grid]]
data = ["gtsrb"]
attack = ["badnets-a2a"]
adaptive = true
poison_rate = 0.05
defense = ["npd-tp", "ep"]
n_clean = 430
[options.attack.badnets]
eps = 4.0
"""
    victim, first, second = cells_of(text)
    assert isinstance(victim, VictimCell)
    assert (victim.attack.label_rule, victim.attack.poison_rate, victim.victim.profile) == ("all-to-all", 0.05, "gtsrb")
    assert victim.victim.schedule.adversarial is not None
    assert victim.victim.schedule.adversarial.eps == pytest.approx(4 / 255)
    assert isinstance(first, PurificationCell)
    assert isinstance(first.defense, NPD)
    assert (first.defense.target, first.defense.precision, first.n_clean) == ("next", "bf16", 430)
    assert isinstance(second, PurificationCell)
    assert isinstance(second.defense, EntropyPruning)
    assert second.defense.data == "mixture"


@pytest.mark.parametrize(("kind", "method"), [(NPD, "npd"), (FineTuning, "ft")])
def test_a_defense_with_another_algorithm_makes_other_cells(
    kind: type[Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"[[grid]]\ndefense = ['{method}']\n"
    victim, cell = cells_of(text)
    assert cells_of(text)[1].id == cell.id
    monkeypatch.setattr(kind, "revision", kind.revision + 1)
    assert cells_of(text)[0].id == victim.id
    assert cells_of(text)[1].id != cell.id


def test_every_defense_says_its_revision_and_the_first_one_is_not_in_ids() -> None:
    """So that records from before there were revisions stay those of the first."""
    for name, kind in DEFENSES.items():
        assert kind.revision == (19 if name == "npd-ls" else 4 if name in VARIANTS else 1)
    _, first = cells_of("[[grid]]\ndefense = ['ft']\n")
    _, second = cells_of("[[grid]]\ndefense = ['npd']\n")
    assert "revision" not in first.request
    assert second.request["revision"] == 4


def test_an_axis_names_sites_and_variants() -> None:
    text = """
[[grid]]
site = ["deep", "after:layer2"]
variant = ["", "slow"]
[sites.preactresnet18]
deep = "before:layer4.1"
[variants.slow]
lr = 0.001
"""
    found = [cell.defense for cell in cells_of(text) if isinstance(cell, PurificationCell)]
    assert all(isinstance(defense, NPD) for defense in found)
    assert [(defense.site, defense.lr) for defense in found if isinstance(defense, NPD)] == [
        ("before:layer4.1", 0.02),
        ("after:layer2", 0.02),
        ("before:layer4.1", 0.001),
        ("after:layer2", 0.001),
    ]


def test_a_variant_of_the_npd_family_names_a_preset() -> None:
    text = """
precision = "fp32"
[[grid]]
defense = 'npd'
variant = "reference"
site = "auto"
[variants.reference]
preset = 'reference'
"""
    _, found = cells_of(text)
    assert isinstance(found, PurificationCell)
    reference = preset("npd", name="reference", profile="cifar10")
    assert found.defense == replace(reference, site=None)
    with pytest.raises(BadInputError, match="cannot be 'preset'"):
        cells_of(text.replace("'npd'", "'npd-ls'"))
    with pytest.raises(BadInputError, match="'refrence': did you mean 'reference'"):
        cells_of(text.replace("preset = 'reference'", "preset = 'refrence'"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("titel = 'x'\n[[grid]]\n", "a key cannot be 'titel': did you mean 'title'"),
        ("[[grid]]\natack = ['badnets']\n", "an axis cannot be 'atack': did you mean 'attack'"),
        ("[[grid]]\nattack = ['badnet']\n", "unknown attack 'badnet'"),
        ("[[grid]]\ndefense = ['npdd']\n", "unknown method 'npdd'"),
        ("[[grid]]\nseed = ['0']\n", "seed must be one or more of int"),
        ("[[grid]]\nseed = [true]\n", "seed must be one or more of int"),
        ("[[grid]]\nvariant = ['fast']\n", "variant cannot be 'fast'"),
        ("[[grid]]\n[variants.x]\nlrr = 1\n[[grid]]\nvariant = ['x']\n", "cannot be 'lrr'"),
        ("[[grid]]\n[options.defense.npd]\nlr = 'x'\n", "lr cannot be 'x'"),
        ("[[grid]]\n[table]\nrows = ['atack']\n", "did you mean 'attack'"),
        ("[[grid]]\n[table]\nvalues = ['acc', 'speed']\n", "a value of the table cannot be 'speed'"),
        ("title = 'x'\n", "at least one [[grid]]"),
        ("grid = 3\n", "at least one [[grid]]"),
        ("[[grid]\n", "suite test: "),
        ("scale = 'lap'\n[[grid]]\n", "did you mean 'laptop'"),
        ("precision = ''\n[[grid]]\n", "precision cannot be ''"),
        ("variants = 3\n[[grid]]\n", "variants must be a table"),
        ("[[grid]]\nseed = []\n", "seed must be one or more of int"),
    ],
)
def test_what_a_file_says_wrong_is_told_in_a_line(text: str, words: str) -> None:
    with pytest.raises(BadInputError) as raised:
        cells_of(text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value).strip() or text == "[[grid]\n"


def test_a_suite_can_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("# Mine.\n# More.\n" + TWO_BY_THREE)
    suite = load_suite(str(tmp_path / "mine.toml"))
    assert (suite.name, suite.title, suite.about) == ("mine", "Two", "Mine.\nMore.")
    with pytest.raises(BadInputError, match="cannot be read"):
        load_suite(str(tmp_path / "other.toml"))
    with pytest.raises(BadInputError, match="suite cannot be 'table1': did you mean"):
        load_suite("table1")


def test_the_suites_of_a_checkout_have_names_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SCRIPT.parents[1])
    assert load_suite("published").given.keys() == load_suite("benchmarks/published/published.toml").given.keys()
    assert load_suite("real").given
    folder = tmp_path / "benchmarks" / "mine"
    folder.mkdir(parents=True)
    (folder / "smoke.toml").write_text(TWO_BY_THREE)
    monkeypatch.chdir(tmp_path)
    assert load_suite("smoke").title != "Two"  # a name of the package means the package's
    with pytest.raises(BadInputError, match="suite cannot be 'published'"):
        load_suite("published")


def test_a_suite_of_the_checkout_can_attack_other_classes() -> None:
    cells = planned(load_suite(str(SCRIPT.parent / "targets.toml")))
    targets = {each.labels["attack"]: each.cell.attack.target for each in cells if isinstance(each.cell, VictimCell)}
    assert targets == {"badnets": 3, "blended": 5, "lf": 9, "wanet": 7}


def test_every_suite_of_the_checkout_can_be_planned() -> None:
    files = [path for path in SCRIPT.parent.rglob("*.toml") if path.name != "manifest.toml"]
    assert len(files) > 4
    assert all(planned(load_suite(str(path))) for path in files)


# --- The paper's numbers ----------------------------------------------------------------------------------------------


def test_the_papers_numbers_stand_at_the_places_of_our_cells() -> None:
    """Every one of them that our suite has a cell for is found there, and they are those of the paper."""
    named = ("data", "model", "site", "attack", "defense", "poison_rate", "n_clean", "variant", "adaptive")
    for name, expected in {
        "table01": 8 * 10,
        "table03": 18,
        "table05": 40,
        "table06": 27,
        "table07": 12,
        "table13": 35,
        "table15": 3 * 4 * 6,
    }.items():
        suite = load_suite(name)
        ours = [each.labels for each in planned(suite)]
        met = [
            value
            for value in paper_values(name)
            if any(
                all(labels[axis] == wanted for axis, wanted in value.labels.items() if axis in named) for labels in ours
            )
        ]
        assert len(met) == expected, name
    one = next(
        value
        for value in paper_values("table01")
        if (value.labels["attack"], value.labels["defense"]) == ("wanet", "i-bau")
    )
    assert one.values.keys() == {"acc", "asr", "der"}


def test_numbers_that_are_illegible_are_left_out_and_slips_are_mended() -> None:
    table = {(value.labels["attack"], value.labels["defense"]): value.values for value in paper_values("table04")}
    assert table["badnets", "npd-uu"] == {"asr": pytest.approx(0.001)}
    six = {
        tuple(value.labels[axis] for axis in ("attack", "defense", "n_clean")): value.values
        for value in paper_values("table06")
    }
    assert six["badnets", "i-bau", 250]["der"] == pytest.approx(0.83)
    with pytest.raises(BadInputError, match="no table 'table16'"):
        paper_values("table16")


def test_the_parsed_suite_is_what_the_text_says() -> None:
    suite = parse_suite(TWO_BY_THREE, "two")
    assert suite.scale == "smoke"
    assert suite.layout.rows == ("attack",)
    assert suite.grids[0]["seed"] == (0, 1, 2)


@pytest.mark.process
def test_the_script_for_a_gpu_plans_the_whole_first_table(tmp_path: Path) -> None:
    where = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    words = ["bash", str(SCRIPT), "cifar10=digits:train,digits:test", str(tmp_path / "out"), "--dry-run"]
    done = subprocess.run(words, env=where, capture_output=True, text=True, timeout=300, check=True)
    planned_cells = re.findall(r"(victim|purification) +. +(\d+) ", done.stdout)
    steps = [8, 8 * 3, 8 * (6 + 4), 8 * (6 + 4 * 3)]
    assert [int(count) for kind, count in planned_cells if kind == "purification"] == steps
    assert planned_cells[-2] == ("victim", "8")
