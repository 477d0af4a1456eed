"""Folded models on disk, and ``polarizer purify --fold``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import neural_polarizer
from neural_polarizer.data.images import to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.folding.fold import Folded, fold_polarizer
from neural_polarizer.layer.sites import features_at
from neural_polarizer.layer.surgery import PolarizedModule, Site, insert
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.record import KEY, ModelRecord
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.adapted import adapt
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.runs import fold as fold_runs
from run_files import coloured, main_quietly, make_runs, purify_words, run
from toys import Untraceable, made, polarizers, tiny_images, tiny_model

RECORD = ModelRecord(architecture="preactresnet18", num_classes=3, width=2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))
PIXELS = to_pixels(coloured(6, 0).images)
SITES = {
    "after:layer4": (),
    "after:conv1": (),
    "before:layer4": (("layer4.0.bn1", "pointwise"),),
    "before:layer4.1.conv1": (("layer4.1.conv1", "border"),),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


def folded_at(site: str) -> Folded:
    model = made(Normalized(PreActResNet18(3, 2), RECORD.mean, RECORD.std))
    place = Site.parse(site)
    return fold_polarizer(insert(model, place, polarizers(3, features_at(model, place, PIXELS).channels)), PIXELS)


def saved(path: Path, site: str) -> Folded:
    folded = folded_at(site)
    save_model(path, folded.model, replace(RECORD, changes=tuple(folded.changes.items())))
    return folded


def with_bias(path: Path) -> nn.Module:
    """A file of a model whose first convolution has a bias, which those of its architecture have not."""
    model = Normalized(PreActResNet18(3, 2), RECORD.mean, RECORD.std)
    adapt(model.network, "conv1", "bias")
    save_model(path, made(model), replace(RECORD, changes=(("conv1", "bias"),)))
    return model


def test_a_layer_with_a_bias_that_had_none_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = with_bias(tmp_path / "folded.safetensors")
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "folded.safetensors").model(PIXELS), model(PIXELS))


@pytest.mark.long
@pytest.mark.parametrize("site", SITES)
def test_a_folded_model_comes_back_to_the_bit(tmp_path: Path, site: str) -> None:
    path = tmp_path / "folded.safetensors"
    folded = saved(path, site)
    loaded = load_model(path)
    with torch.no_grad():
        assert torch.equal(loaded.model(PIXELS), folded.model(PIXELS))
        assert torch.equal(neural_polarizer.load(path)(PIXELS), folded.model(PIXELS))
    assert loaded.record == replace(RECORD, changes=SITES[site])
    assert not any(module.training for module in loaded.model.modules())


def test_a_convolution_left_at_the_site_comes_back_to_the_bit(tmp_path: Path) -> None:
    """What a network that cannot be traced keeps, here in one that files can name."""
    model = made(Normalized(PreActResNet18(3, 2), RECORD.mean, RECORD.std))
    site = Site.parse("before:layer4")
    conv = made(nn.Conv2d(8, 8, 1))
    inserted = insert(model, site, conv)
    save_model(tmp_path / "folded.safetensors", inserted, replace(RECORD, site=str(site)))
    loaded = load_model(tmp_path / "folded.safetensors").model
    with torch.no_grad():
        assert torch.equal(loaded(PIXELS), inserted(PIXELS))
    (wrapped,) = [module for module in loaded.modules() if isinstance(module, PolarizedModule)]
    assert type(wrapped.polarizer) is nn.Conv2d


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([["layer9", "bias"]], r"no change 'bias' is possible at 'layer9'"),
        ([["conv1", "bias"]] * 2, r"no change 'bias' is possible at 'conv1'"),
        ([["conv1", "pointwise"]], r"no change 'pointwise' is possible at 'conv1'"),
        ([["layer4.0.bn1"]], r"its record of the model is damaged"),
        (5, r"its record of the model is damaged"),
        ([["layer1.0.conv1", "bias"]], r"1 missing: layer1\.0\.conv1\.bias; 1 unexpected: conv1\.bias"),
        ([], r"1 unexpected: conv1\.bias"),
    ],
)
def test_a_record_with_impossible_changes_is_refused(tmp_path: Path, changes: Any, reason: str) -> None:
    path = tmp_path / "folded.safetensors"
    with_bias(path)
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()[KEY])
    save_file(load_file(path), path, {KEY: json.dumps({**record, "changes": changes})})
    with pytest.raises(BadInputError, match=reason) as caught:
        load_model(path)
    assert path.name in str(caught.value)


@pytest.mark.long
@pytest.mark.parametrize(
    ("site", "kept"), [("before:layer4", False), ("after:layer4", True), ("before:layer4.1.conv1", False)]
)
def test_purify_writes_the_folded_model_too(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], site: str, kept: bool
) -> None:
    words = ("--site", site, "--epochs", 6, "--batch-size", 4, "--fold")
    done = run(capsys, *purify_words(runs / "attack", runs, tmp_path / "out", *words))
    assert (done.code, done.err) == (0, "")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    found = record["fold"]
    assert (found["exact"], found["architecture_kept"], found["n_images"]) == (True, kept, 12)
    assert (found["border_ignored"] is not None) == (site == "before:layer4.1.conv1")
    assert f"note: {found['remark']}" in " ".join(done.out.split())
    purified, folded = (load_model(tmp_path / "out" / f"{name}.safetensors") for name in ("purified", "folded"))
    chosen = json.loads((tmp_path / "out" / "clean_index.json").read_text())["indices"]
    clean = to_pixels(coloured(48, 0).images[chosen])
    with torch.no_grad():
        expected = purified.model(clean)
        gap = float((folded.model(clean) - expected).abs().max())
    assert found["max_logits_deviation"] == pytest.approx(gap, abs=1e-6)
    assert gap < 1e-4 * float(expected.abs().max())
    assert folded.record.site is None
    test = coloured(21, 1)
    accuracy = neural_polarizer.evaluate(folded.model, test, device="cpu").acc
    assert accuracy is not None
    assert found["acc_difference"] == pytest.approx(accuracy - record["after"]["acc"])


@pytest.mark.long
def test_a_finished_run_can_be_folded_later_and_is_then_left_alone(runs: Path, tmp_path: Path) -> None:
    words = purify_words(runs / "attack", runs, tmp_path)
    main_quietly(*words)
    assert "fold" not in json.loads((tmp_path / "run.json").read_text())
    purified = (tmp_path / "purified.safetensors").read_bytes()
    main_quietly(*words, "--fold")
    folded = tmp_path / "folded.safetensors"
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert folded in before
    main_quietly(*words, "--fold")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before
    assert (tmp_path / "purified.safetensors").read_bytes() == purified


@pytest.mark.long
def test_what_cannot_be_folded_is_remarked_and_stays_purified(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> Folded:
        raise BadInputError("it has two polarizers")

    monkeypatch.setattr(fold_runs, "fold_polarizer", refuse)
    done = run(capsys, *purify_words(runs / "attack", runs, tmp_path, "--fold"))
    assert (done.code, done.err) == (0, "")
    assert "note: not folded: it has two polarizers" in done.out
    assert not (tmp_path / "folded.safetensors").exists()
    assert json.loads((tmp_path / "run.json").read_text())["fold"]["exact"] is None
    assert load_model(tmp_path).record.site == "before:layer4.1"


def test_folding_from_python() -> None:
    images = tiny_images(16)
    fast: dict[str, Any] = {"epochs": 1, "batch_size": 8, "precision": "fp32", "device": "cpu", "force": True}
    purified = neural_polarizer.purify(tiny_model(), images, "npd", site="after:features", **fast)
    folded = neural_polarizer.fold(purified, images)
    assert folded.how == "folded into head"
    pixels = to_pixels(images.images)
    with torch.no_grad():
        gap = float((folded.model(pixels) - purified.model(pixels)).abs().max())
    assert folded.deviation == pytest.approx(gap, abs=1e-6)
    of_module = neural_polarizer.fold(purified.model.double(), images, border="ignored")
    assert of_module.deviation < 1e-9
    foreign = neural_polarizer.purify(made(Untraceable()), images, "npd", site="after:features", **fast)
    assert neural_polarizer.fold(foreign, images).site_kept


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("from_file", [False, True])
def test_what_was_folded_from_python_can_be_saved_and_read(tmp_path: Path, site: str, from_file: bool) -> None:
    network = made(Normalized(PreActResNet18(3, 2), RECORD.mean, RECORD.std))
    place = Site.parse(site)
    model = insert(network, place, polarizers(3, features_at(network, place, PIXELS).channels)).eval()
    if from_file:
        neural_polarizer.save(model, tmp_path / "purified.safetensors")
        model = neural_polarizer.load(tmp_path / "purified.safetensors")
    folded = neural_polarizer.fold(model, coloured(6, 0))
    neural_polarizer.save(folded.model, tmp_path / "folded.safetensors")
    loaded = load_model(tmp_path / "folded.safetensors")
    assert (loaded.record.changes, loaded.record.site) == (SITES[site], None)
    with torch.no_grad():
        assert torch.equal(loaded.model(PIXELS), folded.model(PIXELS))


def test_a_model_that_is_read_and_saved_keeps_its_image_size(tmp_path: Path) -> None:
    record = replace(RECORD, image_size=(32, 32), classes=("a", "b", "c"))
    save_model(tmp_path / "a.safetensors", made(Normalized(PreActResNet18(3, 2), RECORD.mean, RECORD.std)), record)
    neural_polarizer.save(neural_polarizer.load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert load_model(tmp_path / "b.safetensors").record == record
