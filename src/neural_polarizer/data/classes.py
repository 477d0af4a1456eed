"""Class names: which number each class of the data has in the model."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neural_polarizer.errors import BadInputError, listing, shown

MAX_CLASSES = 1_000_000  # of a source without class names, where a stray label would stand for a class count
_NUMBERED = re.compile(r"([^0-9]{0,40})([0-9]{1,9})(?!\.0*[1-9])(?:[^0-9].*)?")  # 1.5 is no class
_AT_THE_END = re.compile(r".*?([0-9]{1,9})[^0-9A-Za-z]?")
_PLACEHOLDER = re.compile(r"(?:LABEL_|class[ _]?)?(\d{1,9})", re.IGNORECASE)


@dataclass(frozen=True)
class ClassNames:
    """The names of the model's classes, by class number."""

    names: tuple[str, ...]  # one a class; where ``binding``, empty text for a class that was not named
    said_by: str = "the model"  # who says so, for messages
    # The user says so, and then data of other names are refused. Names that a model came with are only applied where
    # the data have the same ones.
    binding: bool = False
    some: bool = False  # whether their numbers were said, too, so that other classes may have no name


@dataclass(frozen=True)
class Numbered:
    """Labels as the model counts them, the names of all classes, and remarks on how the numbers were found."""

    labels: np.ndarray
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    own: tuple[str, ...] = ()  # what the data call the classes, where that is something else


def numbered(
    labels: np.ndarray,
    names: tuple[str, ...] | None,
    *,
    in_order_of_names: bool = False,
    known: ClassNames | None,
    num_classes: int | None,
    source: str,
    beside: ClassNames | None = None,
) -> Numbered:
    """Number the classes of the data as the model does.

    Names on both sides are mapped by name. Folders and labels in words whose names are or have whole numbers are those
    class numbers. Else the order of the data's own names counts, and their count must be the model's.

    ``labels`` are int64 ``(n,)``, places in the data's ``names`` if there are any, or texts ``(n,)``. Those of folders
    only follow from sorting the names (``in_order_of_names``). ``known`` names the model's classes, which are K; where
    nobody does, ``beside`` counts, which came with the data, if it fits them.

    Raises:
        BadInputError: it cannot be told which class is which, or a label is out of range.
    """
    spoken = labels.dtype.kind == "U"
    if spoken:
        words, labels = np.unique(labels, return_inverse=True)
        names = tuple(map(shown, words))
        if len(names) > MAX_CLASSES:
            raise BadInputError(f"{source}: has more than {MAX_CLASSES:,} different labels")
    labels = labels.astype(np.int64)
    _check_range(labels, len(names) if names is not None else num_classes, source)
    if known is not None and not known.binding and _only_numbers(known.names):
        known = None  # it tells nothing
    if names is None:
        return _by_value(labels, known, num_classes, source)
    data = _Named(labels, names, source, in_order_of_names or spoken, spoken)
    if known is None and beside is not None:
        return data.as_beside(beside, num_classes)
    return data.by_own_names(num_classes) if known is None else data.as_known(known, _all_of(known, num_classes))


def _by_value(labels: np.ndarray, known: ClassNames | None, num_classes: int | None, source: str) -> Numbered:
    """Labels without names, which are class numbers unless the user says which number is which."""
    count = num_classes if num_classes is not None else int(labels.max()) + 1
    classes = tuple(map(str, range(count))) if known is None else _all_of(known, num_classes)
    if known is not None and labels.min() == 0 and labels.max() >= len(classes):
        raise BadInputError(
            f"{known.said_by}: names {len(classes)} classes, but {source} has the label {labels.max()}; name all "
            "classes of the model, in its order"
        )
    _check_range(labels, len(classes), source)
    if known is not None and known.binding and _is_order(classes):
        return Numbered(np.argsort([*map(int, classes)])[labels], classes)
    return Numbered(labels, classes, own=tuple(map(str, range(len(classes)))))


def _all_of(known: ClassNames, num_classes: int | None) -> tuple[str, ...]:
    """A name for each of the model's classes, the number where it has none."""
    count, given = num_classes or len(known.names), len(known.names)
    if given > count or (known.binding and given < count and not known.some):
        some = "all of them, in its order, or some as JSON, {name: number}"
        what = some if given < count else "these alone, in its order"
        counted = "" if known.names[0] else "; numbers count from 0"
        raise BadInputError(
            f"{known.said_by}: names {given} classes ({listing([*filter(None, known.names)])}), but the model has "
            f"{count}; name {what}{counted}"
        )
    return tuple(name or str(i) for i, name in enumerate((*known.names, *[""] * (count - given))))


