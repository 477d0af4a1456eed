"""What every attack owes; a new one is found here by itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_attacks import SCHEDULE, TEST, TRAIN, learned, quick_attack, untrained, workshop
from safetensors.torch import load_file, save_file
from torch import Tensor

from neural_polarizer.attacks import ATTACKS, Attack, LearnedTrigger, attack_class, base, name_of
from neural_polarizer.attacks.base import Category, Planted
from neural_polarizer.attacks.recipes import recipe
from neural_polarizer.data.poison import Trigger
from neural_polarizer.errors import BadInputError
from neural_polarizer.train.fit import fit
from neural_polarizer.train.schedule import AdversarialTraining, Schedule
from run_files import states_equal

ALL = pytest.mark.parametrize("name", ATTACKS)
IN_BATCHES = ("bpp", "discreet", "evasive", "grond", "input-aware", "wanet")
PLANTED_IN_THE_DATA = tuple(name for name in ATTACKS if name not in IN_BATCHES)
CLEAN_LABEL = tuple(name for name, kind in ATTACKS.items() if kind.clean_label)


def _gap(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


def _planted(attack: Attack, seed: int = 0, schedule: Schedule = SCHEDULE) -> tuple[dict[str, Tensor], Planted]:
    model = untrained()
    planted = attack.plant(model, TRAIN, learned(attack, seed=seed), workshop(seed=seed, schedule=schedule))
    assert not model.training
    return model.state_dict(), planted


@pytest.mark.long
@ALL
def test_stamping_is_pure_and_treats_each_image_alone(name: str) -> None:
    attack, images = quick_attack(name), TEST.images
    state = learned(attack)
    before, kept = images.clone(), {key: value.clone() for key, value in state.items()}
    chance = torch.get_rng_state()
    stamped = attack.stamp(images, state)
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.equal(images, before)
    assert states_equal(dict(state), kept)
    assert torch.equal(stamped, attack.stamp(images, state))
    # Networks may round differently for another batch size, by a grey level at most.
    assert _gap(stamped[2:3], attack.stamp(images[2:3], state)) <= 1
    assert (stamped.dtype, stamped.shape) == (torch.uint8, images.shape)
    assert not torch.equal(stamped, images)
    assert attack.stamp(images[:0], state).shape == (0, 3, 32, 32)


@pytest.mark.long
@ALL
def test_what_a_trigger_learned_survives_a_file(name: str, tmp_path: Path) -> None:
    attack = quick_attack(name)
    state = learned(attack)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "trigger.safetensors")
    again = load_file(tmp_path / "trigger.safetensors")
    assert torch.equal(attack.stamp(TEST.images, again), attack.stamp(TEST.images, state))


@ALL
def test_learning_depends_on_the_seed_alone(name: str) -> None:
    attack = quick_attack(name)
    workshop().clean_model()  # made once for all tests, with weights of the global generator
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = learned(attack)
    assert torch.equal(torch.get_rng_state(), before)
    assert states_equal(dict(one), dict(learned(attack)))
    if name in ("input-aware", "ssba", "wanet"):
        assert not states_equal(dict(one), dict(learned(attack, seed=1)))


@ALL
def test_labels_follow_the_rule(name: str) -> None:
    labels = torch.arange(5)
    to_one = quick_attack(name, target=3)
    assert isinstance(LearnedTrigger(to_one, {}), Trigger)
    assert to_one.relabel(labels, 5).tolist() == [3] * 5
    if name in CLEAN_LABEL:
        with pytest.raises(BadInputError, match="leaves all labels true, which the label rule all-to-all does not"):
            quick_attack(name, label_rule="all-to-all")
    else:
        assert quick_attack(name, label_rule="all-to-all").relabel(labels, 5).tolist() == [1, 2, 3, 4, 0]


@pytest.mark.parametrize("name", CLEAN_LABEL)
def test_with_true_labels_only_the_target_class_is_poisoned(name: str) -> None:
    attack = quick_attack(name, target=1, poison_rate=0.125)
    poisoned, chosen, covers = attack.poisoned(TRAIN, learned(attack), seed=0)
    assert attack.poisons_only == 1
    assert len(chosen) == 6  # of 48 images, 12 of them of class 1
    assert len(covers) == 0
    assert torch.equal(poisoned.labels, TRAIN.labels)
    changed = (poisoned.images != TRAIN.images).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == chosen.tolist()
    assert set(TRAIN.labels[chosen].tolist()) == {1}
    everything = replace(attack, poison_rate=0.5)
    assert len(everything.poisoned(TRAIN, learned(everything), seed=0).chosen) == int(12 * attack.most)
    with pytest.raises(BadInputError, match="toy: no image of the target class 1 to put the trigger on"):
        attack.check(TRAIN.select(TRAIN.labels != 1))


@pytest.mark.long
@ALL
@pytest.mark.parametrize("rule", ["all-to-one", "all-to-all"])
def test_planting_is_repeatable_and_gives_a_trigger_for_the_test_set(name: str, rule: str) -> None:
    if rule == "all-to-all" and name in CLEAN_LABEL:
        pytest.skip("labels stay true")
    attack = quick_attack(name, target=1, poison_rate=0.25, label_rule=rule)
    first, planted = _planted(attack)
    again, _ = _planted(attack)
    assert states_equal(first, again)
    assert planted.n_poisoned == int(12 * (attack.most if attack.clean_label else 1))
    triggered = attack.triggered(TEST, planted.state)
    assert len(triggered) == (12 if rule == "all-to-all" else 9)
    assert bool((triggered.images.labels != triggered.true_labels).all())
    other, _ = _planted(attack, seed=1)
    assert not states_equal(first, other)


@pytest.mark.long
@pytest.mark.parametrize("name", PLANTED_IN_THE_DATA)
def test_planting_is_training_on_the_poisoned_set(name: str) -> None:
    attack = quick_attack(name, target=1, poison_rate=0.25)
    state, _ = _planted(attack, seed=3)
    poisoned, chosen, _ = attack.poisoned(TRAIN, learned(attack, seed=3), seed=3)
    assert len(chosen) == 12
    plain = untrained()
    fit(plain, poisoned, SCHEDULE, seed=3)
    assert states_equal(state, plain.state_dict())


@pytest.mark.long
@ALL
def test_an_interrupted_planting_ends_like_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    class KillError(Exception):
        pass

    def kill(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("train", 4):
            raise KillError

    attack = quick_attack(name, poison_rate=0.25)
    whole, planted = _planted(attack)
    model, state = untrained(), learned(attack)
    with pytest.raises(KillError):
        attack.plant(model, TRAIN, state, replace(workshop(checkpoint=tmp_path / "state"), progress=kill))
    resumed = untrained()
    later = attack.plant(resumed, TRAIN, state, workshop(checkpoint=tmp_path / "state"))
    assert states_equal(resumed.state_dict(), whole)
    assert states_equal(dict(later.state), dict(planted.state))


@pytest.mark.long
@pytest.mark.parametrize("name", ["blended", "input-aware", "wanet"])
def test_the_adaptive_attacker_trains_on_other_images(name: str) -> None:
    attack = quick_attack(name, poison_rate=0.25)
    adversarial = replace(SCHEDULE, adversarial=AdversarialTraining(eps=0.1, steps=2))
    plain, _ = _planted(attack)
    hard, _ = _planted(attack, schedule=adversarial)
    again, _ = _planted(attack, schedule=adversarial)
    assert states_equal(hard, again)
    assert not states_equal(hard, plain)


def test_planting_marks_the_images_with_a_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(base, "fit", lambda model, data, schedule, **options: given.update(options, data=data))
    attack = quick_attack("blended", poison_rate=0.25)
    attack.plant(untrained(), TRAIN, learned(attack), workshop())
    changed = (given["data"].images != TRAIN.images).flatten(1).any(dim=1)
    assert torch.equal(given["triggered"], changed)
    assert int(changed.sum()) == round(0.25 * len(TRAIN))


@ALL
def test_every_attack_has_a_name_a_category_and_three_recipes(name: str) -> None:
    attack = quick_attack(name)
    assert name_of(type(attack)) == name
    assert isinstance(attack.category, Category)
    for scale in ("paper", "short", "laptop"):
        plan = recipe(type(attack), scale=scale, profile="gtsrb")
        type(attack)(**plan.settings)
        assert not plan.schedule.flip
    assert recipe(type(attack), profile="gtsrb").schedule.epochs == 50
    assert recipe(type(attack), profile="cifar10").schedule.flip


def test_an_attack_of_ones_own_is_found_by_its_path() -> None:
    assert attack_class("neural_polarizer.attacks.wanet:WaNet") is ATTACKS["wanet"]
    for name, match in (
        ("badnet", "unknown attack 'badnet': choose one of badnets, .*, or give MODULE:CLASS"),
        ("no_such_module:Ghost", "cannot load the attack 'no_such_module:Ghost': No module named"),
        ("./ghosts.py:Ghost", r"'./ghosts.py:Ghost': give MODULE:CLASS, .*, not a file \(such as ghosts:Ghost\)"),
        ("toys.py:Ghost", r"give MODULE:CLASS, .* \(such as toys:Ghost\)"),
        (".x:Y", r"give MODULE:CLASS, .* \(such as x:Y\)"),
        ("neural_polarizer.attacks.wanet:Ghost", "has no attribute 'Ghost'"),
        ("torch:Tensor", "'torch:Tensor' is not a subclass of neural_polarizer.attacks.Attack"),
    ):
        with pytest.raises(BadInputError, match=match):
            attack_class(name)
