"""From a suite to its cells: names become settings, by the recipes of its scale."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TypeVar

from neural_polarizer.attacks import Attack, attack_class
from neural_polarizer.attacks.recipes import recipe
from neural_polarizer.bench.cells import Cell, GivenCell, LemmaCell, Planned, PurificationCell, VictimCell
from neural_polarizer.bench.given import GivenVictim
from neural_polarizer.bench.suite import AXES, BenchScale, Suite
from neural_polarizer.data.poison import LabelRule
from neural_polarizer.defenses import Defense
from neural_polarizer.defenses.npd.presets import KNOWS_TARGET, VARIANTS, Preset, Target
from neural_polarizer.defenses.recipes import make_defense, with_options, with_precision
from neural_polarizer.errors import BadInputError, NeuralPolarizerError
from neural_polarizer.models.normalize import PROFILES
from neural_polarizer.report.bench.names import UNDEFENDED
from neural_polarizer.report.bench.results import Label
from neural_polarizer.runs.attack import Victim
from neural_polarizer.scales import Scale, VictimScale
from neural_polarizer.settings import changed
from neural_polarizer.train.schedule import AdversarialTraining

RULES: Mapping[str, LabelRule] = {"-a2a": "all-to-all", "-source": "source-specific", "-multi": "multi-target"}
"""Label rules by the ending of an attack's name."""
VICTIM_AXES = ("data", "model", "attack", "poison_rate", "adaptive", "victim_seed", "victim", "init")
CLEAN = "clean"
"""What the axis "attack" says of a given victim without a trigger."""
DEFENSE_AXES = ("defense", "variant", "site")
SMOKE_DATA = "digits"
SMOKE_CLEAN = 50
FEWER_IMAGES = 100
SMOKE_VICTIMS: Mapping[str, tuple[int, int]] = {
    "preactresnet18": (4, 1000),
    "vgg19": (4, 1000),
    "vgg19_bn": (4, 1000),
    "densenet161": (6, FEWER_IMAGES),
    "inception_v3": (2, FEWER_IMAGES),
}
"""Widths, and numbers of training images, of victims from which no result is to be believed."""

Method = TypeVar("Method", Attack, Defense)


def planned(suite: Suite, scale: BenchScale | None = None) -> list[Planned]:
    """All cells of a suite, each once, in its order; a victim stands before those that need it.

    ``scale`` takes the place of the suite's own. A name or a setting in the suite that makes no sense is refused.
    """
    scale = scale or suite.scale
    if suite.kind == "lemma1":
        seeds = [seed for grid in suite.grids for seed in grid.get("seed", (0,))]
        return [Planned(LemmaCell(seed=int(seed)), {"defense": UNDEFENDED, "seed": seed}) for seed in seeds]
    try:
        return _planned(suite, scale)
    except NeuralPolarizerError as error:
        raise BadInputError(f"suite {suite.name}: {error}") from None


def _planned(suite: Suite, scale: BenchScale) -> list[Planned]:
    found: dict[tuple[str, tuple[Label, ...]], Planned] = {}
    victims: dict[tuple[Label, ...], VictimCell | GivenCell] = {}
    defenses: dict[tuple[Label, ...], Defense] = {}  # the same for all seeds, which are most of a large grid
    for labels in map(partial(_of_given, suite), _points(suite)):
        of_victim = tuple(labels[axis] for axis in VICTIM_AXES)
        if of_victim not in victims:
            given = suite.given.get(str(labels["victim"]))
            victims[of_victim] = _victim(suite, scale, labels) if given is None else GivenCell(given=given)
        victim = victims[of_victim]
        before = {**labels, "defense": UNDEFENDED, "variant": "", "site": "", "seed": labels["victim_seed"]}
        cells: list[tuple[Cell, Mapping[str, Label]]] = [(victim, before)]
        if labels["defense"] != UNDEFENDED:
            of_defense = (*of_victim, *(labels[axis] for axis in DEFENSE_AXES))
            if of_defense not in defenses:
                defenses[of_defense] = _defense(suite, scale, labels, victim)
            n_clean = int(labels["n_clean"])
            purified = PurificationCell(
                victim=victim,
                method=str(labels["defense"]),
                defense=defenses[of_defense],
                n_clean=min(n_clean, SMOKE_CLEAN) if scale == "smoke" else n_clean,
                seed=int(labels["seed"]),
                kind=suite.kind,
            )
            cells.append((purified, labels))
        for cell, own in cells:
            told = {axis: label for axis, label in own.items() if axis not in ("victim", "init") or label}
            found.setdefault((cell.id, tuple(told.values())), Planned(cell, told))
    return list(found.values())


def _points(suite: Suite) -> Iterator[dict[str, Label]]:
    for grid in suite.grids:
        axes = [grid.get(axis, (default,)) for axis, (_, default) in AXES.items()]
        for values in product(*axes):
            yield dict(zip(AXES, values, strict=True))


