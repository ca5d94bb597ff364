"""Figures as the page shows them: each says on hover, and to a screen reader, how it was taken."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from erase.evaluate.reports import Report
from erase.evaluate.tables import metric_rows, neighbours_line, protocol_of


def figure(text: str, protocol: str) -> str:
    """One figure; its protocol appears on hover and focus."""
    said = escape(protocol, quote=True)
    return (
        f'<span class="figure" tabindex="0" role="note" title="{said}" '
        f'aria-label="{escape(text, quote=True)}. {said}">{escape(text)}</span>'
    )


def note(text: str) -> str:
    """A line that stands where nothing is to be seen yet."""
    return f'<p class="empty">{escape(text)}</p>'


def shares_html(shares: Mapping[str, float], protocol: str) -> str:
    """Named shares in per cent, in one line."""
    parts = [f"{name} {figure(f'{100 * share:.1f} %', protocol)}" for name, share in shares.items()]
    return ", ".join(parts)


def report_html(report: Report) -> str:
    """The accuracies of base, erased and oracle as a table, with their intervals."""
    protocol = protocol_of(report)
    rows = [
        [escape(name), *(figure(cell, protocol) for cell in cells), n]
        for name, *cells, n in metric_rows(report)
    ]
    return (
        f"{_table(['', *report.metrics, 'n'], rows)}<p>{shares_html(report.derived, protocol)}. "
        "Suppressed under this protocol, not proved removed.</p>"
        f"<p>{escape(neighbours_line(report))}</p>"
    )


def markdown_table(text: str, protocol: str = "") -> str:
    """A Markdown table, whatever stands around it, as HTML that scrolls by itself.

    Cells say the protocol, if there is one.
    """
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = [
        [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]
    shown = [
        [escape(first), *(figure(c, protocol) if protocol else escape(c) for c in cells)]
        for first, *cells in rows
    ]
    return f'<div class="scroll">{_table(head, shown)}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of a head of texts, and rows of HTML that begin with what each is called."""
    top = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr><th scope='row'>{first}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for first, *cells in rows
    )
    return f'<table class="report"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
