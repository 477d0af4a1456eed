"""The records that are written are those that the published schemas describe."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from run_files import make_runs

SCHEMAS = Path(__file__).parents[1] / "docs" / "reference" / "schemas"


def validate(name: str, record: Any) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(record, schema, jsonschema.Draft202012Validator)


def test_a_purification_writes_what_the_schemas_say(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = make_runs(tmp_path_factory) / "purified"
    for name in ("run", "verdict"):
        validate(name, json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    with pytest.raises(jsonschema.ValidationError, match="method"):
        validate("run", {"schema": 1})


def test_an_audit_writes_what_the_schemas_say() -> None:
    from neural_polarizer.report.run.verdict_files import VERDICT, audit_files

    found = {
        "schema": 2,
        "verdict": "none seen",
        "suspect": None,
        "model": {"path": "x", "classes": []},
        "model_sha256": "0",
    }
    found |= {"likeliest": 3, "p_value": 0.4, "level": 0.05, "posterior": 0.6, "reason": None, "prior": 0.5}
    found |= {"makes_sense": True, "nameable": {"dense": 0.5}, "purified": None}
    record = {
        **found,
        "n_clean": 5,
        "clean_sha256": "1",
        "seed": 0,
        "threats": [],
        "findings": [],
        "versions": {"neural_polarizer": "0"},
    }
    validate("audit", record)
    validate("verdict", audit_files(record)[VERDICT])
