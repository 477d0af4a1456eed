"""Whether the benchmark's results still are what they say: names, files, victims, and what can be measured anew."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from neural_polarizer.bench.store import ARTEFACTS, RECORDS
from neural_polarizer.bench.work import NEEDED
from neural_polarizer.cache import SEAL, key_of
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.poison import read_triggered
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import read_json
from neural_polarizer.metrics import Metrics, defense_effectiveness, evaluate
from neural_polarizer.model_files.load import load_model
from neural_polarizer.report.values import items, number, table
from neural_polarizer.runs.attack import MODEL, RECORD, TRIGGERED
from neural_polarizer.runs.verify import Given, Measuring, recorded_rates
from neural_polarizer.runs.verify_checks import RATES, Check, file_checks, or_why, plain_check, rate_checks

Told = Iterator[tuple[str, Check]]
"""Checks with what they have in common."""


def verify_results(folder: Path, given: Given, measuring: Measuring) -> list[Check]:
    """Check all records of a folder of results: one line for each sort of check, and one for each that fails.

    Purified models are not kept by the benchmark, so of a purification the victim and the arithmetic are checked. The
    figures of victims are measured anew on ``given.test``, those victims' alone that were tested on it.
    """
    paths = sorted((folder / RECORDS).glob("*.json"))
    if not paths:
        raise BadInputError(f"{folder}: is no run; {folder / RECORDS} holds no records")
    test = None if given.test is None else read_images(given.test)
    found: defaultdict[str, list[Check]] = defaultdict(list)
    records: dict[str, dict[str, Any]] = {}
    for path in paths:
        read = or_why(partial(read_json, path))
        if isinstance(read, str):
            found["records"].append(Check(what=f"record {path.stem}", holds=False, remark=read))
        else:
            records[path.stem] = read
    for name, record in records.items():
        for kind, check in _record(folder, name, record, records, test, measuring):
            found[kind].append(check)
    failed = [check for some in found.values() for check in some if check.holds is False]
    return [*map(_sum, found, found.values()), *failed]


def _sum(kind: str, checks: list[Check]) -> Check:
    decided = [check for check in checks if check.holds is not None]
    held, left = sum(check.holds is True for check in decided), len(checks) - len(decided)
    remarks = [f"{len(decided) - held} of {len(checks)} do not hold"] if held < len(decided) else []
    remarks += [f"{left} of {len(checks)}, as {next(c.remark for c in checks if c.holds is None)}"] if left else []
    return Check(
        what=kind,
        recorded=str(len(checks)),
        found=str(held),
        holds=held == len(decided) if decided else None,
        remark="; ".join(remarks),
    )


def _record(
    folder: Path,
    name: str,
    record: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any]],
    test: ImageSet | None,
    measuring: Measuring,
) -> Told:
    request, result, what = table(record, "request"), table(record, "result"), f"record {name}"
    key = key_of({"schema": record.get("schema"), "kind": record.get("kind"), **request})
    named = name == record.get("id") == key[: len(name)]
    yield "records", plain_check(what, named, "its name does not follow from its request")
    if "sha256" in record:  # those of earlier versions have no hash of themselves
        bare = {entry: value for entry, value in record.items() if entry != "sha256"}
        yield "records", plain_check(what, record["sha256"] == key_of(bare), "has been changed since it was written")
    place = folder / ARTEFACTS / name
    if record.get("kind") == "given" and result:
        same = result.get("model_sha256") in table(request, "sha256").values()
        yield "given victims", plain_check(what, same, "was measured with other weights than its request names")
    elif record.get("kind") == "victim" and result:
        yield from _victim(place, name, result, test, measuring)
    elif result:
        victim = records.get(str(request.get("victim")))
        if victim is not None:
            yield "victims of purifications", _same_victim(what, result, table(victim, "result"))
        if number(result.get("der")) is not None:
            yield "DER", _effectiveness(what, result)
        wanted = {str(each): None for each in items(result, "pictures")}
        for check in file_checks(place, {**wanted, **table(result, "files")}, ()):
            yield "pictures", replace(check, what=f"{name}/{check.what}")


def _victim(place: Path, name: str, result: Mapping[str, Any], test: ImageSet | None, measuring: Measuring) -> Told:
    if not any((place / needed).exists() for needed in NEEDED):
        yield "victims", Check(what=f"victim {name}", remark="their files are not kept here")
        return
    told = or_why(lambda: read_json(place / RECORD))
    if isinstance(told, str):
        yield "victims", Check(what=f"victim {name}", holds=False, remark=told)
        return
    same = told.get("model_sha256") == result.get("model_sha256") and all(
        told.get(rate) == result.get(rate) for rate in RATES
    )
    yield (
        "victims",
        plain_check(f"victim {name}", same, f"{place / RECORD} has other weights or figures than the record"),
    )
    sealed = or_why(lambda: read_json(place / SEAL)) if (place / SEAL).exists() else {}
    if isinstance(sealed, str):
        yield "files of victims", Check(what=f"{name}/{SEAL}", holds=False, remark=sealed)
        return
    hashes = {MODEL: result.get("model_sha256"), **table(told, "files"), **sealed}
    for check in file_checks(place, hashes, [needed for needed in NEEDED if needed != RECORD]):
        yield "files of victims", replace(check, what=f"{name}/{check.what}")
    if test is not None and told.get("test_sha256") == test.sha256():
        for check in rate_checks(result, _measured(place, test, measuring), measuring.tolerance):
            yield "figures of victims", replace(check, what=f"{name}/{check.what}")


def _measured(place: Path, test: ImageSet, measuring: Measuring) -> Metrics | str:
    def measured() -> Metrics:
        triggered = read_triggered(place / TRIGGERED, size=test.image_size, num_classes=test.num_classes)
        model = load_model(place / MODEL).model
        return evaluate(model, test, triggered, device=measuring.device, progress=measuring.progress)

    return or_why(measured)


def _same_victim(what: str, result: Mapping[str, Any], victim: Mapping[str, Any]) -> Check:
    before = table(result, "before")
    same = result.get("model_sha256") == victim.get("model_sha256") and all(
        rate not in before or before[rate] == victim.get(rate) for rate in RATES
    )
    return plain_check(what, same, "was made of other weights than its victim has now")


def _effectiveness(what: str, result: Mapping[str, Any]) -> Check:
    before, after = (recorded_rates(rates) for rates in (table(result, "before"), result))
    found, recorded = defense_effectiveness(before, after), number(result.get("der"))
    holds = found is not None and recorded is not None and abs(found - recorded) < 1e-9
    return plain_check(what, holds, "its DER does not follow from its ACC and ASR")
