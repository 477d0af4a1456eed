"""Which layers can take the polarizer over: a walk through the graph of the network, in both directions."""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.nn import functional as F

from neural_polarizer.errors import BadInputError, cause
from neural_polarizer.layer.folding.edits import Behind, Edit, InsteadOfNorm, Into, ShiftInto, pads_zeros
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.surgery import PolarizedModule, polarizer_in, trace
from neural_polarizer.models.normalize import bare

Kind = TypeVar("Kind", bound=nn.Module)
Modules = Mapping[fx.Node, nn.Module]

_SPATIAL = ({2, 3}, {-1, -2})
_KEEPING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation mode


class UnfoldableError(Exception):
    """Why the polarizer cannot be folded in one way; never leaves this package."""


class Plan:
    """A polarized network as a graph, and what may be changed in it; one that cannot be traced is unfoldable.

    ``root`` is in evaluation mode, with one polarizer, held by ``wrapped``; the edits change it in place.
    """

    def __init__(self, root: nn.Module, wrapped: PolarizedModule) -> None:
        self.root = root
        self.wrapped = wrapped
        try:
            graph = trace(root)
            self.site = polarizer_in(graph, root, wrapped.polarizer)
        except BadInputError as error:
            raise UnfoldableError(str(error)) from None
        except Exception as error:  # a foreign network may raise anything while it is traced
            raise UnfoldableError(f"the network cannot be traced: {cause(error)}") from None
        self.modules = {n: root.get_submodule(n.target) for n in graph.nodes if n.op == "call_module"}
        self.calls = Counter(self.modules.values())
        self.holders = Counter(
            id(value) for module in root.modules() for value in module._parameters.values() if value is not None
        )
        self.holders.update(id(operator.attrgetter(node.target)(root)) for node in graph.nodes if node.op == "get_attr")
        self.channels = len(next(wrapped.polarizer.parameters()))
        self.last = isinstance(wrapped.polarizer, Polarizer) and wrapped.polarizer.channels_last

    def backwards(self) -> list[Edit]:
        """Fold into the layers whose outputs, or their sum, the polarizer reads.

        They must all be convolutions, or one linear layer, and read by nothing else.
        """
        (source,) = self.site.all_input_nodes
        if self.last:
            return [self._linear_in_front(source, self.site)]
        edits = self._summands(source, self.site)
        if len({id(edit.layer) for edit in edits}) < len(edits):
            raise UnfoldableError("one convolution gives several of the summands")
        if len(edits) == 1 and edits[0].norm is None:
            edits = [replace(edits[0], following=self._norm_behind(self.site))]
        able = [i for i, e in enumerate(edits) if any(x is not None for x in (e.layer.bias, e.norm, e.following))]
        layers = () if able else self._constants_behind()
        if layers:
            return [*(replace(edit, shifted=False) for edit in edits), ShiftInto(layers)]
        first = able[0] if able else 0  # which gets a bias that it had not
        return [replace(edit, shifted=index == first) for index, edit in enumerate(edits)]

    def _constants_behind(self) -> tuple[nn.BatchNorm2d | nn.Conv2d | nn.Linear, ...]:
        """The layers whose own constants can take the polarizer's, so that no convolution needs a bias; or none."""
        layers: list[nn.BatchNorm2d | nn.Conv2d | nn.Linear] = []
        reached, passed = [(self.site, False)], set[fx.Node]()
        while reached:
            node, flat = reached.pop()
            for user in node.users:
                if looks_at_the_shape(user):
                    continue
                if user in passed or user.args.count(node) > 1:  # a sum would hold the constant twice
                    return ()
                passed.add(user)
                layer = self._with_constant(user, flat=flat)
                if layer is not None:
                    layers.append(layer)
                elif flattens(user, self.modules):
                    reached.append((user, True))
                elif keeps(user, self.modules) or averages(user, self.modules) or sums(user):
                    reached.append((user, flat))
                else:
                    return ()
        return tuple(layers)

    def _with_constant(self, node: fx.Node, *, flat: bool) -> nn.BatchNorm2d | nn.Conv2d | nn.Linear | None:
        if flat:
            linear = self._own(node, nn.Linear)
            fits = linear is not None and linear.bias is not None and linear.in_features % self.channels == 0
            return linear if fits else None
        norm, conv = self._own(node, nn.BatchNorm2d), self._own(node, nn.Conv2d)
        if conv is not None and conv.groups == 1 and conv.bias is not None and not pads_zeros(conv):
            return conv
        return norm if norm is not None and _has_statistics(norm) else None

    def _linear_in_front(self, node: fx.Node, reader: fx.Node) -> Behind:
        self._check_sole(node, reader)
        if keeps(node, self.modules):
            return self._linear_in_front(node.all_input_nodes[0], node)
        linear = self._own(node, nn.Linear)
        if linear is None:
            raise UnfoldableError(f"what the layer reads comes from {self.name(node)}, not from a linear layer")
        return Behind(linear)

    def _check_sole(self, node: fx.Node, reader: fx.Node) -> None:
        others = [user for user in node.users if user is not reader and not looks_at_the_shape(user)]
        if others:
            names = ", ".join(map(self.name, others))
            raise UnfoldableError(f"what the layer reads, or a summand of it, is also read by {names}")

    def _summands(self, node: fx.Node, reader: fx.Node) -> list[Behind]:
        self._check_sole(node, reader)
        if sums(node):
            return [edit for term in node.args for edit in self._summands(term, node)]  # type: ignore[arg-type]
        if keeps(node, self.modules) or averages(node, self.modules):
            return self._summands(node.all_input_nodes[0], node)
        conv, norm = self._own(node, nn.Conv2d), self._own(node, nn.BatchNorm2d)
        if norm is not None and _has_statistics(norm):
            (source,) = node.all_input_nodes
            if len(source.users) == 1:
                conv = self._own(source, nn.Conv2d)
        if conv is None or conv.groups != 1 or conv.out_channels != self.channels:
            raise UnfoldableError(f"what the layer reads comes from {self.name(node)}, not from a convolution")
        return [Behind(conv, norm)]

    def forwards(self, *, border: bool) -> list[Edit]:
        """Fold into the layers that read the polarizer's output, directly or after an average."""
        edits = self._readers(self.site, border=border, flat=False)
        if not edits:
            raise UnfoldableError("nothing reads the layer's output")
        return edits

    def _readers(self, node: fx.Node, *, border: bool, flat: bool) -> list[Edit]:
        edits: list[Edit] = []
        for user in node.users:
            if looks_at_the_shape(user):
                continue
            edit, row = self._into(user, border=border, flat=flat), flattens(user, self.modules)
            if edit is not None:
                edits.append(edit)
            elif keeps(user, self.modules) or (picks_rows(user) if self.last else row or averages(user, self.modules)):
                edits += self._readers(user, border=border, flat=flat or row)
            else:
                raise UnfoldableError(f"the layer's output is read by {self.name(user)}, which cannot take it over")
        return edits

    def _into(self, node: fx.Node, *, border: bool, flat: bool) -> Edit | None:
        conv, linear = self._own(node, nn.Conv2d), self._own(node, nn.Linear)
        if linear is not None and (self.last or flat):
            columns, rest = divmod(linear.in_features, self.channels)
            return Into(linear) if rest == 0 and (columns == 1 or not self.last) else None
        if conv is None or conv.groups != 1 or self.last or flat:
            return None
        return Into(conv, self._norm_behind(node), border)

    def instead_of_norm(self) -> list[Edit]:
        """Merge the polarizer and the batch norm that alone reads it."""
        norm = self._norm_behind(self.site)
        if norm is None:
            raise UnfoldableError("no batch norm alone reads the layer's output")
        return [InsteadOfNorm(norm)]

    def _norm_behind(self, node: fx.Node) -> nn.BatchNorm2d | None:
        users = list(node.users)
        norm = self._own(users[0], nn.BatchNorm2d) if len(users) == 1 else None
        return norm if norm is not None and _has_statistics(norm) else None

    def _own(self, node: fx.Node, kind: type[Kind]) -> Kind | None:
        """The module of ``node`` if it is of that very class, runs once, and shares its weights with nothing."""
        module = self.modules.get(node)
        if type(module) is not kind or self.calls[module] > 1 or module._forward_hooks or module._forward_pre_hooks:
            return None
        shared = any(self.holders[id(value)] > 1 for value in module.parameters(recurse=False))
        return None if shared else module

    def name(self, node: fx.Node) -> str:
        """What the user calls it: the layer's name in the network, or the operation."""
        if node.op == "output":
            return "the caller"
        if node.op != "call_module":
            return str(getattr(node.target, "__name__", node.target))
        return layer_names(self.root, self.wrapped)[self.modules[node]]


