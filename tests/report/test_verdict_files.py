"""verdict.json and verdict.sarif: what a CI system reads."""

import json
import re
from typing import Any

import pytest
from report_samples import nothing_measured, sample_record

from neural_polarizer.report.run.verdict_files import SARIF, VERDICT, audit_files, run_files

PART: dict[str, Any] = {
    "verdict": "backdoor",
    "p_value": 0.001,
    "level": 0.05,
    "posterior": 0.99,
    "prior": 0.5,
    "likeliest": 3,
    "suspect": 3,
    "reason": None,
    "makes_sense": True,
    "nameable": {"dense": 0.5},
}
AUDIT: dict[str, Any] = {
    **PART,
    "model": {"path": "/models/a b.pt", "classes": []},
    "model_sha256": "cd" * 32,
    "purified": {**PART, "verdict": "none seen", "suspect": None, "p_value": 0.7, "posterior": 0.3},
    "threats": ["runs code when loaded"],
    "findings": [],
    "versions": {"neural_polarizer": "9.9"},
}


def check_sarif(log: dict[str, Any]) -> list[dict[str, Any]]:
    """The results, after the properties that SARIF 2.1.0 requires have been checked, with their types and values."""
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert isinstance(driver["name"], str)
    assert isinstance(driver["version"], str)
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(set(ids)) == len(ids)
    assert all(isinstance(rule["shortDescription"]["text"], str) for rule in driver["rules"])
    for artifact in run["artifacts"]:
        assert set(artifact) <= {"location", "hashes"}
        assert isinstance(artifact["location"]["uri"], str)
    for result in run["results"]:
        assert set(result) == {"ruleId", "ruleIndex", "kind", "level", "message", "locations"}
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["kind"] in {"notApplicable", "pass", "fail", "review", "open", "informational"}
        assert result["level"] in {"none", "note", "warning", "error"}
        assert (result["level"] == "none") == (result["kind"] != "fail")  # section 3.27.10 of the standard
        assert isinstance(result["message"]["text"], str)
        assert result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert run["artifacts"][place["index"]]["location"]["uri"] == place["uri"]
        assert re.fullmatch(r"(file:///)?[A-Za-z0-9%/._:~-]+", place["uri"])
    json.dumps(log, allow_nan=False)
    return list(run["results"])


def rates(acc: float, asr: float) -> dict[str, float]:
    return {"acc": acc, "asr": asr, "ra": 0.5}


@pytest.mark.parametrize(
    ("after", "kind", "level", "verdict"),
    [
        (rates(0.97, 0.0), "pass", "none", "removed"),
        (rates(0.80, 0.0), "fail", "warning", "costly"),
        (rates(0.97, 0.9), "fail", "error", "not-removed"),
        ({}, "open", "none", "unknown"),
    ],
)
def test_the_level_follows_the_verdict(after: dict[str, float], kind: str, level: str, verdict: str) -> None:
    record = sample_record(after=after)
    first, warning, threat, finding = check_sarif(run_files(record)[SARIF])
    assert (first["kind"], first["level"]) == (kind, level)
    assert (warning["ruleId"], threat["ruleId"], threat["level"]) == ("run-warning", "model-file", "warning")
    assert (finding["ruleId"], finding["kind"]) == ("model-reading", "informational")  # no alert in a pipeline
    found = run_files(record)[VERDICT]
    assert found["verdict"] == verdict
    assert found["headline"] in first["message"]["text"]
    assert len(found["what_now"]) == 3
    assert found["figures"]["after"]["asr"] == after.get("asr")


def test_an_audit_has_a_result_for_each_model() -> None:
    before, after, finding = check_sarif(audit_files(AUDIT)[SARIF])
    assert (before["ruleId"], before["level"]) == ("audit", "error")
    assert (after["ruleId"], after["kind"]) == ("audit-after", "pass")
    likelier = AUDIT | {"purified": AUDIT["purified"] | {"posterior": 0.8}}
    assert check_sarif(audit_files(likelier)[SARIF])[1]["level"] == "warning"
    assert finding["message"]["text"] == "runs code when loaded"
    found = audit_files(AUDIT)[VERDICT]
    assert (found["verdict"], found["figures"]["after_purification"]["verdict"]) == ("backdoor", "none seen")
    assert found["tool"] == {"name": "neural-polarizer", "version": "9.9"}


@pytest.mark.parametrize("path", ["models/a b:c.pt", "/x/\u202e\udc80.pt", r"C:\models\a.pt", "..//%41?#"])
def test_any_path_is_a_valid_reference(path: str) -> None:
    check_sarif(run_files(sample_record(model={"path": path}))[SARIF])


def test_a_run_without_measurements_gives_whole_files() -> None:
    record = nothing_measured() | {"model": sample_record()["model"]}
    check_sarif(run_files(record)[SARIF])
    json.dumps([run_files(record)[VERDICT], audit_files(AUDIT | {"purified": None})[VERDICT]], allow_nan=False)


def test_hidden_characters_are_spelled_out() -> None:
    record = sample_record(warnings=["runs \u202egpj.exe"])
    assert run_files(record)[VERDICT]["warnings"] == [r"runs \u202egpj.exe"]
    assert check_sarif(run_files(record)[SARIF])[1]["message"]["text"] == r"runs \u202egpj.exe"
