"""A table as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from neural_polarizer.report.bench.names import RATES, number_text, signed_text, text_of, unit_text, value_text
from neural_polarizer.report.bench.tables import FAILED_ATTACK, REPEATS, Cell, Figure, Key, Table, error_of
from neural_polarizer.report.values import visible

_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    FAILED_ATTACK: r"\dag{}",
    **{char: f"\\{char}" for char in "{}$&#_%"},
}


class _Style(NamedTuple):
    """What the formats with a cell for each number differ in."""

    best: str
    second: str
    spread: str
    failed: str


def notes(table: Table) -> tuple[str, ...]:
    """How to read a table, in sentences."""
    rates = [value_text(value) for value in table.values if value in RATES]
    found = [f"{', '.join(rates)} in percent."] if rates else []
    found += [
        f"{value_text(value)} in {unit_text(value)}."
        for value in table.values
        if value not in RATES and unit_text(value)
    ]
    if any(cell.attack_failed for cell in table.cells.values()):
        found.append(
            f"{FAILED_ATTACK} The attack failed (ACC less than half of that of the best victim of the network and data "
            "set, or ASR less than 50): no mean over the attacks counts it."
        )
    found.append("Each number is the mean over the seeds \N{PLUS-MINUS SIGN} the sample standard deviation.")
    figures = [figure for cell in table.cells.values() for figure in cell.figures.values()]
    if any(figure.rank for figure in figures):
        found.append("Among the defenses, the best is bold and the second best is underlined.")
    if any(not cell.entries for cell in table.cells.values()):
        found.append(
            "The means over the attacks are means of the numbers shown, also those of DER, where the paper averages "
            "ACC and ASR first; there is none where a number is missing."
        )
    return tuple(found)


def failures(table: Table) -> tuple[str, ...]:
    """What went wrong, a line for each failed run."""
    return tuple(
        f"{text_of(entry.labels, (*table.axes, *REPEATS))}: {error_of(entry)}"
        for cell in table.measured
        for entry in cell.failed
    )


def render_markdown(table: Table) -> str:
    """A heading, the table, and how to read it."""
    style = _Style("**{}**", "<ins>{}</ins>", "{} \N{PLUS-MINUS SIGN} {}", FAILED_ATTACK)
    heads = [*map(_markdown, table.corner_texts)]
    for column in table.columns:
        above = [_markdown(text) for text in table.column_texts(column)]
        heads += [" ".join([*above, _markdown(value_text(value))]) for value in table.values]
    lines = [_row(heads), _row(["---"] * len(table.row_axes) + ["---:"] * (len(heads) - len(table.row_axes)))]
    lines += [_row([*map(_markdown, table.row_texts(row)), *_cells(table, row, style)]) for row in table.rows]
    parts = [f"# {_markdown(table.title)}", "\n".join(lines), _reading(table)]
    if failed := failures(table):
        parts.append("\n".join(["Failed:", "", *(f"- {_markdown(text)}" for text in failed)]))
    return "\n\n".join(parts) + "\n"


def render_latex(table: Table) -> str:
    """A ``table`` environment for the package booktabs."""
    style = _Style(r"\textbf{{{}}}", r"\underline{{{}}}", r"{} $\pm$ {}", _LATEX[FAILED_ATTACK])
    left, each = len(table.row_axes), len(table.values)
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering"]
    lines.append(f"\\caption{{{_latex(f'{table.title}. {_reading(table)}')}}}")
    lines += [f"\\begin{{tabular}}{{{'l' * left}{'r' * each * len(table.columns)}}}", r"\toprule"]
    for level in table.head_rows:
        spans = [f"\\multicolumn{{{span.length * each}}}{{c}}{{{_latex(span.text)}}}" for span in level]
        lines.append(_line([*[""] * left, *spans]))
        starts = [(left + span.first * each + 1, left + (span.first + span.length) * each) for span in level]
        lines.append("".join(f"\\cmidrule(lr){{{first}-{last}}}" for first, last in starts))
    values = [_latex(value_text(value)) for value in table.values]
    lines += [_line([*map(_latex, table.corner_texts), *values * len(table.columns)])]
    for _, rows in groupby(table.rows, key=table.averaged):
        lines.append(r"\midrule")
        lines += [_line([*map(_latex, table.row_texts(row)), *_cells(table, row, style)]) for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def render_csv(table: Table) -> str:
    """One line for each number, with all labels of its cell; rates are fractions in [0, 1]."""
    axes = list(dict.fromkeys(axis for cell in table.cells.values() for axis in cell.labels))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = ("value", "mean", "spread", "n", "planned", "failed", "missing", "paper", "difference", "rank", "errors")
    writer.writerow([_spreadsheet(head) for head in (*axes, *heads, "attack_failed")])
    for cell in table.cells.values():
        for value, figure in cell.figures.items():
            counts = (len(cell.entries), len(cell.failed), cell.missing)
            fields = (
                *(cell.labels.get(axis, "") for axis in axes),
                *(value, figure.mean, figure.spread, figure.n, *counts),
                *(figure.paper, figure.delta, figure.rank, "; ".join(dict.fromkeys(map(error_of, cell.failed)))),
                int(cell.attack_failed),
            )
            writer.writerow([_spreadsheet(field) if isinstance(field, str) else field for field in fields])
    return file.getvalue()


def _reading(table: Table) -> str:
    cited = "In parentheses: the number of runs. In brackets: the paper, and the difference to it."
    return " ".join([*notes(table), cited])


def _cells(table: Table, row: Key, style: _Style) -> list[str]:
    found = []
    for column in table.columns:
        cell = table.cells.get((row, column))
        found += ["" if cell is None else _figure(value, cell, cell.figures[value], style) for value in table.values]
    return found


def _figure(value: str, cell: Cell, figure: Figure, style: _Style) -> str:
    if figure.mean is None:
        parts = ["failed" if cell.failed else "-"]
    else:
        text = number_text(value, figure.mean)
        ranked = {"best": style.best, "second": style.second, None: "{}"}[figure.rank].format(text)
        parts = [ranked if figure.spread is None else style.spread.format(ranked, number_text(value, figure.spread))]
        parts[0] += style.failed if cell.attack_failed else ""
        parts += [f"({figure.n})"] if cell.entries else []
    if figure.paper is not None:
        cited = [number_text(value, figure.paper)]
        cited += [] if figure.delta is None else [signed_text(value, figure.delta)]
        parts.append(f"[{'; '.join(cited)}]")
    return " ".join(parts)


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _line(texts: Sequence[str]) -> str:
    line = " & ".join(texts) + r" \\"
    return "{}" + line if line.startswith(("[", "*")) else line  # or the line before would take it for an option


def _one_line(text: str) -> str:
    return " ".join(visible(text).split())


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", _one_line(text))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in _one_line(text))


def _spreadsheet(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    shown = visible(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@", "\t", "\r")) else shown
