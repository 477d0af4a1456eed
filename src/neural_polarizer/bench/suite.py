"""A suite: the TOML file that names the cells of a table or figure."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

from neural_polarizer.bench.given import GivenVictim, check_keys, read_manifest, table_at
from neural_polarizer.devices import Precision
from neural_polarizer.errors import BadInputError
from neural_polarizer.report.bench.results import Label, Layout
from neural_polarizer.settings import check_choice

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, from its own package
    import tomli as tomllib

Kind = Literal["purification", "reactivation", "gradcam", "distances", "lemma1"]
BenchScale = Literal["paper", "short", "laptop", "smoke"]
"""The paper's settings; the same but for victims of fewer epochs; minutes a cell on one core; or a moment, on digits,
to see that everything works."""

AXES: Mapping[str, tuple[type, Label]] = {
    "data": (str, "cifar10"),
    "model": (str, "preactresnet18"),
    "attack": (str, "badnets"),
    "poison_rate": (float, 0.1),
    "adaptive": (bool, False),
    "victim_seed": (int, 0),
    "victim": (str, ""),
    "init": (str, ""),
    "defense": (str, "npd"),
    "variant": (str, ""),
    "site": (str, ""),
    "n_clean": (int, 0),
    "seed": (int, 0),
}
"""What a grid can vary, with the type and the value where it says nothing; 0 clean images are 5 % of the training
images, an empty site is the method's own. An attack's name may end in "-a2a", for all-to-all, "-source" for
source-specific or "-multi" for multi-target. A victim is one of the manifest's, which says its data set, network and
trigger; so is an init, a clean one that the attack is planted into."""

_KEYS = ("title", "kind", "paper", "scale", "precision", "grid", "variants", "sites", "victims", "options", "table")
VALUES = (
    *("acc", "asr", "ra", "der", "acc_lost", "ra5", "seconds", "peak_mb"),
    *("distance_targeted", "distance_untargeted", "distance_ratio"),
    *("trigger_area", "cam_in_trigger_before", "cam_in_trigger_after"),
    *("covariance_before", "covariance_after", "accuracy_before", "accuracy_after"),
)
"""What a table can show of a cell's result; the analyses have their own (``analyses``)."""

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The cells of one table or figure, as its file names them."""

    name: str  # the file's name without its ending
    title: str  # a heading
    about: str  # the comment at the head of the file: command, expected time, expected result
    kind: Kind  # what is done to every victim
    paper: str  # name of the paper's table to stand beside ours; "" for none
    scale: BenchScale  # what the settings are for
    precision: Precision  # of training and purification, "bf16" autocast or "fp32"
    grids: tuple[Mapping[str, tuple[Label, ...]], ...]  # each is the product of its axes; the suite is all of them
    variants: Mapping[str, Settings]  # settings of defenses, by the name that the axis "variant" has for them
    sites: Mapping[str, Mapping[str, str]]  # insertion sites by model and by the name that the axis "site" has for them
    # Settings of the schedule by model, and "images" to train on and "width"; at laptop scale.
    victims: Mapping[str, Settings]
    attack_options: Mapping[str, Settings]  # settings of attacks, by name
    defense_options: Mapping[str, Settings]  # settings of defenses, by name
    layout: Layout  # of the table
    given: Mapping[str, GivenVictim]  # victims that are not trained, by the name that the axis "victim" has for them


def suite_names() -> list[str]:
    """The suites that come with the package."""
    folder = files("neural_polarizer.bench") / "suites"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_suite(name: str) -> Suite:
    """The suite called ``name``, of the package or of ``benchmarks/`` here, or the one in the TOML file at that path.

    Where a key or value in it makes no sense, the nearest valid one is named.
    """
    known = suite_names()
    here = [] if name in known else [path for path in sorted(Path("benchmarks").glob("*/*.toml")) if path.stem == name]
    if here or name.endswith(".toml"):
        path = here[0] if here else Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"{name}: the suite cannot be read ({error})") from None
        return parse_suite(text, path.stem, path.parent)
    check_choice("suite", name, known)
    return parse_suite((files("neural_polarizer.bench") / "suites" / f"{name}.toml").read_text(encoding="utf-8"), name)


def parse_suite(text: str, name: str, folder: Path | None = None) -> Suite:
    """The suite that a file's text, TOML, describes; in its ``folder``, its ``manifest`` is looked for."""
    try:
        return _suite(tomllib.loads(text), text, name, folder)
    except (tomllib.TOMLDecodeError, BadInputError) as error:
        raise BadInputError(f"suite {name}: {error}") from None


