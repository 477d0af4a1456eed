"""What an audit finds in networks whose weak spot is known, and what a learned layer looks like."""

from dataclasses import asdict, replace

import pytest
import torch
from audit_toys import CLASSES, DOOR, Corridor, banded

import neural_polarizer as npz
from neural_polarizer.audit import Audited, audited, choose_target, looking_for, spectrum
from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.npd import NPD
from neural_polarizer.defenses.stand_ins import LeastStandIns
from neural_polarizer.defenses.stand_ins.evidence import found_in
from neural_polarizer.defenses.stand_ins.settings import Settings
from neural_polarizer.errors import NeuralPolarizerWarning
from neural_polarizer.layer.polarizer import Polarizer
from toys import assert_same, snapshot


@pytest.fixture(scope="module")
def open_door() -> Audited:
    model = Corridor(60.0).train()
    before = snapshot(model)
    found = audited(model, banded(), seed=0)
    after = snapshot(model)
    assert_same(before[0], after[0])
    assert before[1:] == after[1:]
    return found


@pytest.mark.long
def test_the_door_is_found(open_door: Audited) -> None:
    assert (open_door.verdict, open_door.suspect, open_door.likeliest) == ("backdoor", DOOR, DOOR)
    assert open_door.p_value < open_door.level
    assert open_door.posterior > 0.9
    assert (open_door.accuracy, open_door.reason) == (1.0, None)
    assert {len(values) for values in open_door.by_class.values()} == {CLASSES}
    assert min(range(CLASSES), key=lambda label: open_door.by_class["p"][label] or 0.0) == DOOR


@pytest.mark.long
def test_without_a_door_nobody_is_accused() -> None:
    found = audited(Corridor(0.0), banded(), seed=0)
    assert found.suspect is None
    assert found.verdict != "backdoor"
    assert found.p_value >= found.level


@pytest.mark.long
def test_an_audit_repeats_itself_and_sees_what_the_evidence_sees(open_door: Audited) -> None:
    again = found_in(Corridor(60.0), banded(), Settings(), seed=0)[1]
    assert again.belief.p_value == open_door.p_value
    assert torch.equal(again.belief.by_aim, open_door.found.belief.by_aim)


@pytest.mark.long
def test_a_model_that_guesses_is_not_judged() -> None:
    images = banded()
    wrong = ImageSet(images.images, (images.labels + 1) % CLASSES, images.classes, "wrong")
    found = audited(Corridor(60.0), wrong, seed=0)
    assert (found.verdict, found.suspect) == ("cannot say", None)
    assert found.reason is not None
    assert "correctly" in found.reason


@pytest.mark.long
def test_few_classes_are_not_judged() -> None:
    images = banded()
    kept = (images.labels < 3).nonzero()[:, 0]
    few = images.select(kept)
    found = audited(torch.nn.Sequential(Corridor(0.0), _First(3)), few, seed=0)
    assert found.verdict == "cannot say"
    assert "too few classes" in str(found.reason)
    assert repr(found).startswith("Audited(cannot say, likeliest ")
    assert "\n" not in repr(found)


@pytest.mark.long
def test_images_of_one_class_accuse_nobody() -> None:
    images = banded()
    model, own = Corridor(0.0), images.select((images.labels == 4).nonzero()[:, 0])
    with pytest.warns(NeuralPolarizerWarning, match="of one class only"):
        found = npz.audit(model, own, device="cpu")
    assert found.found.belief.accused(found.level) == 4  # as no image has to be led there
    assert (found.verdict, found.suspect) == ("cannot say", None)
    chosen = choose_target("npd-tu", model, own, Settings(), seed=0)
    assert (chosen.method, chosen.target) == ("npd", None)
    assert "of one class only" in chosen.reason


class _First(torch.nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, : self.count]


@pytest.mark.long
def test_a_target_is_chosen_where_a_class_stands_out_and_none_is_needed_where_not() -> None:
    found = choose_target("npd-tu", Corridor(60.0), banded(), Settings(), seed=0)
    assert (found.method, found.target) == ("npd-tu", DOOR)
    assert f"class {DOOR}" in found.reason
    for asked, instead in (("npd-tu", "npd"), ("npd-ls", "npd-ls")):
        without = choose_target(asked, Corridor(0.0), banded(), Settings(), seed=0)
        assert (without.method, without.target) == (instead, None)
        assert "no class stands out" in without.reason


def test_a_target_is_looked_for_within_the_limits_of_the_method_that_asks() -> None:
    own = LeastStandIns(batch_size=7, precision="bf16", target=3)
    assert asdict(looking_for(own)) == asdict(replace(own, target=None))
    other = looking_for(NPD(batch_size=5, site="after:0"))
    assert (other.batch_size, other.site, other.looks) == (5, "after:0", Settings().looks)


def test_the_spectrum_of_the_identity_and_of_a_projection() -> None:
    layer = Polarizer(5).eval()
    layer.calibrate(torch.randn(5), torch.rand(5) + 0.1)
    found = spectrum(torch.nn.Sequential(layer))
    assert found is not None
    torch.testing.assert_close(torch.tensor(found.gains), torch.ones(5), atol=1e-5, rtol=0)
    assert max(found.changes) < 1e-5
    direction = torch.nn.functional.normalize(torch.randn(5), dim=0)
    with torch.no_grad():
        layer.mix.weight.copy_((torch.eye(5) - torch.outer(direction, direction))[:, :, None, None])
    taken = spectrum(torch.nn.Sequential(layer))
    assert taken is not None
    torch.testing.assert_close(torch.tensor(taken.changes), torch.tensor([1.0, 0, 0, 0, 0]), atol=1e-5, rtol=0)
    assert taken.directions == 1
    assert taken.distance == pytest.approx(5**-0.5, abs=1e-5)
    assert spectrum(torch.nn.Linear(2, 2)) is None
