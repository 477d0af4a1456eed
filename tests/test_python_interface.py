"""What the public interface promises beyond ``purify`` itself: objects as methods, results, files, words."""

import copy
import doctest
import json
import logging
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import neural_polarizer as npz
from neural_polarizer.api import measuring, purifying
from neural_polarizer.defenses.npd.presets import KNOWS_TARGET, VARIANTS, variant_of
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.models.preact_resnet import PreActResNet18
from toys import TinyNet, assert_same, made, tiny_images, tiny_model

CLEAN = tiny_images(16)
QUICK = npz.NPD(epochs=1, batch_size=8, lr=0.05, site="after:features")
UNTYPED: Any = npz
ONE: dict[str, Any] = {"force": True, "device": "cpu"}


def quick(model: nn.Module | None = None, **more: Any) -> npz.Purified:
    return npz.purify(tiny_model() if model is None else model, CLEAN, QUICK, **ONE, **more)


def test_a_method_is_an_object_or_a_name() -> None:
    by_name = npz.purify(
        tiny_model(), CLEAN, "npd", epochs=1, batch_size=8, lr=0.05, site="after:features", precision="fp32", **ONE
    )
    by_object = quick()
    assert_same(by_object.model.state_dict(), by_name.model.state_dict())
    assert (by_object.method, by_name.method) == ("npd", "npd")
    assert by_object.defense == QUICK
    changed = npz.purify(tiny_model(), CLEAN, QUICK, epochs=3, **ONE)
    assert len(changed.history) == 3


@dataclass(frozen=True)
class Mine(npz.Defense):
    """A defense of one's own."""

    by: float = 0.5

    def _run(self, model: nn.Module, clean: npz.ImageSet, run: npz.Run) -> npz.Outcome:
        with torch.no_grad():
            model.get_parameter("network.head.weight").mul_(self.by)
        return npz.Outcome(model)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_object_of_the_family_goes_by_its_name(name: str) -> None:
    settings = npz.make_defense(name, target=1 if name in KNOWS_TARGET else None)
    assert isinstance(settings, npz.NPD)
    assert variant_of(settings) == name


def test_whole_numbers_of_numpy_are_taken_and_saved(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {name: np.int64(1) for name in ("seed", "target", "epochs", "batch_size")}
    found = npz.purify(tiny_model(), CLEAN, "npd-tp", site="after:features", device="cpu", force=True, **numbers)
    found.save(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["seed"], record["config"]["target"], record["config"]["epochs"]) == (1, 1, 1)
    with pytest.raises(npz.BadInputError, match="epochs cannot be "):
        npz.purify(tiny_model(), CLEAN, "npd", epochs=np.float64(1.5), device="cpu", force=True)


def test_a_path_that_no_system_takes_is_refused_in_words() -> None:
    for name, why in (("l" * 300, "File name too long"), ("a\0b", "null")):
        with pytest.raises(npz.BadInputError, match=rf"cannot be used.*{why}.*; choose another path"):
            npz.save(tiny_model(), name)


def test_a_saved_record_has_the_form_of_all_records(tmp_path: Path) -> None:
    quick().save(tmp_path)
    schema = json.loads((Path(__file__).parents[1] / "docs/reference/schemas/run.schema.json").read_text())
    pytest.importorskip("jsonschema").validate(json.loads((tmp_path / "run.json").read_text()), schema)


def test_an_object_of_ones_own_is_a_method() -> None:
    found = npz.purify(tiny_model(), CLEAN, Mine(by=0.25), **ONE)
    expected = 0.25 * tiny_model().get_parameter("network.head.weight")
    assert torch.equal(found.model.get_parameter("network.head.weight"), expected)
    assert (found.method, found.settings) == ("Mine", {"by": 0.25})


@pytest.mark.parametrize("option", [{"preset": "paper"}, {"scale": "laptop"}, {"target": 1}, {"profile": "gtsrb"}])
def test_options_that_choose_settings_are_for_names(option: dict[str, Any]) -> None:
    with pytest.raises(npz.WrongUsageError, match=f"{next(iter(option))} is for methods that are named"):
        npz.purify(tiny_model(), CLEAN, QUICK, **option, **ONE)


def test_a_result_says_what_it_is_in_one_line() -> None:
    found = quick()
    said = repr(found)
    assert said.startswith("Purified(npd at after:features, accuracy on clean images ")
    assert len(found.notes) == 1
    assert said.endswith(" s, fp32 on cpu, seed 0; 1 warning)")
    assert "\n" not in said
    assert found.figures.keys() == {"seconds", "clean_acc_before", "clean_acc_after"}
    page = found._repr_html_()
    assert page is not None
    assert page.startswith("<iframe srcdoc=")
    assert "after:features" in page


def test_what_a_user_must_know_is_warned_of_and_phases_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="neural_polarizer")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = quick()
    said = [str(each.message) for each in caught if issubclass(each.category, npz.NeuralPolarizerWarning)]
    assert said == list(found.notes) != []
    assert all(each.filename == __file__ for each in caught if issubclass(each.category, npz.NeuralPolarizerWarning))
    assert any(line.startswith("optimise: ") for line in caplog.messages)
    assert caplog.messages[-1] == repr(found)


