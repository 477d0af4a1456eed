"""What an audit finds in networks whose weak spot is known, and what a learned layer looks like."""

import pytest
import torch
from audit_toys import CLASSES, DOOR, Corridor, banded

from neural_polarizer.audit import choose_target, collect, score, spectrum
from neural_polarizer.audit.evidence import RADIUS, SHORTER_RADII, Evidence, collect_margins
from neural_polarizer.polarizer import Polarizer
from toys import assert_same, snapshot


@pytest.fixture(scope="module")
def open_door() -> Evidence:
    model = Corridor(60.0).train()
    before = snapshot(model)
    found = collect(model, banded(), seed=0)
    after = snapshot(model)
    assert_same(before[0], after[0])
    assert before[1:] == after[1:]
    return found


def test_the_door_is_found_in_every_kind_of_evidence(open_door: Evidence) -> None:
    found = score(open_door.margins, seed=0)
    assert (found.suspect, found.verdict, found.accuracy) == (DOOR, "backdoor", 1.0)
    shared = open_door.shared[min(SHORTER_RADII)]
    assert int(shared.argmax()) == DOOR
    assert float(shared[DOOR]) > float(shared.sum() - shared[DOOR])
    assert int(open_door.triggers.sizes.argmin()) == DOOR
    assert all(
        int(rates.argmax()) == DOOR or float(rates.max()) == float(rates[DOOR]) for rates in open_door.own.values()
    )


def test_rates_are_shares_that_fit_together(open_door: Evidence) -> None:
    for rates in (*open_door.shared.values(), *open_door.own.values()):
        assert rates.shape == (CLASSES,)
        assert bool(((rates >= 0) & (rates <= 1)).all())
    assert open_door.flow.shape == (CLASSES, CLASSES)
    assert bool(open_door.flow.diagonal().isnan().all())
    others = [row for row in range(CLASSES) if row != DOOR]
    expected = open_door.shared[RADIUS][DOOR]  # here all classes have as many images
    assert float(open_door.flow[others, DOOR].mean()) == pytest.approx(float(expected), abs=0.05)


def test_without_a_door_there_is_no_suspect() -> None:
    assert score(collect_margins(Corridor(0.0), banded(), seed=0), seed=0).verdict != "backdoor"


def test_collecting_repeats_itself() -> None:
    one, two = (collect_margins(Corridor(60.0), banded(), seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.pixels + one.features, two.pixels + two.features, strict=True))


def test_a_target_is_chosen_where_the_audit_is_confident_and_npd_where_not() -> None:
    found = choose_target("npd-tu", Corridor(60.0), banded(), seed=0)
    assert (found.method, found.target) == ("npd-tu", DOOR)
    assert f"class {DOOR}" in found.reason
    fallback = choose_target("npd-tu", Corridor(0.0), banded(), seed=0)
    assert (fallback.method, fallback.target) == ("npd", None)
    assert "no class with confidence" in fallback.reason


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