@dataclass(frozen=True)
class _Named:
    """Data whose classes have names. All ways to number these refuse what cannot be told."""

    labels: np.ndarray  # int64, places in ``names``
    names: tuple[str, ...]
    source: str
    in_order: bool  # whether the labels only follow from sorting the names, so that these may be class numbers
    spoken: bool  # whether the labels themselves were names

    def by_own_names(self, num_classes: int | None) -> Numbered:
        """In the order of the data's own names, or by their numbers; nothing is known of the model's names."""
        names = self.names
        guessed = self.spoken and num_classes is None  # few words do not tell K, so not whether they count from 1
        values = _numbers_in(names, MAX_CLASSES if guessed else num_classes) if self.in_order else None
        if values is not None:
            return self._by_number(values, 1 + max(values) if guessed else num_classes)
        if self.spoken:
            raise BadInputError(
                f"{self.source}: its labels are names ({listing(names)}), but nothing says which number each class has "
                "in the model; give --classes FILE with the names in the model's order (Python: classes=)"
            )
        if num_classes is None or len(names) == num_classes:
            as_text = _all_numbers(names) and [*names] != sorted(names, key=int)
            note = (
                "the classes are numbered, but count in the order of text, which puts 10 before 2; --classes FILE says"
            )
            return Numbered(self.labels, names, (f"{note} another order",) if as_text else ())
        if len(names) < num_classes and all(name.isdecimal() and int(name) == i for i, name in enumerate(names)):
            return Numbered(self.labels, (*names, *map(str, range(len(names), num_classes))))
        raise self._count_error(num_classes)

    def as_beside(self, beside: ClassNames, num_classes: int | None) -> Numbered:
        """By the names in a file beside the data, unless it does not fit them."""
        try:
            return self.as_known(beside, _all_of(replace(beside, some=False), num_classes))
        except BadInputError:
            found = self.by_own_names(num_classes)
        note = f"{beside.said_by} names other classes, so it was not used; --classes FILE says which is which"
        return replace(found, notes=(*found.notes, note))

    def as_known(self, known: ClassNames, full: tuple[str, ...]) -> Numbered:
        """By the names of the model's classes, of which ``full`` has one for each."""
        values = _numbers_in(self.names, len(full)) if self.in_order else None
        numbers = self.in_order and _all_numbers(self.names)
        must = (self.spoken and values is None) or (known.binding and not numbers)
        mapped = self._by_name(known, full, must=must)
        if mapped is not None:
            return mapped
        if values is not None:
            found = self._by_number(values, len(full))
            return replace(found, classes=full, own=found.classes)
        if len(self.names) == len(full):
            note = (
                f"the data's class names ({listing(self.names)}) are not the model's ({listing(full)}), so they were "
                "taken in their order; --classes FILE says another"
            )
            return Numbered(self.labels, full, () if _only_numbers(self.names) else (note,), own=self.names)
        raise self._count_error(len(full))

    def _by_name(self, known: ClassNames, full: tuple[str, ...], *, must: bool) -> Numbered | None:
        """By the names that both sides have; None where none is the model's, which is refused if they ``must`` be."""
        names, places = self.names, list[int | None]()
        for alike in (str, _folded, _valued):
            there: dict[Any, list[int]] = {}
            for place, name in enumerate(known.names):
                there.setdefault(alike(name), []).append(place)
            hits = [there.get(alike(name), []) if name else [] for name in names]
            places = [hit[0] if len(hit) == 1 else None for hit in hits]
            if None not in places and len(set(places)) == len(places):
                target = np.array(places, dtype=np.int64)
                return Numbered(target[self.labels], full, _mapping_note(names, target.tolist(), known, full))
        missing = [name for name, place in zip(names, places, strict=True) if place is None]
        in_place = len(names) == len(full) and all(place in (None, i) for i, place in enumerate(places))
        if must or (len(missing) < len(names) and not in_place):
            raise BadInputError(
                f"{self.source}: its class{'es' if len(missing) > 1 else ''} {listing(missing or names)} cannot be "
                f"found among those of {known.said_by} ({listing(full)}); give --classes FILE with the data's names in "
                "its order"
            )
        return None

    def _by_number(self, values: list[int], num_classes: int | None) -> Numbered:
        """By the numbers in the names: those are the class numbers, or at least their order."""
        names = self.names
        if len(set(values)) < len(values):
            raise BadInputError(f"{self.source}: two class folders are the same number ({listing(names)}); rename one")
        order = np.argsort(values)
        ranked = replace(self, labels=np.argsort(order)[self.labels], names=tuple(names[i] for i in order))
        notes = []
        if ranked.names != names:
            notes.append(
                "the classes are numbered, so they were ordered by value, and not as text, which puts 10 before 2; "
                "--classes FILE says another order"
            )
        if num_classes is None or len(names) == num_classes:
            odd = next((i for i, value in enumerate(sorted(values)) if value != i), None)
            if odd is not None:
                why = f"are numbered from {min(values)}" if odd == 0 else "are not numbered without gaps"
                notes.append(f"the classes {why}, so {ranked.names[odd]} is class {odd}")
            return Numbered(ranked.labels, ranked.names, tuple(notes))
        if len(names) < num_classes and max(values) < num_classes:
            found = f"the data have {len(names)} of {num_classes} classes, those of the numbers in"
            own = dict(zip(values, names, strict=True))
            classes = tuple(own.get(i, str(i)) for i in range(num_classes))
            target = np.array(values, dtype=np.int64)
            return Numbered(target[self.labels], classes, (*notes, f"{found} {listing(ranked.names)}"))
        raise ranked._count_error(num_classes)

    def _count_error(self, num_classes: int) -> BadInputError:
        used = set(self.labels.tolist())
        empty = [name for i, name in enumerate(self.names) if i not in used]
        return BadInputError(
            f"{self.source}: has {len(self.names)} classes, but {num_classes} are expected: it has "
            f"{listing(self.names)}{f' (without images: {listing(empty)})' if empty else ''}; where only some of the "
            "model's classes have images, give --classes FILE with the names of all in the model's order"
        )


