"""What the paper's ablations of NPD change: the terms of the loss (Table 3) and the layer's structure (Table 13)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from neural_polarizer.data.images import to_pixels
from neural_polarizer.defenses.npd import algorithm
from neural_polarizer.files import read_json
from neural_polarizer.layer.polarizer import Structure
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.record import KEY
from neural_polarizer.models.normalize import Normalized
from npd_cases import SMALL, WARM, polarizer_of, repaired
from run_files import coloured, make_runs, purify_words, run
from toys import assert_same, backbone_state, hooks, largest_gap, snapshot, tiny_images, tiny_model

STRUCTURES: tuple[Structure, ...] = tuple(name for name in get_args(Structure) if name != "by-class")

# --- Terms of the loss ------------------------------------------------------------------------------------------------

BENIGN: dict[str, Any] = {"asr_weight": 0.0, "bce_weight": 0.0}
ROWS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "bn": (BENIGN, set()),
    "bn+bce1": ({"asr_weight": 0.0, "bce_terms": "true-class"}, {"bce1"}),
    "bn+bce2": ({"asr_weight": 0.0, "bce_terms": "runner-up"}, {"bce2"}),
    "bn+asr": ({"bce_weight": 0.0}, {"asr"}),
    "bn+bce1+bce2": ({"asr_weight": 0.0}, {"bce1", "bce2"}),
    "all": ({}, {"asr", "bce1", "bce2"}),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_loss_of_each_row_of_table_3_is_the_sum_of_its_terms(row: str) -> None:
    """Without inner steps the perturbed images are the clean ones, but for those of the target class; by hand."""
    changes, terms = ROWS[row]
    model, clean = tiny_model(), tiny_images(24)
    weights = {"asr": 0.7, "bce1": 0.3, "bce2": 0.3}
    settings = replace(SMALL, target=2, steps=0, lr=1e-12, epochs=1, batch_size=24, asr_weight=0.7, bce_weight=0.3)
    (record,) = repaired(model, clean, replace(settings, **changes)).history
    with torch.no_grad():
        p = model(to_pixels(clean.images)).double().softmax(dim=1)
    own = F.one_hot(clean.labels, 4).bool()
    attacked = clean.labels != 2
    values = {
        "asr": -(1 - p[attacked, 2]).log().mean(),
        "bce1": -p[own][attacked].log().mean(),
        "bce2": -(1 - p.masked_fill(own, 0).amax(dim=1)[attacked]).log().mean(),
    }
    expected = -p[own].log().mean() + sum(weights[term] * values[term] for term in terms)
    assert record["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert ("surrogate_success" in record) == (row != "bn")


def test_predicted_labels_are_those_of_the_true_class_term_alone() -> None:
    """Half of the labels are wrong, so that both kinds differ."""
    model, clean = tiny_model(), tiny_images(24)
    settings = replace(SMALL, asr_weight=0.0, epochs=1, lr=1e-12, steps=0)
    found = {
        (terms, label): repaired(model, clean, replace(settings, bce_terms=terms, bce_label=label)).history[0][
            "loss_bce"
        ]
        for terms in ("true-class", "runner-up")
        for label in ("true", "predicted")
    }
    assert found["true-class", "true"] > found["true-class", "predicted"] + 0.01
    assert found["runner-up", "true"] == found["runner-up", "predicted"]


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("nothing is perturbed here")


@pytest.mark.parametrize("bn_outer", ["eval", "train_clean_stats"])
def test_the_benign_loss_alone_perturbs_nothing_and_fine_tunes_the_layer(
    bn_outer: Literal["eval", "train_clean_stats"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of plain SGD on all images at once; by hand, from the features on."""
    monkeypatch.setattr(algorithm, "perturb", refuse)
    model, clean = tiny_model(), tiny_images(24)
    settings = replace(WARM, bn_outer=bn_outer, warmup_epochs=0, **BENIGN)
    settings = replace(settings, epochs=2, batch_size=24, lr=0.1, momentum=0.0, weight_decay=0.0, max_gradient=None)
    result = repaired(model, clean, settings)
    assert (result.suspect, result.audit) == (None, None)
    assert [set(record) for record in result.history] == [{"epoch", "loss", "loss_benign", "clean_accuracy"}] * 2
    twin = polarizer_of(repaired(model, clean, replace(settings, epochs=0)))
    assert isinstance(model, Normalized)
    network: Any = model.network
    features = network.features((to_pixels(clean.images) - model.mean) / model.std).detach()
    twin.train(bn_outer == "train_clean_stats")
    for _ in range(2):
        twin.zero_grad()
        logits = network.head(twin(features).mean(dim=(2, 3)))
        F.cross_entropy(logits, clean.labels).backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.1 * parameter.grad)
    assert_close(polarizer_of(result).state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-5)


