"""The report as a single HTML page, without external requests or scripts."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape

from ensemble_distill import __version__
from ensemble_distill.evaluation.names import STUDENT
from ensemble_distill.evaluation.result import Evaluation
from ensemble_distill.evaluation.tables import Table
from ensemble_distill.reporting.dark import INK, PAPER, with_dark
from ensemble_distill.reporting.drawing import Picture
from ensemble_distill.reporting.verdict import Verdict
from ensemble_distill.runtime.names import harmless

SHORT = 240  # characters beyond which a figure's description is folded
LONG = 40  # rows beyond which a table is folded, since its figure shows them

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d1d1f; --quiet: #5c5c63; --line: #d9d9de; --card: #f5f5f7;
  --yes: #1b6e3c; --no: #a3260f; --maybe: #6b5900; }
@media (prefers-color-scheme: dark) { :root { --paper: PAPER; --ink: INK; --quiet: #a3a3ab; --line: #3a3a40;
  --card: #222226; --yes: #6fce94; --no: #ff9d87; --maybe: #e3cb66; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.25rem; }
summary { font-size: 1.15rem; font-weight: 600; margin: 2rem 0 0.25rem; cursor: pointer; }
summary.quiet { font-size: 0.9rem; font-weight: 400; margin: 0.25rem 0; }
p { margin: 0.4rem 0; } .quiet { color: var(--quiet); font-size: 0.9rem; }
.verdict { background: var(--card); border-left: 6px solid var(--maybe); padding: 0.8rem 1rem; margin: 1rem 0; }
.verdict.yes { border-color: var(--yes); } .verdict.no { border-color: var(--no); }
.members { display: flex; flex-wrap: wrap; gap: 0.75rem; margin: 1rem 0; padding: 0; list-style: none; }
.members li { flex: 1 1 9rem; background: var(--card); padding: 0.6rem 0.8rem; }
.members b { display: block; font-size: 1.7rem; line-height: 1.2; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; }
caption { text-align: left; font-weight: 600; padding: 0.3rem 0; }
th, td { padding: 0.2rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tbody th[scope=rowgroup] { color: var(--quiet); font-weight: 600; padding-top: 0.7rem; }
thead th:first-child, tbody th[scope=row] { position: sticky; left: 0; background: var(--paper); }
tbody th[scope=row] { font-weight: 400; }
tbody th[scope=rowgroup] span { position: sticky; left: 0.6rem; display: inline-block; }
@media (max-width: 40rem) { tbody th[scope=row] { white-space: normal; min-width: 7.5rem; }
  tbody th[scope=rowgroup] span { white-space: normal; max-width: calc(100vw - 4rem); } }
figure { margin: 0.5rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { max-width: 44rem; }
@media print { body { max-width: none; font-size: 11pt; } figure, table { break-inside: avoid; }
  .scroll { overflow: visible; } }
""".replace("PAPER", PAPER).replace("INK", INK)


def page(
    found: Evaluation,
    verdict: Verdict,
    tables: Sequence[Table],
    remarks: Sequence[str],
    pictures: Sequence[Picture],
    data: str,
) -> str:
    """The whole page; names from users' files are escaped.

    Args:
        data: the name of the file with the figures' data.
    """
    first, *others = tables
    title = f"{found.run} on {found.rows:,} {found.task.answers_called} of {found.split}"
    body = [
        f"<h1>{_text(title)}</h1>",
        *_first_screen(found, verdict),
        *(f"<p>{_text(remark)}</p>" for remark in remarks),
        *_table(first),
        *(part for picture in pictures for part in _figure(picture)),
        *(part for table in others for part in _folded(table)),
        f'<p class="quiet">edistill {__version__}. The data behind the figures is in {_text(data)}, next to it.</p>',
    ]
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>"
    )
    return head + "\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"


def _first_screen(found: Evaluation, verdict: Verdict) -> Iterator[str]:
    kind = {True: "yes", False: "no", None: "maybe"}[verdict.ship]
    reasons = "".join(f"<p>{_text(reason)}</p>" for reason in verdict.reasons)
    yield f'<div class="verdict {kind}"><p><strong>{_text(verdict.headline)}</strong></p>{reasons}</div>'
    worth = found.worth and found.worth[STUDENT]
    if worth and found.ladder is not None:
        each = {f"worth in {rung}": worth.counted(rung) for rung in ("prediction", "uncertainty", "fidelity")}
        if not math.isnan(worth.cost_in_members):
            each["costs in latency"] = f"{worth.cost_in_members:.1f}"
        told = "".join(f"<li><b>{count}</b>{name}</li>" for name, count in each.items() if count is not None)
        yield f'<ul class="members">{told}</ul>'
        yield f'<p class="quiet">Counted in members, of which the ensemble has {len(found.ladder.mean_kl)}.</p>'


def _table(table: Table) -> Iterator[str]:
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns)
    lines = []
    for section, rows in table.sections.items():
        lines.append(f'<tr><th scope="rowgroup" colspan="{len(table.columns)}"><span>{_text(section)}</span></th></tr>')
        lines += [f"<tr>{''.join(_row(row))}</tr>" for row in rows]
    yield f"<h2>{_text(table.title)}</h2>"
    yield (
        '<div class="scroll" tabindex="0"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    yield from (f'<p class="quiet">{_text(line)}</p>' for line in table.caption)


def _row(cells: Sequence[str]) -> Iterator[str]:
    """A row whose label stays visible while its numbers are scrolled."""
    label, *numbers = cells
    yield f'<th scope="row">{_text(label)}</th>'
    yield from (f"<td>{_text(number)}</td>" for number in numbers)


def _folded(table: Table) -> Iterator[str]:
    rows = sum(len(of) for of in table.sections.values())
    yield f"<details{'' if rows > LONG else ' open'}>"
    _heading, *rest = _table(table)
    yield f"<summary>{_text(table.title)}</summary>"
    yield from rest
    yield "</details>"


def _figure(picture: Picture) -> Iterator[str]:
    source = b64encode(with_dark(picture.svg)).decode("ascii")
    yield f'<h2 id="{picture.key}">{_text(picture.title)}</h2>'
    yield (
        f'<figure><img src="data:image/svg+xml;base64,{source}" alt="{_text(picture.told)}">'
        f'<figcaption>{_told(picture)}<p class="quiet">{_text(picture.reading)}</p></figcaption></figure>'
    )


def _told(picture: Picture) -> str:
    words = f"<p>{_text(picture.told)}</p>"
    return (
        words if len(picture.told) <= SHORT else f'<details><summary class="quiet">In words</summary>{words}</details>'
    )


def _text(words: str) -> str:
    return escape(harmless(words))
