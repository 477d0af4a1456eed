"""The settings of the two scales, and how settings are changed by name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from torch import nn

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses import (
    ANP,
    CLP,
    CNPD,
    DEFENSES,
    FST,
    FTSAM,
    IBAU,
    NAD,
    NPD,
    RNP,
    SAU,
    Defense,
    EntropyPruning,
    FinePruning,
    FineTuning,
    NeuralCleanse,
    Outcome,
    Run,
)
from neural_polarizer.defenses.npd.presets import VARIANTS, preset
from neural_polarizer.defenses.recipes import make_defense, with_options, with_precision
from neural_polarizer.errors import BadInputError, WrongUsageError
from neural_polarizer.settings import changed, places, setting_names


def made(method: str, scale: Any = None, profile: str | None = "cifar10") -> Any:
    return make_defense(method, scale=scale, profile=profile)


@pytest.mark.parametrize("profile", ["cifar10", "gtsrb", "tiny_imagenet", None])
def test_paper_values(profile: str | None) -> None:
    """Appendix B: lr .01, batch 256, 100 epochs (GTSRB 50); ANP's threshold .4; the rest BackdoorBench's."""
    epochs = 50 if profile == "gtsrb" else 100
    schedules = [made(name, None, profile).schedule for name in ("ft", "fp", "nc")]
    schedules.append(made("nad", None, profile).student)
    for schedule in schedules:
        assert (schedule.epochs, schedule.batch_size, schedule.lr) == (epochs, 256, 0.01)
        assert (schedule.momentum, schedule.weight_decay, schedule.policy) == (0.9, 5e-4, "cosine")
        assert (schedule.crop_padding, schedule.flip) == (4, profile == "cifar10")
    nad, nc, anp = (made(name, None, profile) for name in ("nad", "nc", "anp"))
    assert (nad.teacher.epochs, nad.teacher.flip, nad.weights) == (10, profile == "cifar10", (500.0, 1000.0, 1000.0))
    assert (nc.images, nc.epochs, nc.batch_size, nc.cost, nc.patience, nc.threshold) == (None, 80, 256, 1e-3, 5, 2.0)
    assert (anp.iterations, anp.batch_size, anp.lr, anp.eps, anp.threshold) == (2000, 256, 0.01, 0.4, 0.4)
    assert (anp.alpha, anp.steps, anp.flip) == (0.2, 1, profile == "cifar10")
    assert made("i-bau", None, profile) == IBAU(rounds=5, batch_size=256, iterations=5, lr=1e-4, portion=0.01)
    assert made("ep", None, profile) == EntropyPruning(data="clean", deviations=3.0, batch_size=256, bin_width=0.1)


@pytest.mark.parametrize("profile", ["cifar10", "cifar100", "gtsrb", "tiny_imagenet", None])
def test_their_authors_values(profile: str | None) -> None:
    """FT-SAM: rho 2, but 8 on GTSRB and Tiny ImageNet. FST: 10 epochs everywhere. The rest is that of the code."""
    flip = profile == "cifar10"
    sam, fst, rnp = (made(name, None, profile) for name in ("ft-sam", "fst", "rnp"))
    assert sam.schedule == made("ft", None, profile).schedule
    assert (sam.rho, sam.smoothing) == (8.0 if profile in ("gtsrb", "tiny_imagenet") else 2.0, 0.1)
    assert fst.alpha == {"gtsrb": 0.1, "cifar100": 0.001, "tiny_imagenet": 0.001}.get(profile or "", 0.2)
    assert (fst.schedule.epochs, fst.schedule.batch_size, fst.schedule.lr) == (10, 128, 0.01)
    assert (fst.schedule.momentum, fst.schedule.weight_decay, fst.schedule.flip) == (0.9, 0.0, flip)
    assert (rnp.images, rnp.forgotten, rnp.weight, rnp.highest, rnp.step) == (500, 0.2, 0.2, 0.9, 0.05)
    assert (rnp.unlearn.epochs, rnp.unlearn.batch_size, rnp.unlearn.lr, rnp.unlearn.flip) == (20, 128, 0.01, flip)
    assert (rnp.recover.epochs, rnp.recover.batch_size, rnp.recover.lr, rnp.recover.flip) == (20, 128, 0.2, flip)
    assert (rnp.unlearn.weight_decay, rnp.recover.weight_decay) == (5e-4, 0.0)
    assert made("clp", None, profile) == CLP(deviations=3.0)
    sau = SAU(rounds=100, batch_size=256, lr=1e-4, radius=0.2, steps=5, step_size=0.2, fooling=0.01, agreement=1.0)
    assert made("sau", None, profile) == sau
    cnpd = vars(made("cnpd", None, profile))
    known = preset("npd-tp", name="paper", profile=profile, target=1)
    assert cnpd == {**vars(known), "target": None, "site": None}


@pytest.mark.parametrize("profile", ["cifar10", "gtsrb"])
def test_laptop_values(profile: str) -> None:
    """The table of docs/research/defenses.md."""
    ft, fp, nad, nc, anp = (made(name, "laptop", profile) for name in ("ft", "fp", "nad", "nc", "anp"))
    assert (ft.schedule.epochs, ft.schedule.batch_size, ft.schedule.lr) == (20, 32, 0.03)
    assert fp.schedule == ft.schedule
    assert (nad.teacher.epochs, nad.teacher.batch_size, nad.teacher.lr) == (5, 32, 0.03)
    assert (nad.student.epochs, nad.student.batch_size, nad.student.lr) == (15, 32, 0.03)
    assert (nc.images, nc.epochs, nc.batch_size, nc.patience) == (500, 30, 50, 2)
    assert (nc.schedule.epochs, nc.schedule.batch_size) == (10, 64)
    assert (anp.iterations, anp.batch_size, anp.lr) == (500, 64, 0.04)
    assert anp.iterations * anp.lr == ANP().iterations * ANP().lr
    assert {defense.flip for defense in (anp, ft.schedule, nad.teacher)} == {profile == "cifar10"}
    assert made("i-bau", "laptop", profile) == IBAU(rounds=3, batch_size=128, lr=1e-3)
    assert made("ep", "laptop", profile) == made("ep", "paper", profile)
    sam, fst, rnp, sau = (made(name, "laptop", profile) for name in ("ft-sam", "fst", "rnp", "sau"))
    assert sam.schedule == ft.schedule
    assert sam.rho == (8.0 if profile == "gtsrb" else 2.0)
    assert (fst.schedule.epochs, fst.schedule.batch_size, fst.schedule.lr) == (10, 32, 0.03)
    assert (rnp.unlearn.epochs, rnp.unlearn.batch_size, rnp.unlearn.lr) == (20, 64, 0.01)
    assert (rnp.recover.epochs, rnp.recover.batch_size, rnp.recover.lr) == (10, 64, 0.005)
    assert sau == SAU(rounds=5, batch_size=128, lr=1e-3)
    assert made("clp", "laptop", profile) == CLP()
    assert vars(made("cnpd", "laptop", profile)) == {**vars(preset("npd-tp", target=1)), "target": None}


def test_every_method_says_what_a_laptop_needs_or_learns_nothing() -> None:
    """EP and CLP only prune; NPD's shipped settings and those of the default method are for a laptop anyway."""
    assert {name for name, kind in DEFENSES.items() if not kind.laptop} == {"ep", "clp", "npd-ls", *VARIANTS}


