"""What recipes of attacks and of defenses have in common: how much computing, and what a data set allows."""

from typing import Literal

Scale = Literal["paper", "laptop"]
"""The paper's settings, or minutes on two cores."""

VictimScale = Literal["paper", "short", "laptop"]
"""The same for victims; "short" is the paper's network, trained in a minute or two on a GPU."""


def mirrored(profile: str | None) -> bool:
    """Whether images of that data set are mirrored in training; a mirrored road sign is another sign."""
    return profile == "cifar10"
