"""NPD for MindSpore networks (extra "mindspore"; docs/research/mindspore.md)."""

from neural_polarizer.errors import BadInputError

try:
    import mindspore as _  # noqa: F401
except ImportError:
    raise BadInputError("MindSpore is not installed: pip install 'neural-polarizer[mindspore]'") from None

from neural_polarizer.mindspore.api import PurifiedCell as PurifiedCell
from neural_polarizer.mindspore.api import purify as purify
from neural_polarizer.mindspore.polarizer import Polarizer as Polarizer
from neural_polarizer.mindspore.surgery import insert as insert
