"""Putting the polarizer into a network, and cutting the network there; always on a copy."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from neural_polarizer.errors import BadInputError, cause
from neural_polarizer.layer.by_class import ByClass
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.models.adapted import replace_module
from neural_polarizer.models.forms import copied
from neural_polarizer.models.normalize import bare


@dataclass(frozen=True)
class Site:
    """A place in a network: ``before`` or ``after`` the module of that name.

    Names are those of the network itself; a normalisation around it is not counted.
    """

    side: Literal["before", "after"]
    name: str

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read ``before:NAME`` or ``after:NAME``."""
        side, _, name = text.partition(":")
        if side == "before" and name:
            return cls("before", name)
        if side == "after" and name:
            return cls("after", name)
        raise BadInputError(f"site {text!r}: expected before:NAME or after:NAME, as in after:layer4")

    def __str__(self) -> str:
        return f"{self.side}:{self.name}"


class PolarizedModule(nn.Module):
    """A module of the network with the polarizer before or behind it, in that module's place.

    The polarizer is a ``Polarizer``, or the 1x1 convolution or linear layer that one has been folded into. While
    ``enabled`` is False it is left out.
    """

    enabled = True

    def __init__(self, module: nn.Module, polarizer: nn.Module, side: Literal["before", "after"]) -> None:
        super().__init__()
        self.module = module
        self.polarizer = polarizer
        self.side = side
        self.training = module.training
        # In evaluation torch's transformers take the weights of their parts and call none, unless one has a hook.
        self.register_forward_hook(called)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # networks ask their parts for sizes, weights and the like, but for nothing private
            if name.startswith("_"):
                raise
            return getattr(super().__getattr__("module"), name)

    def extra_repr(self) -> str:
        return f"polarizer {self.side} the module"

    def forward(self, features: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return self.module(features, *args, **kwargs)
        if self.side == "before":
            return self.module(self.polarizer(features), *args, **kwargs)
        return self.polarizer(self.module(features, *args, **kwargs))


def called(_module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
    """The hook that each ``PolarizedModule`` has; it changes nothing."""


def full_name(model: nn.Module, site: Site) -> str:
    """The site's module name as ``model`` itself spells it; where there is none, the nearest names are listed."""
    network = bare(model)
    names = [name for name, _ in network.named_modules() if name]
    if site.name not in names:
        raise BadInputError(f"site {str(site)!r}: no such module; {nearest(site.name, names)}")
    return f"network.{site.name}" if network is not model else site.name


def nearest(name: str, names: Sequence[str]) -> str:
    """Which of ``names`` could be meant, in words."""
    return f"the nearest names are {', '.join(difflib.get_close_matches(name, names, n=5, cutoff=0.3) or names[-5:])}"


def insert(model: nn.Module, site: Site, polarizer: nn.Module) -> nn.Module:
    """A copy of ``model`` with ``polarizer`` (the very object) at ``site``; ``model`` is untouched.

    With layers by class the copy is run twice in each call.
    """
    polarized = copied(model)
    module = polarized.get_submodule(full_name(model, site))
    replace_module(polarized, module, PolarizedModule(module, polarizer, site.side))
    if isinstance(polarizer, ByClass):
        polarizer.first.lead(polarized)
    return polarized


@dataclass(frozen=True)
class Cut:
    """A polarized network in two parts: ``tail(*prefix(pixels))`` equals ``model(pixels)``.

    The prefix holds everything that does not depend on the polarizer and gives all values that the rest needs,
    those of residual branches included; the tail begins with the polarizer, which reads ``prefix(pixels)[entry]``. Both
    share the model's modules.
    """

    prefix: fx.GraphModule
    tail: fx.GraphModule
    entry: int


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Polarizer) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph:
    """The graph of ``model``, in which polarizers and torch's own modules are single nodes.

    Raises whatever a network that cannot be traced raises.
    """
    return _Tracer().trace(model)


def polarizer_in(graph: fx.Graph, model: nn.Module, polarizer: nn.Module) -> fx.Node:
    """The node of ``polarizer`` in the graph of ``model``; refused inside a module of torch's, which has one node."""
    found = [n for n in graph.nodes if n.op == "call_module" and model.get_submodule(n.target) is polarizer]
    if len(found) != 1:
        raise BadInputError("the layer is inside a module of torch's, which cannot be divided")
    return found[0]


@torch.no_grad()
def cut(model: nn.Module, polarizer: Polarizer, pixels: Float[Tensor, "n c h w"]) -> Cut | str:
    """Cut ``model`` in front of its ``polarizer``, or say in words why that is not possible.

    The two parts are tried on ``pixels`` (evaluation mode) and must give the model's own logits.
    """
    try:
        parts = _split(model, trace(model), polarizer)
        values = parts.prefix(pixels)
        logits, expected = parts.tail(*values), model(pixels)
    except BadInputError as error:
        return str(error)
    except Exception as error:  # a foreign network may raise anything while it is traced
        return f"the network cannot be traced: {cause(error)}"
    if not all(isinstance(value, Tensor) and value.shape[:1] == pixels.shape[:1] for value in values):
        return "a value that crosses the cut does not belong to single images"
    if not torch.allclose(logits.float(), expected.float(), rtol=1e-4, atol=1e-4):
        return "the traced network gives other logits than the network itself"
    return parts


def _split(model: nn.Module, graph: fx.Graph, polarizer: Polarizer) -> Cut:
    site = polarizer_in(graph, model, polarizer)
    tail, varying = {site}, set()
    for node in graph.nodes:
        if any(source in tail for source in node.all_input_nodes):
            tail.add(node)
        if node.op == "placeholder" or any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    crossing = [n for n in graph.nodes if n in varying and n not in tail and any(user in tail for user in n.users)]

    first = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node not in tail and node.op != "output":
            copies[node] = first.node_copy(node, copies.__getitem__)
    first.output(tuple(copies[node] for node in crossing))

    second = fx.Graph()
    copies = {node: second.placeholder(f"value_{i}") for i, node in enumerate(crossing)}
    for node in graph.nodes:
        if node in tail or node not in varying:
            copies[node] = second.node_copy(node, copies.__getitem__)
    return Cut(_module(model, first), _module(model, second), crossing.index(site.all_input_nodes[0]))


def _module(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    module = fx.GraphModule(model, graph)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module
