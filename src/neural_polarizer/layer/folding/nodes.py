"""What the nodes of a traced network do, as far as an affine map of every pixel can pass them."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

Modules = Mapping[fx.Node, nn.Module]

_SPATIAL = ({2, 3}, {-1, -2})
_KEEPING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation mode


def sums(node: fx.Node) -> bool:
    """Whether it adds two computed values, without a factor."""
    added = node.target in (operator.add, operator.iadd, torch.add) if node.op == "call_function" else False
    added = added or (node.op == "call_method" and node.target in ("add", "add_"))
    return added and not node.kwargs and len(node.args) == 2 and all(isinstance(term, fx.Node) for term in node.args)


def keeps(node: fx.Node, modules: Mapping[fx.Node, nn.Module]) -> bool:
    """Whether it passes its input on unchanged."""
    return type(modules.get(node)) in _KEEPING


def averages(node: fx.Node, modules: Mapping[fx.Node, nn.Module]) -> bool:
    """Whether it is a mean over pixels, of the image or of windows, in which no padded zeros count."""
    module = modules.get(node)
    if type(module) is nn.AvgPool2d:
        return module.padding in (0, (0, 0)) and module.divisor_override is None
    if node.op == "call_function" and node.target is F.avg_pool2d:
        return len(node.args) <= 3 and not {"padding", "divisor_override"} & node.kwargs.keys()
    if type(module) is nn.AdaptiveAvgPool2d or (node.op == "call_function" and node.target is F.adaptive_avg_pool2d):
        return True
    return _is_mean(node)


def flattens(node: fx.Node, modules: Mapping[fx.Node, nn.Module]) -> bool:
    """Whether it makes one row of each image, channel by channel."""
    module = modules.get(node)
    if type(module) is nn.Flatten:
        return (module.start_dim, module.end_dim) == (1, -1)
    if _is_mean(node):
        return not _argument(node, 2, "keepdim", default=False)
    if _is(node, torch.flatten, "flatten"):
        start, end = _argument(node, 1, "start_dim", default=0), _argument(node, 2, "end_dim", default=-1)
        return (start, end) == (1, -1)
    return node.op == "call_method" and node.target in ("view", "reshape") and node.args[2:] == (-1,)


def picks_rows(node: fx.Node) -> bool:
    """Whether it takes some of the places, such as the class token, with all of their channels, the last axis."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return False
    index = node.args[1]
    return isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None)


def looks_at_the_shape(node: fx.Node) -> bool:
    """Whether it reads the size of a tensor alone."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.op == "call_function" and node.target is getattr and node.args[1:] == ("shape",)


def _is_mean(node: fx.Node) -> bool:
    if not _is(node, torch.mean, "mean"):
        return False
    dims = _argument(node, 1, "dim", default=None)
    return isinstance(dims, (tuple, list)) and set(dims) in _SPATIAL


def _is(node: fx.Node, function: Any, method: str) -> bool:
    wanted = {"call_function": function, "call_method": method}.get(node.op)
    return wanted is not None and node.target == wanted


def _argument(node: fx.Node, position: int, name: str, *, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
