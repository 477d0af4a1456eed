"""What NPD tells of the classes that one perturbation reaches."""

import pytest
import torch

from neural_polarizer.defenses.npd_audit import reachability_audit
from neural_polarizer.suspects import Suspect

PIXELS, FEATURES = torch.tensor([26.04, 13.8, -torch.inf]), torch.tensor([-2.5, -1.5, -torch.inf, -1.75, -2.0])
SMOOTH = torch.tensor([5.5, -0.25, -0.5])
MARGINS = {"margin": [pytest.approx(26.04), pytest.approx(13.8), None], "margin_in_features": [-2.5, -1.5, None]}


@pytest.mark.parametrize(
    ("suspect", "aim", "words"),
    [
        (0, 0, "by 13.8: class 0 stands out"),
        (
            "next",
            "next",
            "by 13.8. What enters the layer is moved more easily towards the class next to each image's own than",
        ),
        (None, 1, "by 13.8: no class stands out. What enters the layer is moved most easily towards class 1, so"),
        (
            None,
            0,
            "no class stands out. Pixels and what enters the layer, taken together, are moved most easily",
        ),
    ],
)
def test_the_summary_names_margins_suspect_and_aim(suspect: Suspect | None, aim: Suspect, words: str) -> None:
    found = reachability_audit(FEATURES, suspect, aim, views={None: PIXELS})
    assert "at most 26.0, into the next best class" in found.summary
    assert words in found.summary
    assert found.by_class == MARGINS


def test_the_margins_of_the_view_that_sees_most_are_told_and_those_of_both_are_listed() -> None:
    found = reachability_audit(FEATURES, 0, 0, views={None: PIXELS, 8: SMOOTH})
    assert found.summary.startswith("One smooth perturbation for all images pushes them into a class by a margin of")
    assert "at most 5.5, into the next best class by -0.2: class 0 stands out" in found.summary
    assert found.by_class == MARGINS | {"margin_smooth": [5.5, -0.25, -0.5]}


def test_without_a_suspect_to_look_for_there_is_only_the_aim() -> None:
    found = reachability_audit(torch.tensor([-2.5, -1.5, -2.0, -1.0, -2.0]), None, "next")
    assert found.summary.startswith("What enters the layer is moved most easily towards the class next to each image's")
    assert found.by_class == {"margin_in_features": [-2.5, -1.5, -2.0]}
