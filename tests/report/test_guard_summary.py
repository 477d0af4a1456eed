"""The guard's sentence."""

from typing import Any

from neural_polarizer.report.guard import guard_summary, not_purified

CURVE = [
    {"dial": 0.0, "acc": 0.9, "drop": 0.0, "least_drop": 0.0, "stand_ins": 0.61},
    {"dial": 1.5, "acc": 0.9, "drop": 0.0081, "least_drop": 0.003, "stand_ins": 0.073},
]


def record(chosen: float, *, held_out: bool = True) -> dict[str, Any]:
    guarded = {"points": CURVE, "chosen": chosen, "judges": 1250, "held_out": held_out, "budget": 0.006}
    return {"guarded": guarded}


def test_it_tells_strength_cost_and_what_is_left() -> None:
    assert guard_summary(record(1.5)) == (
        "The layer works at 1.5 times its learned strength. On 1,250 held-out clean images the expected loss of "
        "accuracy is 0.8 points (0.6 are allowed, and one standard error). Held-out stand-ins lead 7.3% of the images "
        "to their class, 61.0% before."
    )
    assert "held-out clean" not in str(guard_summary(record(1.5, held_out=False)))


def test_a_model_that_came_back_as_it_was_is_called_so_first() -> None:
    assert str(guard_summary(record(0.0))).startswith("Not purified.")
    assert not_purified(record(0.0))
    assert not not_purified(record(1.5))


def test_other_methods_have_no_guard() -> None:
    assert guard_summary({"guarded": None}) is None
    assert guard_summary({}) is None
    assert guard_summary({"guarded": {"points": "x", "chosen": []}}) is None
    assert not not_purified({})
