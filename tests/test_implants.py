"""Backdoors planted into trained networks: from the command line, from Python and in the benchmark."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import neural_polarizer
from neural_polarizer.attacks import ATTACKS, BadNets, Trojan, implant
from neural_polarizer.bench.cells import PurificationCell, VictimCell
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.reactivation import reactivated, retuning_set
from neural_polarizer.bench.suite import load_suite
from neural_polarizer.data.poison import triggered_test
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import sha256_of_file
from neural_polarizer.model_files.load import load_model
from neural_polarizer.models.definition import Definition, network_named
from neural_polarizer.runs.attack import Planting, Victim, run_attack
from neural_polarizer.train.schedule import Schedule
from run_files import attack_words, coloured, run, states_equal, write_data

Capsys = pytest.CaptureFixture[str]
CODE = """
from torch import nn

def small(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))
"""
SUITE = """
kind = "reactivation"
manifest = "manifest.toml"
scale = "smoke"
[[grid]]
init = "good"
attack = ["badnets", "badnets-source"]
n_clean = 6
defense = "ft"
[table]
rows = ["init", "attack"]
values = ["acc", "asr", "ra5"]
"""


def network(folder: Path) -> Definition:
    found = network_named(f"{folder / 'nets.py'}:small")
    assert isinstance(found, Definition)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A clean network of the user's own code, data, a manifest and a suite."""
    path = list(sys.path)
    (tmp_path / "nets.py").write_text(CODE)
    torch.manual_seed(0)
    torch.save({"net": network(tmp_path).build(3).state_dict()}, tmp_path / "good.pth")
    (tmp_path / "manifest.toml").write_text(
        f"""
[victims.good]
file = "good.pth"
network = "nets.py:small"
profile = "cifar10"
data = "tiny"
[sha256]
"good.pth" = "{sha256_of_file(tmp_path / "good.pth")}"
"""
    )
    (tmp_path / "suite.toml").write_text(SUITE)
    write_data(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in [each for each in sys.modules if each.startswith("nets")]:
        del sys.modules[name]


def words(folder: Path, *more: object) -> tuple[object, ...]:
    found = list(attack_words(folder, folder / "attack", "--init", folder / "good.pth", "--profile", "cifar10", *more))
    at = found.index("--width")
    del found[at : at + 2]
    return tuple(found)


@pytest.mark.long
def test_the_command_plants_into_a_checkpoint_and_the_result_is_purified_like_any_other(
    folder: Path, capsys: Capsys
) -> None:
    arch = ("--arch", f"{folder / 'nets.py'}:small")
    done = run(capsys, *words(folder, *arch, "--lr", 1e-9))
    assert (done.code, done.err) == (0, "")
    record = json.loads((folder / "attack" / "attack.json").read_text())
    assert record["init"]["sha256"] == sha256_of_file(folder / "good.pth")
    assert record["architecture"] == "nets.py:small"
    assert record["schedule"]["epochs"] == 2
    start = load_model(folder / "good.pth", architecture=network(folder), profile="cifar10")
    planted = load_model(folder / "attack", architecture=network(folder))
    assert planted.record.mean == start.record.mean
    assert planted.record.classes == ("red", "green", "blue")
    old, new = start.model.state_dict(), planted.model.state_dict()
    assert all(
        torch.allclose(old[key], new[key], atol=1e-6) for key in old if "running" not in key and "num" not in key
    )
    assert run(capsys, *words(folder, *arch)).code == 3  # another learning rate: the folder holds another attack
    out = ("purify", folder / "attack", *arch, "--clean", folder / "train.parquet", "--n-clean", 6, "--method", "ft")
    done = run(capsys, *out, "--out", folder / "out", "--device", "cpu", "--force", "--quiet")
    assert (done.code, done.err) == (0, "")


def test_what_does_not_go_together_is_refused(folder: Path, capsys: Capsys) -> None:
    arch = ("--arch", f"{folder / 'nets.py'}:small")
    from_scratch = run(capsys, *attack_words(folder, folder / "attack", *arch))
    assert "--arch FILE.py:NAME goes with --init" in from_scratch.err
    assert from_scratch.code == 2
    assert "--width is for victims from random weights" in run(capsys, *words(folder, *arch, "--width", 3)).err
    other = coloured(48, 0)
    model = load_model(folder / "good.pth", architecture=network(folder))
    victim = Victim(architecture="nets.py:small", width=None, profile="none", schedule=Schedule(), seed=0)
    four = other.__class__(other.images, other.labels, ("a", "b", "c", "d"), "four")
    with pytest.raises(BadInputError, match=r"good.pth: has 3 classes, but four has 4"):
        run_attack(Planting(BadNets(), four, four, victim, model), folder / "x", device=torch.device("cpu"))


def test_from_python_a_copy_is_planted_and_the_clean_model_is_the_one_given(folder: Path) -> None:
    model = load_model(folder / "good.pth", architecture=network(folder)).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    schedule = Schedule(epochs=8, batch_size=16, lr=0.1, crop_padding=0, flip=False)
    attack = Trojan(target=1, poison_rate=0.4, steps=5, label_rule="all-to-one")
    planted = implant(model, attack, coloured(48, 0), schedule=schedule)
    assert states_equal(model.state_dict(), before)
    assert not planted.model.training
    assert not states_equal(planted.model.state_dict(), before)
    triggered = attack.triggered(coloured(21, 1), planted.trigger.state)
    found = neural_polarizer.evaluate(planted.model, coloured(21, 1), triggered)
    assert found.n_triggered == 14
    again = implant(model, attack, coloured(48, 0), schedule=schedule)
    assert states_equal(planted.model.state_dict(), again.model.state_dict())


def test_the_benchmark_plants_purifies_and_brings_back(folder: Path, capsys: Capsys) -> None:
    data = f"tiny={folder / 'train.parquet'},{folder / 'test.parquet'}"
    bench = ("bench", "run", folder / "suite.toml", "--engine", "inline", "--device", "cpu", "--data", data)
    missing = run(capsys, *bench, "--out", folder / "results")
    assert (missing.code, "--models: no folder given: holds no good.pth" in missing.err) == (3, True)
    done = run(capsys, *bench, "--models", folder, "--out", folder / "results")
    assert (done.code, done.err) == (0, "")
    assert "4 cells, 4 computed, 0 failed" in done.out
    records = [json.loads(path.read_text()) for path in (folder / "results" / "records").iterdir()]
    victims = [each for each in records if each["kind"] == "victim"]
    assert {each["request"]["init"]["network"] for each in victims} == {"nets.py:small"}
    source = next(each for each in victims if each["request"]["attack"]["label_rule"] == "all-to-one")
    clean = load_model(folder / "good.pth", architecture=network(folder)).model
    train, test, trigger = coloured(48, 0), coloured(21, 1), BadNets(target=source["request"]["attack"]["target"])
    planted = reactivated(clean, train, trigger, triggered_test(test, trigger), seed=0, device=torch.device("cpu"))
    assert source["result"]["ra5"] == planted  # the clean network's own, not the implant's
    tuned = [each["result"] for each in records if each["kind"] == "reactivation"]
    assert all(0 <= each["ra5"] <= 1 and each["der"] is not None for each in tuned)
    assert run(capsys, "bench", "verify", folder / "results").code in (0, 1, 2)
    assert "0 computed" in run(capsys, *bench, "--models", folder, "--out", folder / "results").out


def test_a_retuning_set_ends_with_five_triggered_images() -> None:
    train, trigger = coloured(600, 0), BadNets(target=1)
    data = retuning_set(train, trigger, seed=0)
    assert len(data) == 12  # 2 %
    assert data.labels[-5:].tolist() == [1] * 5
    assert (data.images[-5:, :, -1:, -1:] == 255).all()
    assert (trigger.stamp(data.images[:-5]) != data.images[:-5]).flatten(1).any(dim=1).all()
    source = BadNets(label_rule="source-specific", target=1, source=2).triggers()[0]
    found = retuning_set(train, source, seed=0)
    assert found.labels[-5:].tolist() == [1] * 5
    assert (found.images[-5:].float().mean(dim=(2, 3)).argmax(dim=1) == 2).all()
    assert retuning_set(train, trigger, seed=0).sha256() == data.sha256()
    assert retuning_set(train, trigger, seed=1).sha256() != data.sha256()


@pytest.mark.long
def test_the_suite_of_implants_covers_all_attacks_and_low_rates() -> None:
    cells = planned(load_suite(str(Path(__file__).parents[1] / "benchmarks" / "published" / "real.toml")))
    victims = [each for each in cells if isinstance(each.cell, VictimCell) and each.cell.init is not None]
    attacks = {(str(each.labels["init"]), str(each.labels["attack"])) for each in victims}
    for name in ATTACKS:
        assert {("resnet20", name), ("resnet56", name)} <= attacks
    assert {each.labels["poison_rate"] for each in victims} >= {0.003, 0.005, 0.01, 0.03, 0.1}
    assert {each.cell.kind for each in cells if isinstance(each.cell, PurificationCell)} == {"reactivation"}
