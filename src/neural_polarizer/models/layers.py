"""Finding layers, looking at what passes through them, and putting others in their place."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the head; a network without a linear layer is refused."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise BadInputError(
            "the network has no linear layer whose inputs could be pruned or chosen as neurons; use another "
            "architecture or method"
        )
    return layers[-1]


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place of the module called ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def shape_of(conv: nn.Conv2d) -> dict[str, Any]:
    """All that another convolution of its form is made with, but the channels."""
    shape = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    return {**shape, "bias": conv.bias is not None}


@contextmanager
def watching(
    model: nn.Module, names: Iterable[str], note: Callable[[str, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Call ``note(name, inputs, output)`` after every run of a named module while the block runs; hooks always go."""
    with ExitStack() as hooks:
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(
                lambda _, inputs, output, name=name: note(name, inputs, output)
            )
            hooks.enter_context(hook)
        yield


def inputs_of(model: nn.Module, name: str, pixels: Float[Tensor, "n c h w"]) -> Tensor:
    """What enters the layer called ``name`` when ``model`` sees ``pixels``."""
    seen: list[Tensor] = []
    with watching(model, [name], lambda _name, inputs, _output: seen.append(inputs[0])):
        model(pixels)
    return seen[0]
