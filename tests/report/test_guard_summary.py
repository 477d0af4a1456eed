"""The guard's sentence and its curves."""

from typing import Any

from neural_polarizer.report.charts import LEFT, RIGHT
from neural_polarizer.report.run.guard import dial_charts, guard_summary, not_purified

CURVE = [
    {"dial": 0.0, "acc": 0.9, "drop": 0.0, "least_drop": 0.0, "stand_ins": 0.7, "suspect": 0.61},
    {"dial": 1.5, "acc": 0.9, "drop": 0.0081, "least_drop": 0.003, "stand_ins": 0.4, "suspect": 0.073},
]


def record(chosen: float) -> dict[str, Any]:
    guarded = {"points": CURVE, "chosen": chosen, "judges": 1250, "budget": 0.006}
    return {"guarded": guarded}


def test_it_tells_strength_cost_and_what_is_left() -> None:
    assert guard_summary(record(1.5)) == (
        "The layer works at 1.5 times its learned strength. It is expected to cost 0.8 points of accuracy, measured on "
        "1,250 clean images, each with a layer that has not learned from it. The budget is 0.6; where a backdoor is "
        "seen, an excess within the error is allowed. Held-out stand-ins lead 7.3% of the images to the most "
        "suspicious class, against 61.0% without the layer."
    )


def test_a_little_gain_is_no_loss_below_zero() -> None:
    gained = [CURVE[0], CURVE[1] | {"drop": -0.0002}]
    told = guard_summary({"guarded": record(1.5)["guarded"] | {"points": gained}})
    assert "expected to cost 0.0 points" in str(told)


def test_a_model_that_came_back_as_it_was_is_called_so_first() -> None:
    assert str(guard_summary(record(0.0))).startswith("Not purified.")
    assert not_purified(record(0.0))
    assert not not_purified(record(1.5))


def test_other_methods_have_no_guard() -> None:
    assert guard_summary({"guarded": None}) is None
    assert dial_charts({"guarded": None}) == []
    assert not not_purified({"guarded": None})


def test_the_dial_is_drawn_with_the_chosen_point_marked() -> None:
    accuracy, stand_ins = dial_charts(record(1.5))
    assert accuracy.title == "Accuracy on clean images"
    assert [(line.label, line.latest) for line in accuracy.lines] == [
        ("counted", "90.0%"),
        ("expected, less affected by chance", "89.2%"),
        ("the least that is allowed", "89.4%"),
    ]
    assert [(line.label, line.latest) for line in stand_ins.lines] == [
        ("for the most suspicious class", "7.3%"),
        ("for all classes, by the evidence", "40.0%"),
    ]
    assert accuracy.mark is not None
    assert accuracy.mark.at == RIGHT
    assert stand_ins.lines[0].runs[0][0][0] == LEFT


def test_a_dial_of_one_point_is_not_drawn() -> None:
    assert dial_charts({"guarded": record(0.0)["guarded"] | {"points": CURVE[:1]}}) == []