@dataclass(frozen=True)
class Mine(Defense):
    """A defense of one's own, whose settings depend on the data set and on the scale."""

    laptop: ClassVar[Mapping[str, Any]] = {"passes": 1}
    for_profile: ClassVar[Mapping[str, Mapping[str, Any]]] = {"gtsrb": {"force": 8.0, "passes": 50}}

    force: float = 2.0
    passes: int = 100

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        raise NotImplementedError


def test_the_scale_has_the_last_word_and_the_data_set_the_one_before() -> None:
    path = f"{__name__}:Mine"
    assert made(path) == Mine()
    assert made(path, None, "gtsrb") == Mine(force=8.0, passes=50)
    assert made(path, "laptop", "gtsrb") == Mine(force=8.0, passes=1)


def test_the_scale_and_the_data_set_must_be_known(unchecked: None) -> None:
    with pytest.raises(BadInputError, match="scale cannot be 'laptpo': did you mean 'laptop'"):
        made("ft", "laptpo")
    with pytest.raises(BadInputError, match="profile cannot be 'tiny-imagenet'"):
        made("ft", None, "tiny-imagenet")


def test_settings_are_listed_with_those_inside_them() -> None:
    assert setting_names(FinePruning())[:2] == ["max_drop", "step"]
    assert "schedule.epochs" in setting_names(FinePruning())
    assert "schedule" not in setting_names(FinePruning())
    assert places(NAD(), "epochs") == ["teacher.epochs", "student.epochs"]
    assert places(NeuralCleanse(), "epochs") == ["epochs", "schedule.epochs"]


