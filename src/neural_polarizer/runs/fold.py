"""The folded model of a finished purification, beside the purified one."""

from pathlib import Path
from typing import Any

import torch

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.data.subset import read_index
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import check_free, read_json, sha256_of_file, write_json, writing
from neural_polarizer.layer.folding.fold import FOLDED_IMAGES, Folded, fold_polarizer
from neural_polarizer.metrics import evaluate
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.record import folded_record
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.definition import Definition
from neural_polarizer.runs.inspect import Evidence
from neural_polarizer.runs.purification import RECORD
from neural_polarizer.runs.purify import CLEAN_INDEX, FOLDED, PURIFIED


def fold_run(
    out: Path,
    pool: ImageSet,
    evidence: Evidence,
    *,
    device: torch.device,
    architecture: str | Definition | None = None,
) -> dict[str, Any]:
    """Fold the purified model in ``out``, write ``folded.safetensors``, and return the record with its ``fold``.

    A model that cannot be folded leaves a remark in the record and no file; the purification stands as it is. A folder
    that has been folded already is left alone. ``pool`` are the images that the clean ones were chosen from;
    ``evidence`` tells the accuracy that folding costs; ``architecture`` is needed where the model's file does not say
    it.
    """
    record = read_json(out / RECORD)
    if "fold" in record:
        return record
    check_free(out, (FOLDED,))
    try:
        loaded = load_model(out / PURIFIED, architecture=architecture)
        clean = pool.select(read_index(out / CLEAN_INDEX, pool)[:FOLDED_IMAGES])
        model, pixels = loaded.model.to(device), to_pixels(clean.images.to(device))
        folded = fold_polarizer(model, pixels)
    except BadInputError as error:
        record["fold"] = {"exact": None, "architecture_kept": None, "remark": f"not folded: {error}"}
        write_json(out / RECORD, record)
        return record
    accuracy = evaluate(folded.model, evidence.test, device=device).acc
    padded = "border" in folded.changes.values()
    plain = fold_polarizer(model, pixels, border="ignored").deviation if padded else None
    lost = None if accuracy is None else accuracy - record["after"]["acc"]
    record["fold"] = _told(folded) | {"n_images": len(clean), "acc_difference": lost, "border_ignored": plain}
    with writing(out, (FOLDED,)):
        save_model(out / FOLDED, folded.model, folded_record(loaded.record, folded))
        record["files"] = {**record.get("files", {}), FOLDED: sha256_of_file(out / FOLDED)}
        write_json(out / RECORD, record)
    return record


def _told(folded: Folded) -> dict[str, Any]:
    return {
        "exact": folded.exact,
        "architecture_kept": folded.architecture_kept,
        "changes": dict(folded.changes),
        "site_kept": folded.site_kept,
        "max_logits_deviation": folded.deviation,
        "largest_logit": folded.largest_logit,
        "remark": folded.remark,
    }
