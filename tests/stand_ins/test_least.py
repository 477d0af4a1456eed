"""Least stand-ins: as small as they can be, inside their forms, and made without touching anything."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neural_polarizer.defenses.stand_ins.forms import pixel_forms
from neural_polarizer.defenses.stand_ins.least import (
    Forms,
    Forward,
    Space,
    StandIns,
    dense_forms,
    drawn_forms,
    least_stand_ins,
    wanted_labels,
)
from neural_polarizer.defenses.stand_ins.program import head_norms
from neural_polarizer.defenses.stand_ins.seen import succeeding
from neural_polarizer.defenses.stand_ins.settings import Bank, Search
from neural_polarizer.perturb import smoothed
from toys import quick

LABELS = torch.arange(3).repeat(20)
SHAPE = (1, 4, 4)


def linear(weight: Tensor, images: Tensor) -> Forward:
    def forward(rows: Tensor, deltas: Tensor) -> Tensor:
        return (images[rows] + deltas).flatten(1) @ weight.T

    return forward


def search(
    forms: Forms, *, seed: int = 0, batch_size: int = 64, steps: int = 40, begin: StandIns | None = None
) -> tuple[StandIns, Tensor]:
    """Towards class 0 in a linear classifier in which each image lies where its class does."""
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    images = (3 * weight)[LABELS].view(-1, *SHAPE)
    found = least_stand_ins(
        Space(linear(weight, images), LABELS, wanted_labels(LABELS, 3), SHAPE, 10.0),
        torch.zeros(len(forms.windows), dtype=torch.int64),
        forms,
        search=Search(steps=steps, images=16, cap=50.0),
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(seed),
        told=lambda done, total: None,
        begin=begin,
    )
    return found, weight


def test_norms_come_close_to_the_least_there_is() -> None:
    found, weight = search(dense_forms(3, SHAPE, torch.device("cpu")), steps=80)
    logits = (3 * weight)[LABELS] @ weight.T
    least = head_norms(weight, logits, LABELS, torch.tensor([0]), quantile=1.0, steps=2000)
    assert all(float(least) * 0.9 <= float(norm) <= float(least) * 1.35 for norm in found.norms)
    assert torch.allclose(found.deltas.flatten(1).norm(dim=1), found.norms, rtol=1e-4)


def test_a_search_goes_on_from_where_another_ended() -> None:
    forms = dense_forms(3, SHAPE, torch.device("cpu"))
    enough = search(forms)[0]
    on, anew = search(forms, steps=1, begin=enough)[0], search(forms, steps=1)[0]
    assert torch.allclose(on.norms, enough.norms)  # the radius has not changed yet
    assert bool((torch.cosine_similarity(on.deltas.flatten(1), enough.deltas.flatten(1)) > 0.9).all())
    assert torch.allclose(anew.norms, torch.full((3,), 10.0))


def test_they_stay_inside_their_windows_and_are_the_same_for_a_seed_and_any_batch_size() -> None:
    forms = drawn_forms(
        4,
        SHAPE,
        (1, 2),
        dense=0.0,
        largest=0.5,
        generator=torch.Generator().manual_seed(3),
        device=torch.device("cpu"),
    )
    first, again = search(forms)[0], search(forms)[0]
    assert float((first.deltas * (1 - forms.windows)).abs().max()) == 0
    assert torch.equal(first.deltas, again.deltas)
    other = search(forms, seed=1)[0]
    assert not torch.equal(first.deltas, other.deltas)


def test_no_more_images_at_once_than_the_batch_size_allows() -> None:
    seen = []

    def forward(rows: Tensor, deltas: Tensor) -> Tensor:
        seen.append(len(rows))
        return deltas.flatten(1)[:, :3]

    least_stand_ins(
        Space(forward, LABELS, wanted_labels(LABELS, 3), SHAPE, 1.0),
        torch.tensor([0, 1, 2, 3]),
        dense_forms(4, SHAPE, torch.device("cpu")),
        search=Search(steps=2, images=8),
        batch_size=5,
        generator=torch.Generator().manual_seed(0),
        told=lambda done, total: None,
    )
    assert max(seen) <= 5


def test_smooth_ones_are_what_a_coarse_grid_can_take() -> None:
    forms = Forms(torch.ones(2, 1, 4, 4), torch.tensor([True, False]), 2)
    found, _ = search(forms)
    rank = [int(torch.linalg.matrix_rank(delta[0], atol=1e-4)) for delta in found.deltas]
    assert rank[0] <= 2 < rank[1]
    filtered = forms.fitted(torch.eye(4).expand(2, 1, 4, 4))
    assert torch.allclose(filtered[:1], smoothed(torch.eye(4)[None, None], 2))


@quick
@given(st.integers(0, 1000), st.sampled_from([(1, 2), (0,), ()]), st.floats(0.1, 1.0))
def test_windows_are_boxes_of_the_places(seed: int, axes: tuple[int, ...], largest: float) -> None:
    shape = (3, 6, 5)
    forms = drawn_forms(
        5,
        shape,
        axes,
        dense=0.2,
        largest=largest,
        generator=torch.Generator().manual_seed(seed),
        device=torch.device("cpu"),
    )
    assert set(forms.windows.unique().tolist()) <= {0.0, 1.0}
    for window in forms.windows:
        inside = window.nonzero()
        assert len(inside) == int((inside.amax(dim=0) - inside.amin(dim=0) + 1).prod())


def test_one_succeeds_that_leads_enough_images_and_is_not_at_the_cap() -> None:
    found = StandIns(
        torch.zeros(4, 1), torch.tensor([1.0, 1.0, 2.0, 1.0]), torch.tensor([0.4, 0.6, 0.9, 0.8]), LABELS[:4]
    )
    assert succeeding(found, 0.5, cap=2.0).tolist() == [False, True, False, True]
    assert succeeding(found, 0.7, cap=2.0).tolist() == [False, False, False, True]


def test_radii_in_pixels_grow_with_the_root_of_the_size_from_each_forms_own_unit() -> None:
    small, large = (pixel_forms(shape, Bank(dense_unit=3.0, smooth_unit=5.0)) for shape in ((3, 32, 32), (3, 64, 64)))
    assert {name: form.unit for name, form in small.items()} == {"dense": 3.0, "smooth": 5.0}
    assert {name: form.unit for name, form in large.items()} == {"dense": 6.0, "smooth": 10.0}


def test_a_search_begins_at_a_share_of_its_first_radius() -> None:
    lengths: list[float] = []
    answer = linear(torch.eye(3, 16), torch.zeros(60, *SHAPE))

    def forward(rows: Tensor, deltas: Tensor) -> Tensor:
        lengths.append(float(deltas[0].detach().norm()))
        return answer(rows, deltas)

    least_stand_ins(
        Space(forward, LABELS, wanted_labels(LABELS, 3), SHAPE, 1.0),
        torch.tensor([0]),
        dense_forms(1, SHAPE, torch.device("cpu")),
        search=Search(steps=2, start=2.0, inside=0.4),
        batch_size=8,
        generator=torch.Generator().manual_seed(0),
        told=lambda *_: None,
    )
    assert lengths == pytest.approx([0.8, 2.0])


def test_wanted_labels_are_classes_then_shifts() -> None:
    table = wanted_labels(torch.tensor([0, 2, 1]), 3)
    assert table.tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2], [1, 0, 2], [2, 1, 0]]


def test_the_program_at_the_head_is_the_distance_to_a_plane() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    logits = torch.tensor([[-10.0, 0.0], [-5.0, 0.0], [4.0, 0.0]])
    labels = torch.tensor([1, 1, 0])
    found = head_norms(weight, logits, labels, torch.tensor([0, 1]), quantile=1.0, steps=500)
    assert found.tolist() == pytest.approx([2.0, 0.8])  # 10 / |(3, 4)| and 4 / |(3, 4)|


def test_the_program_satisfies_all_its_constraints() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(6, 9, generator=generator), torch.randn(50, 9, generator=generator)
    labels = torch.arange(50) % 6
    logits = inputs @ weight.T
    short = head_norms(weight, logits, labels, torch.arange(6), quantile=0.9, steps=20)
    long = head_norms(weight, logits, labels, torch.arange(6), quantile=0.9, steps=3000)
    assert bool((long <= short + 1e-4).all())  # feasible throughout, so that more steps can only shorten it
    assert bool((long > 0).all())