def beside(root: nn.Module, wrapped: PolarizedModule, *, border: bool) -> list[Edit]:
    """Fold into the very layer that the polarizer was put before or after, which takes no graph; or nothing.

    ``border``: be exact where a convolution pads zeros.
    """
    layer, before = wrapped.module, wrapped.side == "before"
    last = isinstance(wrapped.polarizer, Polarizer) and wrapped.polarizer.channels_last
    holders = Counter(id(value) for module in root.modules() for value in module._parameters.values())
    shared = any(holders[id(value)] > 1 for value in layer.parameters())
    if shared or layer._forward_hooks or layer._forward_pre_hooks:
        return []
    if type(layer) is nn.Linear and last:
        return [Into(layer) if before else Behind(layer)]
    if type(layer) is nn.Conv2d and layer.groups == 1 and not last:
        return [Into(layer, border=border) if before else Behind(layer)]
    return []


def layer_names(root: nn.Module, wrapped: PolarizedModule | None = None) -> dict[nn.Module, str]:
    """The names that the network itself has for its modules, without the polarizer and a normalisation around it."""
    network = bare(root)
    outer = next((name for name, module in network.named_modules() if module is wrapped), None)
    inner = None if outer is None else f"{outer}.module"
    return {
        module: name if inner is None or not f"{name}.".startswith(f"{inner}.") else f"{outer}{name[len(inner) :]}"
        for name, module in network.named_modules()
    }


