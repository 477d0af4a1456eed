"""What NPD tells of the classes that one perturbation reaches."""

import pytest
import torch

from neural_polarizer.defenses.npd_audit import reachability_audit


@pytest.mark.parametrize(
    ("suspect", "words"),
    [(0, "class 0 stands out"), ("next", "all-to-all"), (None, "no class stands out")],
)
def test_the_summary_names_margins_and_suspect(suspect: int | None, words: str) -> None:
    found = reachability_audit({"pixels": torch.tensor([26.04, 13.8, -torch.inf, 1.6])}, suspect, None)
    assert "at most 26.0, into the next best class by 13.8" in found.summary
    assert words in found.summary
    assert "enters the layer" not in found.summary
    assert found.by_class == {"margin": [pytest.approx(26.04), pytest.approx(13.8), None]}


@pytest.mark.parametrize(
    ("aim", "words"), [(1, "towards class 1, so"), ("next", "towards the class next to each image's own")]
)
def test_the_summary_names_the_aim_in_features(aim: int | None, words: str) -> None:
    found = reachability_audit({"features": torch.tensor([-2.5, -1.5, -1.75])}, None, aim)
    assert words in found.summary
    assert "stands out" not in found.summary
    assert found.by_class == {"margin_in_features": [-2.5, -1.5]}
