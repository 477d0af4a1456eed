"""Networks by code of the user's own: a file or a module that the user names, and nobody else.

A ``Definition`` is only ever made from what the user wrote on the command line or passed from Python. Records and
checkpoints hold its name and hash as text, which is never imported.
"""

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from neural_polarizer.errors import BadInputError, cause
from neural_polarizer.files import sha256_of_file
from neural_polarizer.models.architecture import OPTIONS
from neural_polarizer.models.forms import check_module, copied, unwrapped
from neural_polarizer.models.normalize import Normalized, bare
from neural_polarizer.models.preprocessing import Preprocessing

NUM_CLASSES = "num_classes"
_CALLED = (NUM_CLASSES, "n_classes", "nb_classes", "nclasses", "num_class", "n_class", "nclass", "num_labels")
"""What code may call the number of classes."""
_SIZES = ((32, 32), (224, 224), (64, 64), (28, 28))
"""Of the images that a network is asked with how many logits it gives."""
_LIBRARIES = ("", "transformers", *OPTIONS)


@dataclass(frozen=True, eq=False)
class Definition:
    """A class or function of the user's that gives a network."""

    name: str  # ``FILE.py:NAME`` (without folders) or ``MODULE:NAME``, with its arguments, for records
    sha256: str  # of the file that defines it
    make: Callable[..., Any]  # what stands under NAME
    arguments: Mapping[str, Any]  # by name

    @property
    def takes_num_classes(self) -> bool:
        """Whether the number of classes is passed to it; arguments of the user's own go first."""
        return self._number is not None

    @property
    def _number(self) -> str | None:
        """The argument that the number of classes is passed as."""
        try:
            known = inspect.signature(self.make).parameters.values()
        except (TypeError, ValueError):
            return None
        if not self.arguments.keys().isdisjoint(_CALLED):
            return None
        names = [each.name for each in known if each.name in _CALLED and each.kind is not each.POSITIONAL_ONLY]
        names += [NUM_CLASSES] if any(each.kind is each.VAR_KEYWORD for each in known) else []
        return next(iter(names), None)

    def build(self, num_classes: int) -> nn.Module:
        """The network, with random weights, ``bare``, as files have it; torch's random numbers are left as they were.

        Raises:
            BadInputError: the code fails, or gives something else.
        """
        return bare(self._made(num_classes))

    def preprocessing(self) -> Preprocessing | None:
        """What the code puts before its network, by a ``Normalized``; None without one."""
        whole = self._made(2)
        if not isinstance(whole, Normalized):
            return None
        mean, std = whole.of_three()
        return Preprocessing(source="the module that you gave", mean=mean, std=std)

    def _made(self, num_classes: int) -> nn.Module:
        more = {} if self._number is None else {self._number: num_classes}
        try:
            with torch.random.fork_rng(devices=[]):
                network = self.make(**self.arguments, **more)
        except (Exception, SystemExit) as error:  # code of the user's may raise anything
            raise BadInputError(f"--arch {self.name}: {cause(error)}") from None
        if not isinstance(network, nn.Module):
            raise BadInputError(f"--arch {self.name}: gives a {type(network).__name__}, not a torch.nn.Module")
        try:
            return check_module(network)
        except BadInputError as error:
            raise BadInputError(f"--arch {self.name}: {error}") from None

    @property
    def remark(self) -> str:
        """That code was run, and which."""
        return f"the network is built by code that you named and trust, {self.name} (SHA-256 {self.sha256}); it was run"