def test_a_change_leaves_the_rest_and_the_original_alone() -> None:
    base = NAD()
    found = changed(base, {"teacher.epochs": 3, "teacher.lr": 1, "weights": [1, 2]})
    assert (found.teacher.epochs, found.teacher.lr, found.weights) == (3, 1, (1, 2))
    assert found.student == base.student
    assert found.teacher.batch_size == base.teacher.batch_size
    assert base == NAD()
    assert changed(base, {}) == base


@dataclass(frozen=True)
class Inner:
    depth: int = 1
    width: int = 2


@dataclass(frozen=True)
class Every:
    """One field of each type that settings have."""

    whole: int = 1
    real: float = 1.0
    switch: bool = True
    word: Literal["a", "b"] = "a"
    maybe: int | Literal["next"] | None = None
    some: tuple[float, ...] = ()
    pair: tuple[int, str] = (1, "x")
    text: str = ""
    inner: Inner = field(default=Inner())
    free: Any = None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("whole", 3), ("real", 2), ("real", 0.5), ("switch", False), ("word", "b"), ("maybe", 3), ("maybe", "next")),
        *(("maybe", None), ("some", [1, 2.5]), ("some", ()), ("pair", (2, "y")), ("text", "z"), ("inner.depth", 2)),
        *(("free", object), ("inner", Inner(5))),
    ],
)
def test_values_of_the_right_type_are_taken(name: str, value: Any) -> None:
    head, _, rest = name.partition(".")
    found = getattr(changed(Every(), {name: value}), head)
    assert (getattr(found, rest) if rest else found) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("whole", 1.5), ("whole", True), ("whole", None), ("real", "1"), ("real", False), ("switch", 1)),
        *(("word", "c"), ("maybe", "prev"), ("maybe", 1.5), ("some", ("x",)), ("some", 1), ("pair", (1,))),
        *(("pair", (1, 2)), ("text", 3), ("inner.depth", "deep"), ("inner", 5), ("inner", {"depth": "deep"})),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: Any) -> None:
    with pytest.raises(BadInputError, match=r"cannot be .*: expected"):
        changed(Every(), {name: value})


def test_the_type_that_is_expected_is_told_in_plain_words() -> None:
    with pytest.raises(BadInputError, match=r"target cannot be 1\.5: expected int or 'next' or None$"):
        changed(NPD(), {"target": 1.5})


def test_a_table_of_settings_changes_those_that_it_names() -> None:
    assert changed(Every(), {"inner.width": 7, "inner": {"depth": 5}}).inner == Inner(depth=5, width=7)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("hole", "a setting of Every cannot be 'hole': did you mean 'whole'"),
        ("inner.dept", "a setting of Inner cannot be 'dept': did you mean 'depth'"),
        ("whole.depth", "whole of Every has no settings of its own"),
    ],
)
def test_settings_that_do_not_exist_are_refused(name: str, match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        changed(Every(), {name: 1})


def test_precision_goes_wherever_there_is_a_choice() -> None:
    for defense in (FineTuning(), NAD(), NeuralCleanse(), ANP(), FTSAM(), FST(), RNP(), SAU(), CNPD(), preset("npd")):
        assert defense.precision_used == "fp32"
        assert with_precision(defense, "bf16").precision_used == "bf16"
    for fixed in (IBAU(), EntropyPruning(), CLP()):
        assert with_precision(fixed, "bf16") == fixed
        assert fixed.precision_used == "fp32"
    assert changed(NeuralCleanse(), {"precision": "bf16"}).precision_used == "mixed"


def test_options_that_were_not_given_change_nothing() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("site", "radius", "epochs", "batch-size", "precision", "mixture"))
    assert with_options(FineTuning(), "ft", nothing) == FineTuning()
    found: Any = with_options(preset("npd"), "npd", {**nothing, "radius": (1.0,), "epochs": 3, "site": "after:x"})
    assert (found.radii, found.epochs, found.site) == ((1.0,), 3, "after:x")
    with pytest.raises(WrongUsageError, match=r"radius makes no sense for ft, whose settings are: schedule\.epochs"):
        with_options(FineTuning(), "ft", {"radius": (math.inf,)})