def test_progress_true_shows_a_line_and_the_library_is_silent_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    quick()
    assert capsys.readouterr() == ("", "")
    quick(progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "\roptimise 100 %" in shown.err


def test_a_layer_can_be_left_out_for_a_comparison() -> None:
    found, pixels = quick(), CLEAN.images / 255
    with torch.no_grad():
        before, after = tiny_model()(pixels), found.model(pixels)
        with found.disabled():
            torch.testing.assert_close(found.model(pixels), before)
        assert torch.equal(found.model(pixels), after)
    assert not torch.allclose(before, after)
    plain = npz.purify(tiny_model(), CLEAN, npz.ANP(iterations=1), **ONE)
    with pytest.raises(npz.BadInputError, match="anp has changed the weights"), plain.disabled():
        pass


def test_results_can_be_copied_and_pickled() -> None:
    found = quick()
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert_same(other.model.state_dict(), found.model.state_dict())
        assert repr(other) == repr(found)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ours", "own"])
def test_a_result_is_saved_and_loaded_and_so_is_its_layer(tmp_path: Path, kind: str) -> None:
    model = made(PreActResNet18(4, 2)) if kind == "ours" else tiny_model()
    place = "after:layer4" if kind == "ours" else "after:features"
    found = npz.purify(model, CLEAN, QUICK, site=place, **ONE)
    npz.save(found, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"purified.safetensors", "polarizer.safetensors", "run.json", "report.html"}
    again = npz.load(tmp_path / "out") if kind == "ours" else npz.load(tmp_path / "out", arch=TinyNet)
    pixels = CLEAN.images / 255
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), found.model(pixels))
        layered = npz.load_polarizer(model, tmp_path / "out" / "polarizer.safetensors")
        torch.testing.assert_close(layered(pixels), found.model(pixels))
    with pytest.raises(npz.BadInputError, match="holds a polarizer"):
        npz.load_polarizer(again, tmp_path / "out" / "polarizer.safetensors")
    with pytest.raises(npz.BadInputError, match=r"holds run\.json of another run"):
        npz.purify(model, CLEAN, QUICK, site=place, seed=1, **ONE).save(tmp_path / "out")
    found.save(tmp_path / "out")  # the very same may be written again
    with pytest.raises(npz.BadInputError, match="holds a whole model, and not its layer"):
        npz.load_polarizer(model, tmp_path / "out" / "purified.safetensors")


def test_a_file_of_a_network_of_ones_own_says_what_to_give(tmp_path: Path) -> None:
    npz.save(tiny_model(), tmp_path / "model.safetensors")
    with pytest.raises(npz.BadInputError, match=r"built by code of your own, toys:TinyNet.*in Python, .*arch="):
        npz.load(tmp_path / "model.safetensors")
    again = npz.load(tmp_path / "model.safetensors", arch=TinyNet(num_classes=4))
    assert_same(again.state_dict(), tiny_model().state_dict())
    assert isinstance(again.model_record, ModelRecord)
    npz.save(again, tmp_path / "again.safetensors")  # of a model that was read, everything is known
    assert_same(npz.load(tmp_path / "again.safetensors", arch=TinyNet).state_dict(), tiny_model().state_dict())


def test_purifying_twice_is_refused() -> None:
    with pytest.raises(npz.BadInputError, match="has been purified already"):
        quick(quick().model)


def test_a_result_is_taken_wherever_a_model_is() -> None:
    found = quick()
    assert npz.evaluate(found, CLEAN, device="cpu") == npz.evaluate(found.model, CLEAN, device="cpu")
    assert_same(found.fold(CLEAN).model.state_dict(), npz.fold(found.model, CLEAN).model.state_dict())


def test_sites_lists_what_the_command_lists() -> None:
    found = [str(each.site) for each in npz.sites(tiny_model(), 8)]
    assert "after:features" in found
    assert set(found) <= {str(each.site) for each in npz.sites(tiny_model(), (8, 8), everything=True)}


def test_sites_of_images_that_the_model_does_not_take_are_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))
    assert npz.sites(flat, 8)
    with pytest.raises(npz.BadInputError, match="cannot take images N x 3 x 9 x 9"):
        npz.sites(flat, 9)


def test_the_examples_in_the_docstrings_run() -> None:
    found = [doctest.testmod(module) for module in (purifying, measuring)]
    assert sum(each.attempted for each in found) >= 8
    assert sum(each.failed for each in found) == 0


SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neural_polarizer as npz

model: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
clean = DataLoader(TensorDataset(torch.rand(8, 3, 8, 8), torch.tensor([0, 1] * 4)), batch_size=4)
purified = npz.purify(model, clean, npz.NPD(epochs=1), site="after:0", progress=True, force=True)
named = npz.purify(model, list(zip(torch.rand(8, 3, 8, 8), [0, 1] * 4)), "npd", preset="paper", epochs=1)
accuracy: float | None = npz.evaluate(purified, clean).acc
with purified.disabled():
    plain: nn.Module = purified.fold(clean).model
purified.save("purified/")
again: nn.Module = npz.load("purified/", arch=lambda: model)
p_value: float = npz.audit(named, clean).p_value
"""


@pytest.mark.slow
@pytest.mark.process
def test_a_script_of_the_public_interface_only_is_typed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "script.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: UNTYPED.load(tiny_model()), "expected a path, got Normalized"),
        (lambda: UNTYPED.save(tiny_model(), None), "expected a path, got NoneType"),
        (lambda: UNTYPED.export(tiny_model(), 5, CLEAN, to="onnx"), "expected a path, got int"),
        (
            lambda: UNTYPED.purify(tiny_model(), CLEAN, UNTYPED.NPD),
            r"method: expected a name as 'npd', or an object as NPD\(\)",
        ),
        (lambda: UNTYPED.sites(tiny_model(), (3, 8, 8)), "size must be a height and width"),
        (lambda: UNTYPED.Normalized(tiny_model(), [123.7] * 3, [58.4] * 3), "divide mean and std by 255"),
    ],
)
def test_a_value_of_another_kind_is_named(call: Any, reason: str) -> None:
    with pytest.raises(npz.BadInputError, match=reason):
        call()


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("images", CLEAN.images.numpy(), "images must be a tensor.* got ndarray"),
        ("labels", CLEAN.labels.tolist(), "labels must be a tensor.* got list"),
        ("classes", 4, "classes must be the names of the classes, got 4"),
    ],
)
def test_an_image_set_of_other_parts_is_refused(part: str, value: Any, reason: str) -> None:
    made = object.__new__(npz.ImageSet)  # the tests check types at the constructor, which users do not
    vars(made).update({**vars(CLEAN), part: value})
    with pytest.raises(npz.BadInputError, match=reason):
        made.__post_init__()


def test_a_normalisation_of_whole_numbers_is_one_of_floats() -> None:
    assert npz.Normalized(tiny_model(), [0, 0, 0], [1, 1, 1]).mean.is_floating_point()


@contextmanager
def default(dtype: torch.dtype, device: str) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64 by default": lambda: default(torch.float64, "cpu"),
    "another device by default": lambda: default(torch.float32, "meta"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", STATES)
def test_what_the_caller_has_set_in_torch_changes_nothing(name: str) -> None:
    model, expected = tiny_model(), quick()
    figures = npz.evaluate(model, CLEAN, device="cpu")
    p_value = npz.audit(model, CLEAN, device="cpu").p_value
    with STATES[name]():
        found = quick(model)
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
        assert npz.evaluate(model, CLEAN, device="cpu") == figures
        assert npz.audit(model, CLEAN, device="cpu").p_value == p_value
        assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
    assert_same(found.model.state_dict(), expected.model.state_dict())


@contextmanager
def switched_off() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        yield


@pytest.mark.parametrize("state", [lambda: torch.autocast("cpu", torch.bfloat16), switched_off])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("ft", {"schedule": {"precision": "bf16", "epochs": 3, "batch_size": 8}}),
        ("npd", {"precision": "bf16", "epochs": 3}),
    ],
)
def test_weights_are_cast_anew_in_each_step_in_an_autocast_of_the_caller(
    state: Callable[[], AbstractContextManager[Any]], method: str, settings: dict[str, Any]
) -> None:
    def found() -> npz.Purified:
        return npz.purify(tiny_model(), CLEAN, method, **settings, **ONE)

    expected = found()
    with state():
        inside = found()
        assert torch.is_autocast_enabled("cpu") == (state is not switched_off)
        assert torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype == (
            torch.float32 if state is switched_off else torch.bfloat16
        )
    assert_same(inside.model.state_dict(), expected.model.state_dict())


def test_evaluate_says_what_would_explain_a_low_accuracy() -> None:
    pixels = torch.zeros(24, 3, 4, 4)
    labels = torch.arange(24) % 3
    pixels[torch.arange(24), labels] = 1.0
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert npz.evaluate(model, (pixels, labels), device="cpu").acc == 1.0
    with pytest.warns(npz.NeuralPolarizerWarning, match="in the order BGR .* it would be 100.0 %") as caught:
        npz.evaluate(model, (pixels.flip(1), labels), device="cpu")
    assert caught[0].filename == __file__
