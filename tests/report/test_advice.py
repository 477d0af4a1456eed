"""Three sentences for each verdict."""

from typing import Any, get_args

import pytest
from report_samples import sample_record

from neural_polarizer.report.run.advice import after_audit, what_now
from neural_polarizer.report.run.verdict import Kind, judge

RECORDS: dict[str, dict[str, Any]] = {
    "removed": {"acc": 0.97, "asr": 0.0},
    "costly": {"acc": 0.90, "asr": 0.0},
    "unproven": {"acc": None, "asr": 0.0},
    "reduced": {"acc": 0.97, "asr": 0.3},
    "not-removed": {"acc": 0.97, "asr": 0.9},
    "unknown": {},
}


def record_of(kind: str) -> dict[str, Any]:
    if kind == "untouched":
        return sample_record(guarded={"chosen": 0})
    if kind == "absent":
        return sample_record(before={"acc": 0.97, "asr": 0.01})
    return sample_record(after=RECORDS[kind])


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_verdict_has_three_sentences(kind: str) -> None:
    record = record_of(kind)
    assert judge(record).kind == kind
    sentences = what_now(record)
    assert len(sentences) == 3
    assert all(sentence.endswith(".") and "{" not in sentence for sentence in sentences)


def test_only_methods_with_a_guard_are_told_of_its_setting() -> None:
    record = record_of("costly")
    assert "guard.max_acc_drop" not in " ".join(what_now(record))
    assert "guard.max_acc_drop" in " ".join(what_now(record | {"guarded": {"chosen": 1.0}}))


def audited(verdict: str, *, posterior: float = 0.3, **more: Any) -> dict[str, Any]:
    usual = {"verdict": verdict, "makes_sense": True, "prior": 0.5, "posterior": posterior, "purified": None}
    return {**usual, **more}


@pytest.mark.parametrize("verdict", ["backdoor", "cannot say", "none seen"])
@pytest.mark.parametrize("after", [None, "backdoor", "cannot say", "none seen"])
def test_every_verdict_of_an_audit_has_three_sentences(verdict: str, after: str | None) -> None:
    found = after_audit(audited(verdict, purified=None if after is None else audited(after)))
    assert len(found) == 3
    assert after is None or "Purify it with polarizer purify" not in " ".join(found)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("backdoor", "backdoor", "Use neither model"),
        ("backdoor", "none seen", "Use the purified model"),
        ("none seen", "backdoor", "Use neither model"),
        ("none seen", "none seen", "Use this model only where"),
        ("cannot say", "cannot say", "Rely on neither model"),
    ],
)
def test_after_a_second_audit_the_advice_is_about_both_models(before: str, after: str, words: str) -> None:
    assert after_audit(audited(before, purified=audited(after)))[0].startswith(words)


@pytest.mark.parametrize(("posterior", "words"), [(0.6, "Do not take the model for clean"), (0.4, "Use this model")])
def test_a_likely_backdoor_without_a_name_is_no_clean_bill(posterior: float, words: str) -> None:
    record = audited("none seen", posterior=posterior)
    assert after_audit(record)[0].startswith(words)
    both = after_audit(audited("none seen", purified=record))
    assert both[0].startswith(words)
    assert "Purify it" not in " ".join(both)  # it has been


def test_a_model_that_does_not_know_the_images_is_no_suspect() -> None:
    lost = audited("cannot say", makes_sense=False)
    assert "--profile" in after_audit(lost)[0]
    assert "--profile" in after_audit(audited("backdoor", purified=lost))[0]
