import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import neural_polarizer
from neural_polarizer.attacks import ATTACKS, BadNets
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.poison import TriggeredSet, read_triggered
from neural_polarizer.data.sources import read_images
from neural_polarizer.data.subset import clean_subset, read_index
from neural_polarizer.defenses.npd.presets import preset
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import sha256_of_file
from neural_polarizer.layer.surgery import PolarizedModule
from neural_polarizer.metrics import Metrics, evaluate
from neural_polarizer.model_files.load import load_model
from neural_polarizer.progress import silent
from neural_polarizer.runs import attack as attack_runs
from neural_polarizer.runs.attack import Planting, Victim, clean_model, load_attack, run_attack
from neural_polarizer.runs.inspect import Evidence
from neural_polarizer.runs.purification import Purification
from neural_polarizer.runs.purify import run_purify
from neural_polarizer.train.schedule import AdversarialTraining, Schedule
from run_files import attack_words, coloured, main_quietly, make_runs, states_equal

CPU = torch.device("cpu")
ATTACK_FILES = {"model.safetensors", "attack.json", "triggered.parquet", "trigger.safetensors", "trigger.png"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


def record_in(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def measured(model: nn.Module, runs: Path) -> dict[str, Any]:
    test = read_images(str(runs / "test.parquet"))
    triggered = read_triggered(runs / "attack" / "triggered.parquet", size=None, num_classes=3)
    found: Metrics = evaluate(model, test, triggered)
    return {
        "acc": found.acc,
        "asr": found.asr,
        "ra": found.ra,
        "n_test": found.n_test,
        "n_triggered": found.n_triggered,
    }


@pytest.mark.long
def test_an_attack_leaves_what_it_promises(runs: Path) -> None:
    assert names_in(runs / "attack") == ATTACK_FILES
    record = record_in(runs / "attack" / "attack.json")
    assert record["attack"] == "badnets"
    assert record["n_poisoned"] == round(0.2 * 48)
    assert record["model_sha256"] == sha256_of_file(runs / "attack" / "model.safetensors")
    assert record["versions"].keys() == {"neural_polarizer", "torch", "python"}
    wanted = measured(load_model(runs / "attack").model, runs)
    assert {name: record[name] for name in wanted} == wanted


def test_a_purification_leaves_what_it_promises(runs: Path) -> None:
    purified = runs / "purified"
    assert names_in(purified) == {
        *("purified.safetensors", "polarizer.safetensors", "run.json", "report.html", "clean_index.json"),
        *("verdict.json", "verdict.sarif"),
    }
    record = record_in(purified / "run.json")
    promised = "method site seed config n_clean before after der seconds history model_sha256 versions"
    assert set(promised.split()) <= record.keys()
    assert (record["method"], record["site"], record["seed"], record["n_clean"]) == ("npd", "before:layer4.1", 0, 12)
    assert record["config"]["epochs"] == len(record["history"]) == 12
    assert record["model_sha256"] == sha256_of_file(runs / "attack" / "model.safetensors")
    assert {"acc", "asr", "ra"} <= record["before"].keys() == record["after"].keys()
    assert "<html" in (purified / "report.html").read_text()


def test_the_recorded_gain_is_that_of_the_recorded_rates(runs: Path) -> None:
    record = record_in(runs / "purified" / "run.json")
    before, after = record["before"], record["after"]
    gain = max(0, before["asr"] - after["asr"]) - max(0, before["acc"] - after["acc"])
    assert record["der"] == pytest.approx((gain + 1) / 2)


def test_the_saved_model_reproduces_the_recorded_rates(runs: Path) -> None:
    record = record_in(runs / "purified" / "run.json")
    assert measured(load_model(runs / "purified").model, runs) == record["after"]
    assert measured(load_model(runs / "attack").model, runs) == record["before"]
    assert record["before"] != record["after"]


def test_the_backbone_of_the_purified_model_is_the_attacked_one_to_the_bit(runs: Path) -> None:
    purified = load_file(runs / "purified" / "purified.safetensors")
    layer = {name: value for name, value in purified.items() if name.startswith("polarizer.")}
    backbone = {name: value for name, value in purified.items() if name not in layer}
    assert states_equal(backbone, load_file(runs / "attack" / "model.safetensors"))
    alone = load_file(runs / "purified" / "polarizer.safetensors")
    assert states_equal({name.removeprefix("polarizer."): value for name, value in layer.items()}, alone)
    assert not torch.equal(alone["mix.weight"][:, :, 0, 0], torch.eye(len(alone["mix.weight"])))


def test_load_takes_a_checkpoint_and_both_kinds_of_folder(runs: Path) -> None:
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attacked, folder, purified = (
            neural_polarizer.load(path)(pixels)
            for path in (runs / "attack" / "model.safetensors", runs / "attack", str(runs / "purified"))
        )
    assert torch.equal(attacked, folder)
    assert not torch.equal(attacked, purified)
    assert any(isinstance(module, PolarizedModule) for module in neural_polarizer.load(runs / "purified").modules())


@pytest.mark.parametrize(("rule", "count"), [("all-to-one", 14), ("all-to-all", 21)])
def test_triggered_images_are_in_the_order_of_the_test_set(tmp_path: Path, runs: Path, rule: str, count: int) -> None:
    main_quietly(*attack_words(runs, tmp_path / "attack", "--label-rule", rule, "--target", 1, "--epochs", 1))
    path = tmp_path / "attack" / "triggered.parquet"
    assert pq.read_schema(path).names == ["image", "label", "true_label"]
    test = coloured(21, 1)
    kept = test if rule == "all-to-all" else test.select(test.labels != 1)
    got = read_images(str(path))
    assert len(got) == count
    assert torch.equal(got.images, BadNets().stamp(kept.images))
    assert pq.read_table(path)["true_label"].to_pylist() == kept.labels.tolist()
    wanted = (kept.labels + 1) % 3 if rule == "all-to-all" else torch.ones_like(kept.labels)
    assert torch.equal(got.labels, wanted)


def test_the_clean_images_are_the_chosen_ones(runs: Path) -> None:
    pool = read_images(str(runs / "train.parquet"))
    indices = read_index(runs / "purified" / "clean_index.json", pool)
    assert torch.equal(indices, clean_subset(pool, 12, seed=0))
    assert record_in(runs / "purified" / "run.json")["clean_sha256"] == pool.select(indices).sha256()


def test_an_attack_run_again_is_left_as_it_is(tmp_path: Path, runs: Path) -> None:
    out = shutil.copytree(runs / "attack", tmp_path / "attack")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    main_quietly(*attack_words(runs, out))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before


def attack_into(out: Path, train: ImageSet, test: ImageSet, **settings: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "architecture": "preactresnet18",
        "width": 2,
        "profile": "none",
        "schedule": Schedule(epochs=2, batch_size=16),
        "seed": 0,
    }
    attack, progress = settings.pop("attack", BadNets()), settings.pop("progress", silent)
    victim = Victim(**{**options, **settings})
    return run_attack(Planting(attack, train, test, victim), out, device=CPU, progress=progress)


def test_the_folder_of_another_attack_is_refused(tmp_path: Path) -> None:
    train, test = coloured(32, 0), coloured(9, 1)
    first = attack_into(tmp_path, train, test)
    assert attack_into(tmp_path, replace(train, source="moved"), test) == first
    changes: dict[str, dict[str, Any]] = {
        "seed": {"seed": 1},
        "settings": {"attack": BadNets(poison_rate=0.2)},
        "schedule": {"schedule": Schedule(epochs=3, batch_size=16)},
        "profile": {"profile": "cifar10"},
        "width": {"width": 3},
    }
    for name, change in changes.items():
        with pytest.raises(
            BadInputError, match=rf"holds another attack \(it differs in {name}\); choose another --out"
        ):
            attack_into(tmp_path, train, test, **change)
    with pytest.raises(BadInputError, match=r"differs in data_sha256\)"):
        attack_into(tmp_path, coloured(32, 5), test)


def test_a_killed_attack_goes_on_and_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    train, test = coloured(32, 0), coloured(9, 1)

    def kill(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("train", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack_into(tmp_path / "a", train, test, progress=kill)
    assert names_in(tmp_path / "a") == {"training.safetensors", "trigger.safetensors"}
    steps: list[int] = []
    resumed = attack_into(tmp_path / "a", train, test, progress=lambda phase, done, total: steps.append(done))
    whole = attack_into(tmp_path / "b", train, test)
    assert steps[0] == 3
    assert resumed["model_sha256"] == whole["model_sha256"]
    assert names_in(tmp_path / "a") == ATTACK_FILES


def test_a_damaged_training_state_and_a_damaged_trigger_are_made_again(tmp_path: Path) -> None:
    train, test = coloured(32, 0), coloured(9, 1)
    (tmp_path / "trigger.safetensors").write_bytes(b"half a file")
    (tmp_path / "training.safetensors").write_bytes(b"half a file")
    attack_into(tmp_path, train, test, attack=ATTACKS["wanet"]())
    assert names_in(tmp_path) == ATTACK_FILES | {"damaged"}
    assert (tmp_path / "damaged" / "training.safetensors").read_bytes() == b"half a file"


@pytest.mark.long
@pytest.mark.parametrize("name", ["badnets", "wanet", "input-aware"])
def test_a_stored_attack_triggers_images_as_it_did(tmp_path: Path, name: str) -> None:
    """The trigger is loaded anew and applied to the test set; input-aware is killed once on the way."""
    train, test = coloured(32, 0), coloured(9, 1)
    small: dict[str, Any] = {"mask_epochs": 1, "widths": (4, 4, 4)} if name == "input-aware" else {}

    def kill(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("train", 3):
            raise KeyboardInterrupt

    given = {"attack": ATTACKS[name](**small), "schedule": Schedule(epochs=2, batch_size=16)}
    with pytest.raises(KeyboardInterrupt):
        attack_into(tmp_path, train, test, progress=kill, **given)
    attack_into(tmp_path, train, test, **given)
    attack, state = load_attack(tmp_path)
    assert attack == given["attack"]
    again = attack.triggered(test, state)
    stored = read_triggered(tmp_path / "triggered.parquet", size=None, num_classes=3)
    assert torch.equal(again.images.images, stored.images.images)
    assert torch.equal(again.true_labels, stored.true_labels)


def test_a_clean_model_is_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    victim = Victim(
        architecture="preactresnet18", width=2, profile="none", schedule=Schedule(epochs=1, batch_size=16), seed=0
    )
    first = clean_model(coloured(32, 5), victim, device=CPU)
    monkeypatch.setattr(attack_runs, "fit", lambda *_args, **_options: pytest.fail("trained again"))
    hardened = replace(victim, schedule=replace(victim.schedule, adversarial=AdversarialTraining()))
    for same in (victim, hardened):
        assert states_equal(clean_model(coloured(32, 5), same, device=CPU).state_dict(), first.state_dict())
    assert not first.training
    with pytest.raises(pytest.fail.Exception):
        clean_model(coloured(32, 6), victim, device=CPU)


def purify_into(out: Path, runs: Path, seed: int = 0, evidence: Evidence | None = None) -> dict[str, Any]:
    return purify_with(runs, out, coloured(48, 0), epochs=1, n_clean=9, seed=seed, evidence=evidence or Evidence())


def purify_with(
    runs: Path, out: Path, pool: ImageSet, *, epochs: int, n_clean: int | None, evidence: Evidence, seed: int = 0
) -> dict[str, Any]:
    job = Purification(
        loaded=load_model(runs / "attack"),
        pool=pool,
        defense=replace(preset("npd"), epochs=epochs),
        method="npd",
        n_clean=n_clean,
        seed=seed,
        evidence=evidence,
        sources={},
        force=True,  # the victims of these tests have learned next to nothing
    )
    return run_purify(job, out, device=CPU)


@pytest.mark.long
def test_test_data_do_not_change_what_is_learned(tmp_path: Path, runs: Path) -> None:
    triggered = read_triggered(runs / "attack" / "triggered.parquet", size=None, num_classes=3)
    with_test = purify_into(tmp_path / "a", runs, evidence=Evidence(test=coloured(21, 1), triggered=triggered))
    without = purify_into(tmp_path / "b", runs)
    other = purify_into(tmp_path / "c", runs, seed=1)
    a, b, c = (load_file(tmp_path / name / "purified.safetensors") for name in "abc")
    assert states_equal(a, b)
    assert not states_equal(a, c)
    assert with_test["history"] == without["history"] != other["history"]
    assert without["der"] is None
    assert without["after"]["acc"] is None


@pytest.mark.long
def test_a_triggered_set_of_other_classes_is_refused(tmp_path: Path, runs: Path) -> None:
    ten = tuple(map(str, range(10)))
    images = ImageSet(coloured(3, 0).images, torch.tensor([9, 9, 9]), ten)
    with pytest.raises(BadInputError, match="has label 9, but the model's output is"):
        purify_into(tmp_path / "a", runs, evidence=Evidence(triggered=TriggeredSet(images, torch.tensor([0, 1, 2]))))
    assert names_in(tmp_path / "a") == set()


def test_a_purification_is_not_mixed_up_with_an_attack(tmp_path: Path, runs: Path) -> None:
    out = shutil.copytree(runs / "attack", tmp_path / "attack")
    before = names_in(out)
    with pytest.raises(BadInputError, match="holds an attack, which would be mixed up with the result"):
        purify_into(out, runs)
    assert names_in(out) == before


def test_images_and_classes_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"3 classes of 8x12 pixels do not go with .* of 16x16; .*--size"):
        attack_into(tmp_path / "a", coloured(32, 0), coloured(9, 1, (8, 12)))
    two = ImageSet(coloured(9, 1).images, torch.arange(9) % 2, ("a", "b"))
    with pytest.raises(BadInputError, match="2 classes of 16x16 pixels do not go with"):
        attack_into(tmp_path / "a", coloured(32, 0), two)
    assert not (tmp_path / "a").exists()


@pytest.mark.long
def test_a_weak_model_and_missing_classes_are_warned_of(tmp_path: Path, runs: Path) -> None:
    pool = coloured(48, 0)
    wrong = replace(coloured(21, 1), labels=(measured_labels(runs) + 1) % 3)
    without = pool.select(pool.labels != 2)
    record = purify_with(runs, tmp_path / "a", without, epochs=0, n_clean=None, evidence=Evidence(test=wrong))
    assert record["n_clean"] == 32
    assert any("check --profile" in warning for warning in record["warnings"])
    assert "1 of 3 classes have no clean image, so accuracy on them is not protected" in record["warnings"]
    assert not any("are test images, too" in warning for warning in record["warnings"])


@pytest.mark.long
def test_clean_images_that_are_test_images_are_warned_of(tmp_path: Path, runs: Path) -> None:
    pool = coloured(24, 0)
    test = replace(coloured(9, 1), images=torch.cat([coloured(7, 1).images, pool.images[:2]]))
    record = purify_with(runs, tmp_path / "a", pool, epochs=0, n_clean=None, evidence=Evidence(test=test))
    assert any(warning.startswith("2 of 24 clean images are test images, too") for warning in record["warnings"])


@torch.no_grad()
def measured_labels(runs: Path) -> torch.Tensor:
    """What the attacked model says about the test images."""
    return load_model(runs / "attack").model(coloured(21, 1).images / 255).argmax(dim=1)


def test_a_record_never_names_code_to_import(tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(runs / "attack", tmp_path / "attack")
    record = json.loads((folder / "attack.json").read_text())
    sys.modules.pop("this", None)
    for name in ("this:zen", "neural_polarizer.attacks.wanet:WaNet", ["badnets"], None):
        (folder / "attack.json").write_text(json.dumps({**record, "attack": name, "settings": {}}))
        with pytest.raises(BadInputError, match="code that a record names is never imported"):
            load_attack(folder)
    assert "this" not in sys.modules
    assert capsys.readouterr().out == ""
    mine = f"{Mine.__module__}:{Mine.__qualname__}"
    (folder / "attack.json").write_text(json.dumps({**record, "attack": mine}))
    assert type(load_attack(folder, own=Mine)[0]) is Mine
    (folder / "attack.json").write_text(json.dumps({**record, "attack": "this:zen"}))
    with pytest.raises(BadInputError, match="names the attack this:zen"):
        load_attack(folder, own=Mine)


class Mine(BadNets):
    """An attack of one's own."""
