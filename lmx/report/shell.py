"""What all pages share: the style, tables, folds, figures, and the frame around them. All text that is handed in is escaped."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --bad: light-dark(#b3261e, #ff8a80); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
.dim { opacity: .65; } .bad { color: var(--bad); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 1rem; }
.plots.small { grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); }
figure { margin: 0; } figure:only-child { max-width: 640px; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; } svg text { fill: currentColor; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; } pre { background: var(--soft); padding: .7rem; overflow-x: auto; white-space: pre-wrap; border-radius: 6px; }
tr.best td { font-weight: 600; background: #ff7f0e22; }
.answer { background: var(--soft); border-left: 4px solid #ff7f0e; padding: .1rem 1rem; margin: 1rem 0; } .answer p { margin: .6rem 0; }
.answer .lead { font-size: 1.15rem; }
pre b { color: #2a7; } summary { cursor: pointer; } code, pre, td.value { font-family: ui-monospace, monospace; font-size: .88rem; }
td.value { overflow-wrap: anywhere; } .wide { overflow-x: auto; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document of parts that are HTML already."""
    body = '\n'.join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>{body}</body></html>\n'
    )


def write(target: pathlib.Path, text: str) -> pathlib.Path:
    """Writes a file by one rename."""
    part = target.with_name(target.name + '.part')
    part.write_text(text, 'utf-8', errors='replace')  # half a surrogate pair, cut off within a sample
    part.replace(target)
    return target


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], classes: Mapping[int, str] | None = None) -> str:
    """A table of text; `classes`: row -> the style's class for it."""
    lines = ['<tr>' + ''.join(f'<th>{html.escape(str(cell))}</th>' for cell in head) + '</tr>']
    for index, row in enumerate(rows):
        kind = f' class="{classes[index]}"' if classes and index in classes else ''
        lines.append(f'<tr{kind}>' + ''.join(f'<td class="number">{html.escape(str(cell))}</td>' for cell in row) + '</tr>')
    return f'<table>{"".join(lines)}</table>'


def figures(drawn: Sequence[tuple[str, str]], kind: str = 'plots') -> str:
    """(caption, svg) side by side, as many as there is room for."""
    each = ''.join(f'<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>' for caption, svg in drawn)
    return f'<div class="{kind}">{each}</div>'


def fold(title: str, inner: str, is_open: bool = False) -> str:
    """HTML that a click shows."""
    return f'<details{" open" if is_open else ""}><summary>{html.escape(title)}</summary>{inner}</details>'


def tree(node: Mapping[str, Any], title: str, is_open: bool) -> str:
    rows = []
    for key, value in node.items():
        if isinstance(value, Mapping):
            rows.append(f'<tr><td>{html.escape(str(key))}</td><td>{tree(value, value.get("call", "") or "…", True)}</td></tr>')
        else:
            shown = value if isinstance(value, str) else repr(value)
            cell = (
                f'<details><summary>{len(shown):,} characters</summary><pre>{html.escape(shown)}</pre></details>'
                if len(shown) > 400
                else html.escape(shown)
            )
            rows.append(f'<tr><td>{html.escape(str(key))}</td><td class="value">{cell}</td></tr>')
    return f'<details{" open" if is_open else ""}><summary>{html.escape(str(title))}</summary><table>{"".join(rows)}</table></details>'