def network_named(text: str | None) -> str | Definition | None:
    """What the user means by ``--arch``: the code of ``FILE.py:NAME`` or ``MODULE:NAME``, or a name as it is.

    The code is imported. So this is for what a user has typed or passed, never for what a file says. Arguments may
    follow as ``?KEY=VALUE&KEY=VALUE``; values are JSON, or text where they are not.

    Raises:
        BadInputError: the file or the module cannot be imported, or there is nothing to call under that name.
    """
    place, colon, name = (text or "").partition("?")[0].rpartition(":")
    if text is None or not colon or place in _LIBRARIES:
        return text
    module, shown = _imported(text, place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            own = {each: value for each, value in vars(module).items() if callable(value)}
            known = [each for each, value in own.items() if getattr(value, "__module__", None) == module.__name__]
            raise BadInputError(f"--arch {text}: {place} has no {name!r}; it defines {', '.join(known) or 'nothing'}")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise BadInputError(f"--arch {text}: {name} is no class or function that gives a network")
    _, mark, tail = text.partition("?")
    arguments = _arguments(text, tail) if mark else {}
    source = getattr(module, "__file__", None)
    sha256 = sha256_of_file(Path(source)) if source else ""
    return Definition(f"{shown}:{name}{mark}{tail}", sha256, found, arguments)


def definition_of(what: nn.Module | Callable[..., nn.Module]) -> Definition:
    """A class, a function or a module of the user's as a definition; a module is copied whenever it is built."""
    if not callable(what):
        raise BadInputError(f"the network must be a module, or what makes one, got {type(what).__name__}")
    what = unwrapped(what) if isinstance(what, nn.Module) else what
    kind = type(bare(what)) if isinstance(what, nn.Module) else what
    name = f"{getattr(kind, '__module__', '')}:{getattr(kind, '__qualname__', type(kind).__name__)}"
    make = (lambda: copied(what)) if isinstance(what, nn.Module) else what
    try:
        sha256 = sha256_of_file(Path(inspect.getfile(kind)))
    except (TypeError, OSError):  # no file defines it
        sha256 = hashlib.sha256().hexdigest()
    return Definition(name, sha256, make, {})


@torch.no_grad()
def answer_of(network: nn.Module, *sizes: tuple[int, int]) -> tuple[int, int] | None:
    """(number of logits, channels of the images) of a copy's answer to black images, of these sizes first.

    None where it takes none of them.
    """
    with suppress(BadInputError):  # it cannot be copied
        twin = copied(network).eval()  # the network itself may keep what it sees
        like = next(twin.parameters(), torch.zeros(()))
        for size, channels in product((*sizes, *_SIZES), (3, 1)):
            with suppress(Exception):  # code of the user's may raise anything
                found = twin(torch.zeros(2, channels, *size).to(like))
                if isinstance(found, Tensor) and found.ndim in (1, 2) and len(found) == 2:
                    return (1 if found.ndim == 1 else found.shape[1]), channels
    return None


def outputs_of(network: nn.Module) -> int | None:
    """K, as the network's answer tells; where it gives none, its attribute ``num_classes``, or its end."""
    answer = answer_of(network)
    return _last_outputs(network) if answer is None else answer[0]


def _last_outputs(network: nn.Module) -> int | None:
    told = getattr(network, NUM_CLASSES, None)
    if type(told) is int:
        return told
    sizes = [
        each.out_features if isinstance(each, nn.Linear) else each.out_channels
        for each in network.modules()
        if isinstance(each, (nn.Linear, nn.Conv2d))
    ]
    return sizes[-1] if sizes else None


def _imported(text: str, place: str) -> tuple[ModuleType, str]:
    """The module, and how records call it."""
    path = Path(place).expanduser()
    if place.endswith(".py") and not path.is_file():
        raise BadInputError(f"--arch {text}: {place}: no such file")
    try:
        if place.endswith(".py"):
            return _from_file(path.resolve()), path.name
        return importlib.import_module(place), place
    except (Exception, SystemExit) as error:  # so may its import, and a script may read the command line
        script = "; put what a script does under if __name__ == '__main__'" if isinstance(error, SystemExit) else ""
        raise BadInputError(f"--arch {text}: {place} cannot be imported ({cause(error)}){script}") from None


def _from_file(path: Path) -> ModuleType:
    """The module of a file, imported as a script's neighbours are: with its folder on the path."""
    which = hashlib.sha256(f"{path}\0{sha256_of_file(path)}".encode(errors="replace")).hexdigest()
    name = f"{path.stem}_{which[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a file of Python code")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _arguments(text: str, tail: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in tail.split("&"):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier() or key in found:
            raise BadInputError(f"--arch {text}: {part!r} is no argument; expected KEY=VALUE, each key once")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