def _has_statistics(norm: nn.BatchNorm2d) -> bool:
    return norm.running_mean is not None and norm.weight is not None


def sums(node: fx.Node) -> bool:
    """Whether it adds two computed values, without a factor."""
    added = _is(node, (operator.add, operator.iadd, torch.add), ("add", "add_"))
    return added and not node.kwargs and len(node.args) == 2 and all(isinstance(term, fx.Node) for term in node.args)


def keeps(node: fx.Node, modules: Modules) -> bool:
    """Whether it passes its input on unchanged."""
    return type(modules.get(node)) in _KEEPING


def averages(node: fx.Node, modules: Modules) -> bool:
    """Whether it is a mean over pixels, of the image or of windows, in which no padded zeros count."""
    module = modules.get(node)
    if type(module) is nn.AvgPool2d:
        return module.padding in (0, (0, 0)) and module.divisor_override is None
    if _is(node, (F.avg_pool2d,)):
        return len(node.args) <= 3 and not {"padding", "divisor_override"} & node.kwargs.keys()
    return type(module) is nn.AdaptiveAvgPool2d or _is(node, (F.adaptive_avg_pool2d,)) or _is_mean(node)


def flattens(node: fx.Node, modules: Modules) -> bool:
    """Whether it makes one row of each image, channel by channel."""
    module = modules.get(node)
    if type(module) is nn.Flatten:
        return (module.start_dim, module.end_dim) == (1, -1)
    if _is_mean(node):
        return not _argument(node, 2, "keepdim", default=False)
    if _is(node, (torch.flatten,), ("flatten",)):
        start, end = _argument(node, 1, "start_dim", default=0), _argument(node, 2, "end_dim", default=-1)
        return (start, end) == (1, -1)
    return _is(node, (), ("view", "reshape")) and node.args[2:] == (-1,)


def picks_rows(node: fx.Node) -> bool:
    """Whether it takes some of the places, such as the class token, with all of their channels, the last axis."""
    index = node.args[1] if _is(node, (operator.getitem,)) else None
    return isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None)


def looks_at_the_shape(node: fx.Node) -> bool:
    """Whether it reads the size of a tensor alone."""
    return _is(node, (), ("size", "dim")) or (_is(node, (getattr,)) and node.args[1:] == ("shape",))


def _is_mean(node: fx.Node) -> bool:
    dims = _argument(node, 1, "dim", default=None) if _is(node, (torch.mean,), ("mean",)) else None
    return isinstance(dims, (tuple, list)) and set(dims) in _SPATIAL


def _is(node: fx.Node, functions: Sequence[Any], methods: Sequence[str] = ()) -> bool:
    return node.target in {"call_function": functions, "call_method": methods}.get(node.op, ())


def _argument(node: fx.Node, position: int, name: str, *, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