def class_names(found: ClassNames | Sequence[str] | Mapping[Any, Any], *, said_by: str) -> ClassNames:
    """What a user says of the classes: a list of names, {name: number} or {number: name}.

    Raises:
        BadInputError: it has another form, or a name or number is there twice.
    """
    form = "one name a line, or JSON: a list of names, {name: number} or {number: name}"
    if isinstance(found, ClassNames):
        return found
    found = found.tolist() if isinstance(found, np.ndarray) else found
    if isinstance(found, Mapping):
        found = {key: value.item() if isinstance(value, np.integer) else value for key, value in found.items()}
        counted = all(type(value) is int for value in found.values())
        pairs = [(value, key) if counted else (key, value) for key, value in found.items()]
        pairs = [(int(n) if isinstance(n, str) and n.isdecimal() else n, name) for n, name in pairs]
    elif isinstance(found, (list, tuple)):
        pairs = list(enumerate(found))
    else:
        raise BadInputError(f"{said_by}: expected {form}")
    pairs = [(n, name[0] if isinstance(name, list) and name else name) for n, name in pairs]  # ImageNet's [id, name]
    if not pairs or not all(type(n) is int and 0 <= n < MAX_CLASSES and isinstance(name, str) for n, name in pairs):
        raise BadInputError(f"{said_by}: expected {form}")
    numbers, texts = [n for n, _ in pairs], [shown(name.strip()) for _, name in pairs]
    for what, items in (("number", numbers), ("name", texts)):
        twice = next((item for item, count in Counter(items).items() if count > 1), None)
        if twice is not None:
            raise BadInputError(f"{said_by}: the {what} {twice!r} is there twice")
    names = [""] * (max(numbers) + 1)
    for n, text in zip(numbers, texts, strict=True):
        names[n] = text
    return ClassNames(tuple(names), said_by=said_by, binding=True, some=isinstance(found, Mapping))


def _mapping_note(
    names: tuple[str, ...], places: list[int], known: ClassNames, full: tuple[str, ...]
) -> tuple[str, ...]:
    if places == list(range(len(full))):
        return ()
    moved = [(name, i, place) for i, (name, place) in enumerate(zip(names, places, strict=True)) if i != place]
    note = f"classes were matched by name with those of {known.said_by}"
    if moved:
        name, here, place = moved[0]
        note += f": {name} is class {place} there, not {here}"
    if len(names) < len(full):
        note += f"; the data have {len(names)} of its {len(full)} classes"
    return (note,)


def _check_range(labels: np.ndarray, count: int | None, source: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    most = min(MAX_CLASSES, max(0, high) + 1 if count is None else count)
    if low < 0 or high >= most:
        counted = "; they seem to be counted from 1: subtract 1" if (low, high) == (1, most) else ""
        raise BadInputError(f"{source}: labels must lie in 0..{most - 1}, found {low}..{high}{counted}")


def _is_order(names: Sequence[str]) -> bool:
    """Whether names are the numbers from 0 on in some order: each is what the data call the class of that place."""
    return _all_numbers(names) and {*map(int, names)} == {*range(len(names))}


def _all_numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() and len(name) < 19 for name in names)


def _numbers_in(names: Sequence[str], count: int | None) -> list[int] | None:
    """The numbers that classes are called by, where those can be class numbers.

    They may stand in front or behind the same beginning, as in 3_cat or class_3; at the end of other names, as in
    cat_3, only if all of them are there.
    """
    if _all_numbers(names):
        return [int(name) for name in names]
    count = count or len(names)
    found = [_NUMBERED.fullmatch(name) for name in names]
    values = {int(each[2]) for each in found if each}
    alike = len({each[1] for each in found if each}) == 1 and len(values) == len(names)
    if alike and (values == set(range(1, 1 + count)) or max(values) < count):
        return [int(each[2]) for each in found if each]
    ends = [int(each[1]) for each in map(_AT_THE_END.fullmatch, names) if each]
    complete = len(ends) == len(names) and sorted(ends) in (list(range(count)), list(range(1, 1 + count)))
    return ends if complete else None


def _only_numbers(names: Sequence[str]) -> bool:
    """Whether names say no more than a number each, as 3, 00003 or LABEL_3 do, in their order."""
    return all((found := _PLACEHOLDER.fullmatch(name)) and int(found[1]) == i for i, name in enumerate(names))


def _folded(name: str) -> str:
    composed = unicodedata.normalize("NFKC", name.casefold())  # macOS takes letters apart
    return re.sub(r"[\W_]+", " ", composed).strip()


def _valued(name: str) -> str | int:
    return int(name) if name.isdecimal() else name
