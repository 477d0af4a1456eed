"""Behaviour that was once wrong and has no better place: identities, sums of seconds, the demo, and the wrapper."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import neural_polarizer.cli.demo as demo
from neural_polarizer.defenses import CLP, DEFAULT
from neural_polarizer.defenses.recipes import make_defense
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.surgery import Site, insert
from neural_polarizer.model_files.load import LoadedModel
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.runs.inspect import Evidence
from neural_polarizer.runs.purification import Purification
from toys import made, tiny_images, tiny_model


class RevisedCLP(CLP):
    """The same settings, another algorithm."""

    revision: ClassVar[int] = 99


def test_a_run_of_another_revision_of_the_algorithm_is_another_run() -> None:
    images = tiny_images(8)
    loaded = LoadedModel(tiny_model(), ModelRecord(architecture="tiny", num_classes=4), "0" * 64, Path("m"), (), ())
    job = Purification(
        loaded=loaded, pool=images, defense=CLP(), method="clp", n_clean=None, seed=0, evidence=Evidence(), sources={}
    )
    identity = job.identity(images)
    assert job.identity(images) == identity
    for other in (replace(job, defense=RevisedCLP()), replace(job, defense=CLP(deviations=1.0)), replace(job, seed=1)):
        assert other.identity(images) != identity


def test_the_demo_purifies_with_the_defaults_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiny_images(100)
    jobs: list[Purification] = []

    def ran(job: Purification, *_args: Any, **_more: Any) -> dict[str, Any]:
        jobs.append(job)
        raise InterruptedError

    loaded = LoadedModel(tiny_model(), ModelRecord(architecture="tiny", num_classes=4), "0" * 64, Path("m"), (), ())
    monkeypatch.setattr(demo, "read_images", lambda _spec: images)
    monkeypatch.setattr(demo, "run_attack", lambda *_args, **_more: {})
    monkeypatch.setattr(demo, "load_model", lambda _path: loaded)
    monkeypatch.setattr(demo, "read_triggered", lambda *_args, **_more: None)
    monkeypatch.setattr(demo, "run_purify", ran)
    with pytest.raises(InterruptedError):
        demo.demo(tmp_path / "demo", quiet=True)
    (job,) = jobs
    assert (job.method, job.defense) == (DEFAULT, make_defense(DEFAULT))
    assert not job.force


@pytest.mark.parametrize("side", ["before", "after"])
def test_who_walks_the_modules_of_a_network_meets_each_weight_once_and_reads_where_the_layer_is(side: Any) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    polarized = insert(network, Site(side, "0"), made(Polarizer(3)))
    held = [name for _, module in polarized.named_modules() for name in module._parameters if "weight" in name]
    assert len(held) == sum("weight" in name for name, _ in polarized.named_parameters())
    assert f"polarizer {side} the module" in repr(polarized)
    wrapper = polarized.get_submodule("0")
    assert not hasattr(wrapper, "_conv_forward"), "what is private to the module stays so"
    own, asked = network.get_parameter("0.weight"), wrapper.weight  # some networks ask for the type of a layer's weight
    assert isinstance(asked, torch.Tensor)
    assert torch.equal(asked, own)
