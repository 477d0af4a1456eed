"""Whether the weights of a finished run are still those of its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neural_polarizer.files import damage_in, set_aside


def set_damaged_aside(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether weights of a finished run, whose record lies at ``path``, have been damaged.

    They and the record are set aside then, with the reason. Other files, such as the report, are the user's to change.
    """
    folder, hashes = path.parent, record.get("files", {})
    weights = {name: hashes[name] for name in hashes if name.endswith(".safetensors") and Path(name).name == name}
    reason = damage_in(folder, weights)
    if reason is None:
        return False
    for each in (path, *(folder / name for name in weights)):
        if each.exists():
            set_aside(each, reason)
    return True
