"""Where in a network a polarizer can go: places that nothing bypasses, of features whose channels are known."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from neural_polarizer.errors import BadInputError
from neural_polarizer.layer.features import Features, features_of
from neural_polarizer.layer.surgery import Site, full_name
from neural_polarizer.models.normalize import bare

Node = Any
"""A node of the graph that autograd keeps."""

_PASSING_ON = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.Dropout,
    nn.Flatten,
    nn.Identity,
)
"""What only passes values on, or fewer of them: nobody names a place after these."""


LEFT_BEHIND, MOST_BEHIND = 0.05, 0.5
"""The shares of the operations that an automatic site leaves behind the layer (docs/research/architectures.md)."""


@dataclass(frozen=True)
class Candidate:
    """A place for the polarizer."""

    site: Site  # its name; of several names for one place, the shortest
    features: Features  # what the layer would read there
    behind: float  # the share of the network's floating point operations that come after it, from 0 to 1
    bypassed: bool  # whether some path from the pixels to the logits leads around it


def features_at(model: nn.Module, site: Site, pixels: Float[Tensor, "n c h w"]) -> Features:
    """What a polarizer at ``site`` would read, found by one forward pass in evaluation mode.

    The site must run once, lie in front of the head, and have features that a polarizer fits.
    """
    full_name(model, site)  # refuses an unknown one
    passed = _Pass(model, pixels)
    runs = passed.runs[site.name]
    if runs != 1:
        raise BadInputError(f"site {str(site)!r}: runs {runs} times in a forward pass; it must run exactly once")
    place = next((place for place in passed.places if place.site == site), None)
    if place is not None and passed.group(place) == passed.group_of_logits >= 0:
        raise BadInputError(f"site {str(site)!r}: these are the logits; choose a place in front of the head")
    features = None if place is None else passed.features(place)
    if features is None:
        what = "no tensor" if place is None else str(tuple(place.value.shape))
        raise BadInputError(
            f"site {str(site)!r}: needs features N x C x H x W, N x H x W x C, N x L x C or N x C, found {what} for "
            f"N = {len(pixels)} images"
        )
    return features


def candidates(model: nn.Module, pixels: Float[Tensor, "n c h w"]) -> list[Candidate]:
    """All places for a polarizer, in the order in which they run.

    A place is *bypassed* if the logits depend on the pixels along some path that does not lead through it; the others
    are the dominators of the logits in the graph of the computation (docs/how-to/choose-site.md). Of several names for
    one place, such as behind a block and in front of the next, one is listed; places with poolings and the like alone
    next to them are left out.

    ``model`` is in evaluation mode and left as it is; ``pixels`` are at least one image, of the size that it is used
    with.
    """
    passed = _Pass(model, pixels)
    through, total = passed.paths()
    groups: dict[tuple[int, bool], list[_Place]] = defaultdict(list)
    for place in passed.places:
        paths = through.get(place.node, 0)
        if paths and passed.runs[place.site.name] == 1 and passed.group(place) != passed.group_of_logits:
            groups[passed.group(place), paths < total].append(place)
    found = []
    for (_, bypassed), places in groups.items():
        named = min(places, key=_clumsiness)
        features = passed.features(named)
        if features is not None and not isinstance(named.module, _PASSING_ON):
            found.append(Candidate(named.site, features, 1 - named.done / max(passed.operations, 1), bypassed))
    return found


@dataclass(frozen=True)
class Choice:
    """The site that a network gets by itself."""

    site: Site  # where
    reason: str  # why there, in one line


def choose_site(found: Sequence[Candidate]) -> Choice:
    """The first place of the last stage that nothing bypasses and that leaves LEFT_BEHIND of the operations behind it.

    A stage is a run of places with equally many positions.  In the last one, as a trigger of any kind has become a
    direction of the features there; at its beginning, as what is behind it can still tell the class once the direction
    is gone (measured in docs/research/architectures.md).  Where the last stage does more than MOST_BEHIND of the
    operations, as in most transformers, it is the last such place.

    Operations on flat features do not count where there are others: the large head of a VGG is no depth. A map of one
    pixel, where a network for large images sees small ones, is taken only where there is no other, and flat features
    only where there is nothing else.
    """
    if not found:
        raise BadInputError(
            "a layer has no place in this network: nothing in it runs exactly once and gives the features of each "
            "image; use a method without a layer, such as ft-sam"
        )
    free = [each for each in found if not each.bypassed]
    flat = min((each.behind for each in found if each.features.layout != "NC"), default=0.0)
    head = flat if flat < 1 else 0.0  # where all operations are on flat features, these count
    behind = {each: max(0.0, each.behind - head) / (1 - head) for each in free}
    deep = [each for each in free if behind[each] >= LEFT_BEHIND]
    wide = [each for each in deep if each.features.positions > 1]
    usable = wide or [each for each in deep if each.features.layout != "NC"] or deep or free
    if not usable:
        raise BadInputError(
            "no place in this network is passed by everything that leads from the pixels to the logits; choose one of "
            "those that 'polarizer sites --all' lists, with --site"
        )
    stage = [each for each in usable if each.features.positions == usable[-1].features.positions]
    depth = min(each.site.name.count(".") for each in stage)  # between blocks rather than inside one
    first = next(each for each in stage if each.site.name.count(".") == depth)
    begins = behind[first] <= MOST_BEHIND
    share = behind[first] if begins else behind[stage[-1]]
    alike = [each for each in reversed(stage) if behind[each] == share]  # behind an activation rather than before it
    site = min(alike, key=lambda each: each.site.name.count(".")).site
    positions = "several pixels or tokens and " if wide else ""
    return Choice(
        site,
        f"{site}: of {len(free)} places that nothing bypasses, the {'first of the last stage' if begins else 'last'} "
        f"with {positions}at least {LEFT_BEHIND:.0%} of the network's operations behind it ({share:.1%}"
        f"{', its flat head aside' if head else ''})",
    )


def last_map(found: Sequence[Candidate]) -> Site | None:
    """The last place that nothing bypasses with several pixels or tokens; None where there is none."""
    return next((each.site for each in reversed(found) if not each.bypassed and each.features.positions > 1), None)


def on_the_way(model: nn.Module, layer: nn.Module, pixels: Float[Tensor, "n c h w"], share: float) -> Site | None:
    """The place in front of ``layer``, a module of ``model``, that is nearest to ``share`` of the way to it.

    The way from the pixels is counted in operations; nothing bypasses the place. None where nothing lies between.
    """
    passed = _Pass(model, pixels)
    behind = 1 - next(place.done for place in passed.places if place.module is layer) / max(passed.operations, 1)
    between = [each for each in candidates(model, pixels) if not each.bypassed and behind < each.behind < 1]
    wanted = 1 - share * (1 - behind)
    # Of places with as much behind them the last, behind an activation rather than before it.
    return min(reversed(between), key=lambda each: abs(each.behind - wanted)).site if between else None


def default_site(model: nn.Module, pixels: Float[Tensor, "n c h w"]) -> Site:
    """``choose_site`` of all candidates."""
    return choose_site(candidates(model, pixels)).site


def _clumsiness(place: "_Place") -> tuple[int, bool, bool]:
    return place.site.name.count("."), isinstance(place.module, _PASSING_ON), place.site.side == "after"


@dataclass(frozen=True, eq=False)
class _Place:
    """What passed one side of a module: the value, its node, and the operations done before."""

    site: Site
    module: nn.Module
    value: Tensor
    node: Node
    done: int


class _Pass:
    """One forward pass in which a copy is made at both sides of every module, so that each place has its own node."""

    def __init__(self, model: nn.Module, pixels: Float[Tensor, "n c h w"]) -> None:
        self.places: list[_Place] = []
        self.runs: Counter[str] = Counter()
        self._images = len(pixels)
        self._counter = FlopCounterMode(display=False)
        with torch.enable_grad(), ExitStack() as hooks, self._counter:
            for name, module in bare(model).named_modules():
                if name:
                    hooks.enter_context(module.register_forward_pre_hook(partial(self._entering, name)))
                    hooks.enter_context(module.register_forward_hook(partial(self._leaving, name)))
            start = pixels.detach().clone().requires_grad_().clone()
            logits = model(start)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise BadInputError("the model must give logits N x K, one for every class")
        self.operations = self._counter.get_total_flops()
        self._start, self._end = start.grad_fn, logits.grad_fn
        self._first: dict[Node, int] = {}  # of each node that is a mark, the place whose value it passes on
        for index, place in enumerate(self.places):
            if place.node is not None:
                before = place.node.next_functions[0][0]
                self._first[place.node] = self._first.get(before, index)
        self.group_of_logits = self._first.get(self._end, -1)

    def _entering(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or not isinstance(args[0], Tensor):
            return None
        return (self._marked(Site("before", name), module, args[0]), *args[1:])

    def _leaving(self, name: str, module: nn.Module, _args: tuple[Any, ...], output: Any) -> Tensor | None:
        self.runs[name] += 1
        return self._marked(Site("after", name), module, output) if isinstance(output, Tensor) else None

    def _marked(self, site: Site, module: nn.Module, value: Tensor) -> Tensor:
        copy = value.clone()
        self.places.append(_Place(site, module, copy.detach(), copy.grad_fn, self._counter.get_total_flops()))
        return copy

    def group(self, place: _Place) -> int:
        """Places with the same number pass on the same value."""
        return self._first.get(place.node, -1)

    def features(self, place: _Place) -> Features | None:
        if place.value.shape[:1] != (self._images,):  # time steps in front, or several pieces of each image
            return None
        alike = [other.module for other in self.places if other is place or self.group(other) == self.group(place) >= 0]
        return features_of(place.value, alike)

    def paths(self) -> tuple[Mapping[Node, int], int]:
        """For each node the number of paths from the pixels to the logits through it, and the number of all paths."""
        order = _topological(self._end)
        to_logits: dict[Node, int] = defaultdict(int, {self._end: 1})
        for node in order:
            for source in _sources(node):
                to_logits[source] += to_logits[node]
        from_pixels: dict[Node, int] = {}
        for node in reversed(order):
            from_pixels[node] = 1 if node is self._start else sum(from_pixels[source] for source in _sources(node))
        total = to_logits[self._start]
        if self._end is None or total == 0:
            raise BadInputError(
                "no gradient leads from the model's logits to its pixels: give a model without torch.no_grad, rounding "
                "or argmax in its forward pass"
            )
        return {node: from_pixels[node] * to_logits[node] for node in order}, total


def _sources(node: Node) -> Sequence[Node]:
    return [source for source, _ in node.next_functions if source is not None]


def _topological(end: Node | None) -> list[Node]:
    """All nodes that ``end`` depends on, each before those that it depends on."""
    graph: dict[Node, Sequence[Node]] = {}
    found = [] if end is None else [end]
    while found:
        node = found.pop()
        if node not in graph:
            graph[node] = _sources(node)
            found += graph[node]
    return list(TopologicalSorter(graph).static_order())[::-1]
