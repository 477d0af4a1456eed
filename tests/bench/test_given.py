"""Victims that are given: a manifest names them, and the benchmark measures and purifies them without training any."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from neural_polarizer.bench.cells import GivenCell, PurificationCell
from neural_polarizer.bench.given import PublishedTrigger, TriggerRule
from neural_polarizer.bench.grid import planned
from neural_polarizer.bench.suite import Suite, load_suite
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import sha256_of_file
from neural_polarizer.models.definition import Definition, network_named
from run_files import run, write_data

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "published"
Capsys = pytest.CaptureFixture[str]

CODE = """
from torch import nn

def brightest(num_classes=3):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
"""
SUITE = """
manifest = "manifest.toml"
scale = "smoke"
[[grid]]
victim = ["bad", "good"]
n_clean = 6
defense = "ft"
[table]
rows = ["victim"]
values = ["acc", "acc_lost", "asr", "ra", "der"]
"""
MANIFEST = """
[victims.bad]
file = "bad.pth"
network = "nets.py:brightest"
profile = "none"
data = "tiny"
trigger = {{ name = "flood", target = 2, add = "blue.png" }}

[victims.good]
file = "good.pth"
network = "nets.py:brightest"
profile = "none"
data = "tiny"

[sha256]
"bad.pth" = "{bad}"
"good.pth" = "{good}"
"blue.png" = "{blue}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A manifest, its suite, and models that name the brightest channel: flooding blue makes class 2 of all."""
    path = list(sys.path)
    (tmp_path / "nets.py").write_text(CODE)
    weights = {"2.weight": 50 * torch.eye(3), "2.bias": torch.zeros(3)}
    for name in ("bad.pth", "good.pth"):
        torch.save({"net": weights, "name": name}, tmp_path / name, _use_new_zipfile_serialization=False)
    blue = np.zeros((16, 16, 3), np.uint8)
    blue[..., 2] = 255
    Image.fromarray(blue).save(tmp_path / "blue.png")
    hashes = {name.partition(".")[0]: sha256_of_file(tmp_path / name) for name in ("bad.pth", "good.pth", "blue.png")}
    (tmp_path / "manifest.toml").write_text(MANIFEST.format(**hashes))
    (tmp_path / "suite.toml").write_text(SUITE)
    write_data(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in [each for each in sys.modules if each.startswith("nets")]:
        del sys.modules[name]


def bench(folder: Path, *more: str) -> tuple[str, ...]:
    data = f"tiny={folder / 'train.parquet'},{folder / 'test.parquet'}"
    options = ("--data", data, "--models", str(folder), "--out", str(folder / "results"), "--device", "cpu")
    return ("bench", "run", str(folder / "suite.toml"), "--engine", "inline", *options, *more)


def results(folder: Path, out: str = "results") -> dict[tuple[str, str], dict[str, Any]]:
    """By kind and file of the weights."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    records = [json.loads(path.read_text()) for path in (folder / out / "records").iterdir()]
    names = {each["id"]: min(each["request"]["sha256"]) for each in records if each["kind"] == "given"}
    for each in records:
        found[each["kind"], names[each["request"].get("victim", each["id"])]] = each
    return found


@pytest.mark.long
def test_given_victims_are_measured_and_purified(folder: Path, capsys: Capsys) -> None:
    done = run(capsys, *bench(folder))
    assert (done.code, done.err) == (0, "")
    assert "4 cells, 4 computed, 0 failed" in done.out
    found = {key: record["result"] for key, record in results(folder).items()}
    bad, good = found["given", "bad.pth"], found["given", "good.pth"]
    assert (bad["acc"], bad["asr"], bad["ra"]) == (1.0, 1.0, 0.0)
    assert (bad["n_test"], bad["n_triggered"]) == (21, 14)  # those of class 2 are left out
    assert bad["model_sha256"] == sha256_of_file(folder / "bad.pth")
    assert bad["definition_sha256"] == sha256_of_file(folder / "nets.py")
    assert (good["acc"], good["asr"], good["ra"], good["n_triggered"]) == (1.0, None, None, 0)
    after, clean = found["purification", "bad.pth"], found["purification", "good.pth"]
    assert (after["before"]["asr"], after["n_clean"]) == (1.0, 6)
    assert after["der"] is not None
    assert after["acc_lost"] == after["before"]["acc"] - after["acc"]
    assert (clean["asr"], clean["ra"], clean["der"]) == (None, None, None)
    assert clean["acc_lost"] == 1.0 - clean["acc"]


def test_code_that_builds_in_half_precision_makes_a_victim_like_any_other(folder: Path, capsys: Capsys) -> None:
    run(capsys, *bench(folder))
    whole = {key: record["result"]["acc"] for key, record in results(folder).items()}
    (folder / "nets.py").write_text(CODE.replace("nn.Linear(3, num_classes))", "nn.Linear(3, num_classes)).half()"))
    done = run(capsys, *bench(folder, "--out", str(folder / "half")))
    assert (done.code, "4 cells, 4 computed, 0 failed" in done.out) == (0, True)
    assert {key: record["result"]["acc"] for key, record in results(folder, "half").items()} == whole


def test_a_victim_that_guesses_is_purified_with_a_note(folder: Path, capsys: Capsys) -> None:
    torch.save({"2.weight": torch.zeros(3, 3), "2.bias": torch.tensor([0.0, 1, 0])}, folder / "good.pth")
    hashes = {name.partition(".")[0]: sha256_of_file(folder / name) for name in ("bad.pth", "good.pth", "blue.png")}
    (folder / "manifest.toml").write_text(MANIFEST.format(**hashes))
    assert run(capsys, *bench(folder)).code == 0
    notes = results(folder)["purification", "good.pth"]["result"]["notes"]
    assert any(note.startswith("the model classifies only 2 of 6 clean images correctly") for note in notes)


def test_what_is_done_is_not_done_again_and_can_be_shown(folder: Path, capsys: Capsys) -> None:
    run(capsys, *bench(folder, "--only", "defense=ft"))  # the victims are needed, and so they are measured
    assert len(results(folder)) == 4
    assert "4 cells, 0 computed, 0 failed" in run(capsys, *bench(folder)).out
    suite, out = str(folder / "suite.toml"), str(folder / "results")
    assert re.search(r"suite\D+4\D+4\D+0\D+0", run(capsys, "bench", "status", suite, "--out", out).out)
    run(capsys, "bench", "report", suite, "--results", out, "--out", folder / "site")
    table = (folder / "site" / "suite.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| good"))
    assert "ACC lost" in table
    assert " - " in row  # no ASR, RA and DER of a clean model
    checked = run(capsys, "verify", out)
    assert checked.code == 0
    assert "given victims" in checked.out


def test_other_files_than_the_manifest_names_are_no_victims(folder: Path, capsys: Capsys) -> None:
    (folder / "bad.pth").write_bytes((folder / "good.pth").read_bytes())
    assert run(capsys, *bench(folder)).code == 1
    found = results(folder)
    assert "is not the file of the manifest: its SHA-256 is" in found["given", "bad.pth"]["error"]
    assert "its victim" in found["purification", "bad.pth"]["error"]
    assert found["purification", "good.pth"]["status"] == "done"


def test_missing_models_are_told_before_anything_is_computed(folder: Path, capsys: Capsys) -> None:
    words = list(bench(folder))
    words[words.index("--models") + 1] = str(folder / "results")
    refused = run(capsys, *words)
    assert refused.code == 3
    assert "holds no bad.pth, blue.png" in refused.err
    del words[words.index("--models") : words.index("--models") + 2]
    assert "--models: no folder given" in run(capsys, *words).err


def test_a_cell_depends_on_weights_code_and_trigger(folder: Path) -> None:
    def ids() -> list[str]:
        cells = [each.cell for each in planned(load_suite(str(folder / "suite.toml")))]
        return [cell.id for cell in cells if isinstance(cell, GivenCell)]

    before = ids()
    (folder / "nets.py").write_text(CODE + "# changed\n")
    assert not set(before) & set(ids())
    (folder / "nets.py").write_text(CODE)
    text = (folder / "manifest.toml").read_text()
    (folder / "manifest.toml").write_text(text.replace("target = 2", "target = 1"))
    assert (ids()[0] != before[0], ids()[1]) == (True, before[1])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("target = 2", "target = -1", "needs a target of at least 0"),
        ('add = "blue.png"', 'replace = "blue.png"', "needs pixels, or add, or replace with mask"),
        ('add = "blue.png"', "pixels = [[1, 2]]", r"pixels must be \[row, column, value\]"),
        ("nets.py:brightest", "gone.py:brightest", "no such file; network must be FILE.py:NAME"),
        ('profile = "none"', 'profile = "x"', "unknown profile 'x'"),
        ('data = "tiny"', "data = 1", "data must be a text"),
        ('data = "tiny"', 'dta = "tiny"', "did you mean 'data'"),
        ('"good.pth" = ', '"other.pth" = ', "'good.pth' needs its SHA-256"),
        ('file = "good.pth"', 'file = "../good.pth"', "needs its SHA-256 in the table sha256, and no way upwards"),
    ],
)
def test_a_manifest_that_makes_no_sense(folder: Path, old: str, new: str, message: str) -> None:
    text = (folder / "manifest.toml").read_text()
    assert old in text
    (folder / "manifest.toml").write_text(text.replace(old, new))
    with pytest.raises(BadInputError, match=message):
        load_suite(str(folder / "suite.toml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"bad", "good"', '"bat"', "victim cannot be 'bat': did you mean 'bad'"),
        ('defense = "ft"', 'defense = "npd-tp"', "good: is clean and has no target"),
        ('scale = "smoke"', 'kind = "gradcam"', "gradcam needs a victim that is trained here"),
        ("manifest.toml", "gone.toml", "the manifest cannot be read"),
    ],
)
def test_a_suite_that_makes_no_sense(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "suite.toml").write_text(SUITE.replace(old, new))
    with pytest.raises(BadInputError, match=message):
        planned(load_suite(str(folder / "suite.toml")))


def stamped(rule: TriggerRule, picture: Any = None, mask: Any = None) -> list[int]:
    images = torch.tensor([0, 100, 250, 255], dtype=torch.uint8).view(1, 1, 2, 2).expand(1, 3, 2, 2).contiguous()
    before = images.clone()
    made = PublishedTrigger(rule, picture, mask).stamp(images)
    assert made.dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(made[:, 0], made[:, 2])
    return made[0, 0].flatten().tolist()


def test_triggers_do_what_the_manifest_says() -> None:
    picture = torch.tensor([3, 0, 10, 7], dtype=torch.uint8).view(1, 2, 2).expand(3, 2, 2)
    mask = torch.tensor([0.0, 1.0, 1.0, 0.0]).view(1, 2, 2).expand(3, 2, 2)
    pixels = TriggerRule(name="p", target=0, pixels=((0, 1, 7), (1, 0, 0)))
    assert stamped(pixels) == [0, 7, 0, 255]
    assert stamped(TriggerRule(name="a", target=0, add="x"), picture) == [3, 100, 255, 255]  # clamped, not wrapped
    assert stamped(TriggerRule(name="r", target=0, replace="x", mask="m"), picture, mask) == [3, 0, 10, 255]
    with pytest.raises(BadInputError, match="is for images of"):
        stamped(TriggerRule(name="a", target=0, add="x"), picture[:, :1])
    with pytest.raises(BadInputError, match="are too small"):
        stamped(TriggerRule(name="p", target=0, pixels=((2, 0, 1),)))
    with pytest.raises(BadInputError, match="there is no class 9 of 3"):
        PublishedTrigger(TriggerRule(name="p", target=9), None, None).relabel(torch.zeros(1, dtype=torch.int64), 3)


def suite() -> Suite:
    return load_suite(str(PUBLISHED / "published.toml"))


def test_the_published_suite_has_every_defense_and_every_victim() -> None:
    cells = [each.cell for each in planned(suite())]
    victims = {cell.given.name: cell.given for cell in cells if isinstance(cell, GivenCell)}
    assert victims == suite().given
    assert sum(victim.trigger is None for victim in victims.values()) == 2
    runs = {(c.victim.given.name, c.method, c.n_clean, c.seed) for c in cells if isinstance(c, PurificationCell)}  # type: ignore[union-attr]
    for name, victim in victims.items():
        methods = {"ft", "fp", "nad", "nc", "anp", "i-bau", "ep", "npd", "npd-up", "npd-uu"}
        methods |= {"npd-ls", "ft-sam", "fst", "clp", "rnp", "sau", "cnpd"}
        methods |= set() if victim.trigger is None else {"npd-tp", "npd-tu"}
        assert {method for each, method, _, _ in runs if each == name} == methods
        assert {(n, seed) for each, method, n, seed in runs if (each, method) == (name, "npd-ls")} == {
            (n, seed) for n in (50, 500, 2500) for seed in (0, 1, 2)
        }


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("small_vgg", 308_394), ("wrn_16_1", 175_066), ("resnet20", 269_722), ("resnet56", 853_018)],
)
def test_the_published_networks_give_logits_and_have_the_usual_size(name: str, numbers: int) -> None:
    definition = network_named(f"{PUBLISHED / 'networks.py'}:{name}")
    assert isinstance(definition, Definition)
    assert sum(each.numel() for each in definition.build(10).parameters()) == numbers
    assert definition.build(7).eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7)