def _suite(found: dict[str, Any], text: str, name: str, folder: Path | None) -> Suite:
    check_keys("a key", found, (*_KEYS, "manifest"))
    options, table = table_at(found, "options", {}), table_at(found, "table", {})
    check_keys("a key of options", options, ("attack", "defense"))
    check_keys("a key of table", table, ("rows", "columns", "values"))
    kind, scale = found.get("kind", "purification"), found.get("scale", "laptop")
    precision: Any = found.get("precision", "bf16")
    check_choice("kind", kind, get_args(Kind))
    check_choice("scale", scale, get_args(BenchScale))
    check_choice("precision", precision, ("bf16", "fp32"))
    blocks = found.get("grid", [])
    if not isinstance(blocks, list) or not blocks:
        raise BadInputError("it needs at least one [[grid]]")
    variants = {"": {}, **_tables(found, "variants")}
    grids = tuple(_grid(block) for block in blocks)
    given = _manifest(found.get("manifest"), folder)
    for grid in grids:
        for axis in ("victim", "init"):
            for victim in grid.get(axis, ()):
                check_choice(axis, victim, ("", *given))
        for variant in grid.get("variant", ()):
            check_choice("variant", variant, variants)
    for value in (values := _words(table, "values", ("acc", "asr"))):
        check_choice("a value of the table", value, VALUES)
    layout = Layout(_axes(table, "rows", ("attack",)), _axes(table, "columns", ("defense",)), values)
    return Suite(
        name=name,
        title=str(found.get("title", name)),
        about=_head(text),
        kind=kind,
        paper=str(found.get("paper", "")),
        scale=scale,
        precision=precision,
        grids=grids,
        variants=variants,
        sites=_tables(found, "sites"),
        victims=_tables(found, "victims"),
        attack_options=_tables(options, "attack"),
        defense_options=_tables(options, "defense"),
        layout=layout,
        given=given,
    )


def _manifest(named: Any, folder: Path | None) -> dict[str, GivenVictim]:
    """The victims of the manifest beside the suite; none without one."""
    if named is None:
        return {}
    if not isinstance(named, str) or folder is None:
        raise BadInputError(f"manifest must be the name of a file beside the suite, got {named!r}")
    path = folder / named
    try:
        return read_manifest(tomllib.loads(path.read_text(encoding="utf-8")), path.parent)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInputError(f"{path}: the manifest cannot be read ({error})") from None
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from None


def _grid(block: Any) -> Mapping[str, tuple[Label, ...]]:
    if not isinstance(block, dict):
        raise BadInputError("write grids as [[grid]], with the axes below")
    check_keys("an axis", block, AXES)
    found: dict[str, tuple[Label, ...]] = {}
    for axis, given in block.items():
        wanted, _ = AXES[axis]
        values = given if isinstance(given, list) else [given]
        fits = (int, float) if wanted is float else (wanted,)
        if not values or any(
            not isinstance(value, fits) or (wanted is not bool and isinstance(value, bool)) for value in values
        ):
            raise BadInputError(f"{axis} must be one or more of {wanted.__name__}, got {given!r}")
        found[axis] = tuple(wanted(value) for value in values)
    return found


def _tables(found: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    value = table_at(found, key, {})
    return {name: table_at(value, name) for name in value}


def _words(table: Mapping[str, Any], key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    value = table.get(key, list(default))
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise BadInputError(f"{key} of table must be a list of words, got {value!r}")
    return tuple(value)


def _axes(table: Mapping[str, Any], key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    words = _words(table, key, default)
    for word in words:
        check_choice(f"one of the {key}", word, AXES)
    return words


def _head(text: str) -> str:
    """The comment at the head of a file."""
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in comment)
