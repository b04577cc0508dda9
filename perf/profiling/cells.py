"""The cells of the tables on the page of a profile."""

from __future__ import annotations

from .flame import COLOURS


def bar(percent: float | None, colour: str, kind: str = '') -> str:
    """Return a table cell: a percentage, with a bar in proportion; `colour` is a phase, or a kind of frame."""
    if percent is None:
        return '<td></td>'
    hue, saturation = COLOURS[colour]
    return (
        f'<td class="share {kind}" style="--share:{min(percent, 100):.2f}%;--hue:{hue};'
        f'--saturation:{saturation}%"><i></i>{percent:.1f}</td>'
    )
