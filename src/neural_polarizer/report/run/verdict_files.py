"""The verdict of a run or of an audit for programs: a short JSON, and SARIF 2.1.0, which CI systems show."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath, PureWindowsPath
from typing import Any, NamedTuple
from urllib.parse import quote

from neural_polarizer.report.run.advice import after_audit, what_now
from neural_polarizer.report.run.audit_page import judge_audit, purified_part
from neural_polarizer.report.run.verdict import Tone, Verdict, judge
from neural_polarizer.report.values import visible

VERDICT = "verdict.json"
SARIF = "verdict.sarif"
_NAME = "neural-polarizer"
_SCHEMA = 1
_SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

# SARIF wants the level "none" wherever the kind is not "fail" (section 3.27.10 of the standard).
_KIND_AND_LEVEL: Mapping[Tone, tuple[str, str]] = {
    "good": ("pass", "none"),
    "warn": ("fail", "warning"),
    "bad": ("fail", "error"),
    "open": ("open", "none"),
}
_RULES: Mapping[str, str] = {
    "purification": "Whether the trigger still works on the purified model, and what the repair cost.",
    "audit": "Whether clean images show a backdoor in the model.",
    "audit-after": "Whether clean images show a backdoor in the purified model.",
    "model-file": "What loading the model file elsewhere would do beyond reading weights, such as running code.",
    "model-reading": "What was taken of the model file, and how.",
    "run-warning": "What limits the result of the run.",
}


class _Told(NamedTuple):
    """One judgement in the words of the report, and what to do about it."""

    rule: str
    verdict: Verdict
    what_now: tuple[str, ...]


def run_files(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Both files of a purification by their names; ``record`` is as in ``run.json``."""
    told = _Told("purification", judge(record), what_now(record))
    figures = {when: {rate: record[when][rate] for rate in ("acc", "asr", "ra")} for when in ("before", "after")}
    return _files(record, [told], "run.json", {**figures, "der": record["der"]})


def audit_files(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Both files of an audit by their names; ``record`` is as in ``audit.json``."""
    told = [_Told("audit", judge_audit(record), after_audit(record))]
    figures = {key: record[key] for key in ("p_value", "level", "posterior", "suspect")}
    later = purified_part(record)
    if later is not None:
        told.append(_Told("audit-after", judge_audit(later), told[0].what_now))
        figures["after_purification"] = _words(told[1])
    return _files(record, told, "audit.json", figures)


def _files(
    record: Mapping[str, Any], told: Sequence[_Told], name: str, figures: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    tool = {"name": _NAME, "version": record["versions"]["neural_polarizer"]}
    remarks = {key: [visible(text) for text in record.get(key, ())] for key in ("warnings", "threats", "findings")}
    path, sha256 = record["model"]["path"], record["model_sha256"]
    verdict = {
        "schema": _SCHEMA,
        "tool": tool,
        **_words(told[0]),
        **remarks,
        "figures": dict(figures),
        "model": {"path": path, "sha256": sha256},
        "record": name,
        "report": "report.html",
    }
    texts = [(each.rule, *_KIND_AND_LEVEL[each.verdict.tone], _sentences(each)) for each in told]
    texts += [("run-warning", "fail", "warning", text) for text in remarks["warnings"]]
    texts += [("model-file", "fail", "warning", text) for text in remarks["threats"]]
    texts += [("model-reading", "informational", "none", text) for text in remarks["findings"]]
    return {VERDICT: verdict, SARIF: _sarif(tool, _uri(path), sha256, texts)}


def _sentences(told: _Told) -> str:
    found = told.verdict
    return visible(f"{found.headline}. {found.text} What to do: {' '.join(told.what_now)}")


def _words(told: _Told) -> dict[str, Any]:
    found = told.verdict
    return {
        "verdict": found.kind,
        "tone": found.tone,
        "headline": found.headline,
        "text": visible(found.text),
        "what_now": list(told.what_now),
    }


def _sarif(
    tool: Mapping[str, str], uri: str, sha256: str, texts: Sequence[tuple[str, str, str, str]]
) -> dict[str, Any]:
    rules = list(dict.fromkeys(rule for rule, *_ in texts))
    return {
        "$schema": _SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        **tool,
                        "rules": [{"id": rule, "shortDescription": {"text": _RULES[rule]}} for rule in rules],
                    }
                },
                "artifacts": [{"location": {"uri": uri}, "hashes": {"sha-256": sha256}}],
                "results": [
                    {
                        "ruleId": rule,
                        "ruleIndex": rules.index(rule),
                        "kind": kind,
                        "level": level,
                        "message": {"text": text},
                        "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri, "index": 0}}}],
                    }
                    for rule, kind, level, text in texts
                ],
            }
        ],
    }


def _uri(path: str) -> str:
    """A path as a reference that is valid in SARIF: relative ones stay relative."""
    if PureWindowsPath(path).drive:
        return "file:///" + quote(PureWindowsPath(path).as_posix(), safe="/:", errors="replace")
    text = quote(PurePath(path).as_posix(), errors="replace")
    return f"file://{text}" if path.startswith("/") else text