# --- Structures -------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_is_learned_in_a_frozen_network_that_is_still_cut(
    structure: Structure, precision: Literal["fp32", "bf16"]
) -> None:
    model, clean = tiny_model(), tiny_images(24)
    settings = replace(SMALL, lr=0.01, structure=structure, precision=precision)
    before = snapshot(model)
    result = repaired(model, clean, settings)
    assert_same(snapshot(model)[0], before[0])
    assert snapshot(model)[1:] == before[1:]
    assert_same(backbone_state(result.model), before[0])
    assert hooks(result.model) == []
    assert result.notes == ()
    layer = polarizer_of(result)
    assert layer.structure == structure
    assert any(module is layer for module in result.model.modules())
    assert all(parameter.dtype == torch.float32 for parameter in layer.parameters())
    start = polarizer_of(repaired(model, clean, replace(settings, epochs=0)))
    assert largest_gap(layer, start) > 1e-4


@pytest.mark.parametrize("structure", [structure for structure in STRUCTURES if structure != "osdn"])
def test_a_calibrated_layer_without_epochs_changes_nothing(structure: Structure) -> None:
    model, clean = tiny_model(), tiny_images(24)
    result = repaired(model, clean, replace(SMALL, structure=structure, epochs=0))
    pixels = to_pixels(tiny_images(16, seed=9).images)
    assert_close(result.model(pixels), model(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("structure", ["osad", "osdn"])
def test_calibration_gives_inner_norms_the_statistics_of_what_they_see(structure: Structure) -> None:
    clean = tiny_images(24)
    result = repaired(tiny_model(), clean, replace(SMALL, structure=structure, epochs=0, batch_size=7))
    layer, seen = polarizer_of(result), dict[nn.Module, Tensor]()
    for norm in layer.inner_norms:
        norm.register_forward_pre_hook(lambda module, args: seen.update({module: args[0].detach()}))
    result.model(to_pixels(clean.images))
    assert len(seen) == {"osad": 1, "osdn": 2}[structure]
    for norm in layer.inner_norms:
        assert_close(norm.running_mean, seen[norm].mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
        assert_close(norm.running_var, seen[norm].var(dim=(0, 2, 3), unbiased=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("structure", ["conv-bn-x2", "osad", "osdn"])
def test_warm_up_and_training_statistics_move_every_norm(structure: Structure) -> None:
    model, clean = tiny_model(), tiny_images(24)
    warm = replace(WARM, structure=structure, bn_outer="train_clean_stats", epochs=0)
    fresh, warmed, trained = (
        polarizer_of(repaired(model, clean, settings))
        for settings in (replace(warm, warmup_epochs=0), warm, replace(warm, epochs=1))
    )
    for before, after in ((fresh, warmed), (warmed, trained)):
        olds, news = dict(before.named_buffers()), dict(after.named_buffers())
        assert all(not torch.equal(olds[name], news[name]) for name in olds)


@pytest.mark.parametrize("structure", ["osad", "osdn"])
def test_random_first_weights_are_of_the_runs_seed(structure: Structure) -> None:
    model, clean, settings = tiny_model(), tiny_images(12), replace(SMALL, structure=structure, epochs=0)
    torch.manual_seed(1)
    first = polarizer_of(repaired(model, clean, settings, seed=7)).state_dict()
    torch.manual_seed(2)
    assert_same(polarizer_of(repaired(model, clean, settings, seed=7)).state_dict(), first)
    other = polarizer_of(repaired(model, clean, settings, seed=8)).state_dict()
    assert largest_gap_of(first, other) > 1e-2


def largest_gap_of(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.long
@pytest.mark.parametrize("structure", ["conv-bn-x2", "linear", "osad"])
def test_a_run_with_another_structure_is_saved_loaded_and_not_folded(
    structure: Structure, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_runs(tmp_path_factory)
    words = purify_words(folder / "attack", folder, tmp_path / "out", "--set", f"structure={structure}", "--fold")
    outcome = run(capsys, *words)
    assert (outcome.code, outcome.err) == (0, "")
    loaded = load_model(tmp_path / "out")
    assert loaded.record.structure == structure
    with safe_open(tmp_path / "out" / "polarizer.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()[KEY])["structure"] == structure
    record = read_json(tmp_path / "out" / "run.json")
    assert record["config"]["structure"] == structure
    assert record["fold"]["remark"].startswith(f"not folded: a layer of structure {structure} cannot be folded")
    assert not (tmp_path / "out" / "folded.safetensors").exists()
    test = coloured(21, 1)
    with torch.no_grad():
        correct = loaded.model(to_pixels(test.images)).argmax(dim=1) == test.labels
    assert float(correct.float().mean()) == pytest.approx(record["after"]["acc"])
