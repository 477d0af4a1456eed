"""The verdict of a run or of an audit for programs: a short JSON, and SARIF 2.1.0, which CI systems show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath, PureWindowsPath
from typing import Any
from urllib.parse import quote

from neural_polarizer.report.run.advice import after_audit, what_now
from neural_polarizer.report.run.audit_page import judge_audit
from neural_polarizer.report.run.verdict import Tone, Verdict, judge
from neural_polarizer.report.values import items, number, table, visible

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
    "model-file": "What the model file holds beside weights, such as code that runs when it is loaded.",
    "run-warning": "What limits the result of the run.",
}


@dataclass(frozen=True)
class _Told:
    """One judgement in the words of the report, and what to do about it."""

    rule: str
    verdict: Verdict
    what_now: tuple[str, ...]


def run_files(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Both files of a purification by their names; of ``record``, as in ``run.json``, anything may be missing."""
    told = _Told("purification", judge(record), what_now(record))
    when = {key: table(record, key) for key in ("before", "after")}
    rates = {key: {rate: number(values.get(rate)) for rate in ("acc", "asr", "ra")} for key, values in when.items()}
    figures = {**rates, "der": number(record.get("der"))}
    return {VERDICT: _verdict(record, told, "run.json", figures), SARIF: _sarif(record, [told])}


def audit_files(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Both files of an audit by their names; of ``record``, as in ``audit.json``, anything may be missing."""
    told = [_Told("audit", judge_audit(record), after_audit(record))]
    figures: dict[str, Any] = {key: number(record.get(key)) for key in ("p_value", "level", "posterior")}
    figures["suspect"] = record.get("suspect")
    if table(record, "purified"):
        later = {**table(record, "purified"), "model": table(record, "model")}
        told.append(_Told("audit-after", judge_audit(later), after_audit(later)))
        figures["after_purification"] = _words(told[1])
    return {VERDICT: _verdict(record, told[0], "audit.json", figures), SARIF: _sarif(record, told)}


def _words(told: _Told) -> dict[str, Any]:
    found = told.verdict
    return {
        "verdict": found.kind,
        "tone": found.tone,
        "headline": found.headline,
        "text": visible(found.text),
        "what_now": list(told.what_now),
    }


def _verdict(record: Mapping[str, Any], told: _Told, name: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema": _SCHEMA,
        "tool": _tool(record),
        **_words(told),
        "warnings": _texts(record, "warnings"),
        "findings": _texts(record, "findings"),
        "figures": dict(figures),
        "model": {"path": table(record, "model").get("path"), "sha256": record.get("model_sha256")},
        "record": name,
        "report": "report.html",
    }


def _tool(record: Mapping[str, Any]) -> dict[str, str]:
    return {"name": _NAME, "version": str(table(record, "versions").get("neural_polarizer") or "unknown")}


def _texts(record: Mapping[str, Any], key: str) -> list[str]:
    return [visible(str(text)) for text in items(record, key)]


def _sarif(record: Mapping[str, Any], told: Sequence[_Told]) -> dict[str, Any]:
    place = {"uri": _uri(str(table(record, "model").get("path") or "model"))}
    sha256 = record.get("model_sha256")
    hashes = {"hashes": {"sha-256": sha256}} if isinstance(sha256, str) else {}
    texts = []
    for rule, found, advice in ((each.rule, each.verdict, " ".join(each.what_now)) for each in told):
        texts.append((rule, *_KIND_AND_LEVEL[found.tone], f"{found.headline}. {found.text} What to do: {advice}"))
    texts += [("run-warning", "fail", "warning", text) for text in _texts(record, "warnings")]
    texts += [("model-file", "fail", "warning", text) for text in _texts(record, "findings")]
    rules = list(dict.fromkeys(rule for rule, *_ in texts))
    return {
        "$schema": _SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        **_tool(record),
                        "rules": [{"id": rule, "shortDescription": {"text": _RULES[rule]}} for rule in rules],
                    }
                },
                "artifacts": [{"location": place, **hashes}],
                "results": [
                    {
                        "ruleId": rule,
                        "ruleIndex": rules.index(rule),
                        "kind": kind,
                        "level": level,
                        "message": {"text": visible(text)},
                        "locations": [{"physicalLocation": {"artifactLocation": {**place, "index": 0}}}],
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
