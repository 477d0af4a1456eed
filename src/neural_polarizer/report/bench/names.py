"""How the report of the benchmark names axes, labels and values, and how it writes their numbers."""

from collections.abc import Mapping, Sequence

from neural_polarizer.attacks import ATTACKS
from neural_polarizer.defenses import DEFENSES, title_of
from neural_polarizer.report.bench.results import Label
from neural_polarizer.report.values import visible

UNDEFENDED = "none"
"""What the axis "defense" says of a model that nothing was done to."""
MEAN = "mean"
"""What the axis "attack" says of an average over the attacks."""

RATES = ("acc", "asr", "ra", "der", "acc_lost", "ra5")
"""The values that are fractions in [0, 1] and shown in percent."""

DIRECTIONS: Mapping[str, int] = {"acc": 1, "ra": 1, "der": 1, "asr": -1, "acc_lost": -1, "ra5": -1, "seconds": -1}
"""The values by which defenses compete: 1 where more is better, -1 where less is."""

_AXES = {
    "data": "data set",
    "model": "network",
    "poison_rate": "poisoned",
    "adaptive": "attacker",
    "victim_seed": "victim seed",
    "site": "layer",
    "n_clean": "clean images",
    "init": "planted into",
}
_VALUES = {
    "acc": "ACC",
    "asr": "ASR",
    "ra": "RA",
    "der": "DER",
    "acc_lost": "ACC lost",
    "ra5": "RA5",
    "seconds": "Time",
    "peak_mb": "Memory",
}
_UNITS = {**dict.fromkeys(RATES, "%"), "seconds": "s", "peak_mb": "MB"}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "data": {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "gtsrb": "GTSRB", "tiny_imagenet": "Tiny ImageNet"},
    "model": {
        "preactresnet18": "PreAct-ResNet18",
        "vgg19": "VGG19",
        "vgg19_bn": "VGG19-BN",
        "densenet161": "DenseNet161",
        "inception_v3": "Inception-V3",
    },
    "attack": {**{name: kind.title for name, kind in ATTACKS.items()}, MEAN: "Mean"},
    "defense": {UNDEFENDED: "No defense", **{name: title_of(name) for name in DEFENSES}},
}
_RULES = {"-a2a": "-A2A", "-source": ", one source class", "-multi": ", several targets"}


def axis_text(axis: str) -> str:
    """The name of an axis."""
    return _AXES.get(axis, visible(axis))


def label_text(axis: str, label: Label) -> str:
    """A label as people read it; names that are not ours stay as they are, with hidden characters spelled out."""
    if axis == "adaptive":
        return "adaptive" if label else "plain"
    if axis == "poison_rate" and isinstance(label, int | float):
        return f"{100 * label:g}% poisoned"
    if axis == "n_clean" and isinstance(label, int):
        return f"{label:,} images" if label else "5% of images"
    if axis in ("victim_seed", "seed"):
        return f"{axis_text(axis)} {label}"
    if label == "":
        return "default" if axis in ("variant", "site") else "-"
    name = str(label)
    for ending, text in _RULES.items():
        if axis == "attack" and name.endswith(ending):
            return label_text(axis, name.removesuffix(ending)) + text
    return _NAMES.get(axis, {}).get(name, visible(name))


def labels_text(labels: Mapping[str, Label]) -> dict[str, str]:
    """All labels as people read them; what an undefended model leaves empty is a dash."""
    undefended = labels.get("defense") == UNDEFENDED
    return {axis: "-" if undefended and label == "" else label_text(axis, label) for axis, label in labels.items()}


def text_of(labels: Mapping[str, Label], axes: Sequence[str]) -> str:
    """The labels on some axes in one text."""
    texts = labels_text(labels)
    return ", ".join(texts[axis] for axis in axes if texts.get(axis, "-") != "-")


def value_text(value: str) -> str:
    """The name of a value in the heads of a table."""
    return _VALUES.get(value, visible(value.replace("_", " ")))


def unit_text(value: str) -> str:
    """The unit in which a value is shown; none for values that are not ours."""
    return _UNITS.get(value, "")


def number_text(value: str, amount: float) -> str:
    """A value's number in its unit, with two decimals."""
    if value in RATES:
        return f"{100 * amount:.2f}"
    return f"{amount:.2f}" if value in _UNITS else f"{amount:.4g}"


def signed_text(value: str, change: float) -> str:
    """A difference of a value's numbers in its unit, with its sign."""
    text = number_text(value, change)
    if not text.strip("-0."):
        return text.removeprefix("-")
    return text if change < 0 else f"+{text}"