def _of_given(suite: Suite, labels: Mapping[str, Label]) -> dict[str, Label]:
    """The labels of a point; those of a given victim's data set, network and attack are the manifest's.

    So are data set and network of an implant.
    """
    given, init = suite.given.get(str(labels["victim"])), suite.given.get(str(labels["init"]))
    if given is not None and init is not None:
        raise BadInputError(f"victim {given.name}: is as it is; init {init.name} is for attacks")
    if given is None:
        return dict(labels) if init is None else {**labels, "data": init.data, "model": _network(init)}
    if suite.kind not in ("purification", "reactivation") or (suite.kind == "reactivation" and given.trigger is None):
        raise BadInputError(f"victim {given.name}: {suite.kind} needs a victim that is trained here")
    attack = CLEAN if given.trigger is None else given.trigger.name
    return {**labels, "data": given.data, "model": _network(given), "attack": attack, "poison_rate": 0.0}


def _network(given: GivenVictim) -> str:
    return given.network.rpartition(":")[2]


def _victim(suite: Suite, scale: BenchScale, labels: Mapping[str, Label]) -> VictimCell:
    name, rule = split_rule(str(labels["attack"]))
    init = suite.given.get(str(labels["init"]))
    kind, data = attack_class(name), str(labels["data"]) if scale != "smoke" or init is not None else SMOKE_DATA
    profile = data if data in PROFILES else "none"
    trained: VictimScale = "laptop" if scale == "smoke" else scale
    plan = recipe(kind, scale=trained, profile=profile, implant=init is not None)
    settings = {**plan.settings, **suite.attack_options.get(name, {})}
    spared = bool(settings.pop("spare_triggered", False))
    pgd_steps = int(settings.pop("pgd_steps", plan.pgd_steps))
    eps = float(settings.pop("eps", 8.0))
    hardening = AdversarialTraining(eps=eps / 255, steps=pgd_steps, spare_triggered=spared)
    attack = changed(kind(poison_rate=float(labels["poison_rate"]), label_rule=rule), settings)
    architecture = str(labels["model"])
    own = {} if _recipes(scale) == "paper" and init is None else dict(suite.victims.get(architecture, {}))
    images, width = own.pop("images", None), own.pop("width", None)
    schedule = replace(changed(plan.schedule, own), precision=suite.precision)
    victim = Victim(
        architecture=architecture if init is None else init.network,
        width=plan.width if architecture == "preactresnet18" else width,
        profile=profile if init is None else init.profile,
        schedule=replace(schedule, adversarial=hardening if labels["adaptive"] else None),
        seed=int(labels["victim_seed"]),
    )
    if scale == "smoke":
        attack, (victim, images) = _small(attack), _small_victim(victim)
    return VictimCell(data=data, images=images, attack=attack, victim=victim, init=init)


def _small(method: Method) -> Method:
    """An attack or a defense in a moment; each says itself how."""
    return changed(method, method.smoke)


def _small_victim(victim: Victim) -> tuple[Victim, int]:
    """The victim in a moment, and the number of its training images."""
    hardening = victim.schedule.adversarial
    schedule = replace(victim.schedule, epochs=1, batch_size=32, adversarial=hardening and replace(hardening, steps=1))
    if victim.architecture != "preactresnet18":  # deep networks learn nothing at all in 30 steps
        schedule = replace(schedule, epochs=3, batch_size=16, optimizer="sgd", lr=0.02, weight_decay=5e-4)
    width, images = SMOKE_VICTIMS.get(victim.architecture, (None, FEWER_IMAGES))
    return replace(victim, width=width, schedule=schedule), images


def split_rule(name: str) -> tuple[str, LabelRule]:
    """An attack's own name and its label rule, from a name such as ``blended-a2a``."""
    for ending, rule in RULES.items():
        if name.endswith(ending):
            return name.removesuffix(ending), rule
    return name, "all-to-one"


def _defense(suite: Suite, scale: BenchScale, labels: Mapping[str, Label], victim: VictimCell | GivenCell) -> Defense:
    method = str(labels["defense"])
    variant = dict(suite.variants[str(labels["variant"])])
    name = variant.pop("preset", None) if method in VARIANTS else None
    defense = with_precision(_by_name(method, scale, victim, name), suite.precision)
    if method == "ep":  # as published: it sees poisoned training images
        defense = changed(defense, {"data": "mixture"})
    options = {**suite.defense_options.get(method, {}), **variant}
    defense = changed(defense, options)
    if labels["site"]:
        named = suite.sites.get(str(labels["model"]), {})
        defense = with_options(defense, method, {"site": named.get(str(labels["site"]), str(labels["site"]))})
    return _small(defense) if scale == "smoke" else defense


def _by_name(method: str, scale: BenchScale, victim: VictimCell | GivenCell, name: Preset | None) -> Defense:
    profile = victim.data if victim.data in PROFILES else "none"
    if method not in VARIANTS:
        return make_defense(method, scale=_recipes(scale), profile=profile)
    name = name or ("paper" if _recipes(scale) == "paper" else "shipped")
    return make_defense(method, name=name, profile=profile, target=_target(victim) if method in KNOWS_TARGET else None)


def _target(victim: VictimCell | GivenCell) -> Target:
    """What a method is told that knows the attacker's class; a clean victim has none, and is refused."""
    if isinstance(victim, VictimCell):
        return "next" if victim.attack.label_rule == "all-to-all" else victim.attack.target
    if victim.given.trigger is None:
        raise BadInputError(f"victim {victim.given.name}: is clean and has no target; leave {KNOWS_TARGET} out for it")
    return victim.given.trigger.target


def _recipes(scale: BenchScale) -> Scale:
    return "paper" if scale in ("paper", "short") else "laptop"
