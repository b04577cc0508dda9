"""Bar charts of the results, as SVG that is readable on light and on dark pages.

Bars start at zero, and the bar of this reactor has its own colour.
"""

from html import escape

from .report import ordered, ratio_text, short

WIDTH, LABEL, BAR, GAP, TOP = 720, 90, 18, 8, 62
VALUES = 230  # width of the figure and its ratio, to the right of the longest bar
STYLE = (
    'text{font:13px system-ui,sans-serif;fill:#222}.title{font-weight:600}.note{fill:#666;font-size:12px}'
    '.bar{fill:#9aa5b1}.ours{fill:#2563eb}.spread{stroke:#444}'
    '@media(prefers-color-scheme:dark){text{fill:#ddd}.note{fill:#999}.bar{fill:#5b6673}.ours{fill:#60a5fa}'
    '.spread{stroke:#ccc}}'
)


def write(folder, result, ours):
    """Write a chart for each workload and metric into `folder`; return their paths."""
    paths = []
    for name, workload in result['workloads'].items():
        for metric_name, metric in workload['metrics'].items():
            rows = ordered(metric)
            if rows:
                path = folder / f'{name}-{metric_name.replace("_", "-")}.svg'
                path.write_text(chart(name, workload['about'], metric, rows, ours))
                paths.append(path)
    return paths


def chart(name, about, metric, rows, ours):
    """Return the SVG of one metric; `rows` has (peer, summary) pairs, the best first."""
    height = TOP + len(rows) * (BAR + GAP) + GAP
    longest = max(both['figure']['max'] for _, both in rows) or 1
    scale = (WIDTH - LABEL - VALUES) / longest
    title = f'{name}: {metric["unit"]} ({metric["better"]} is better)'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f'<title>{escape(title)}</title><style>{STYLE}</style>',
        f'<text class="title" x="8" y="18">{escape(title)}</text>',
        f'<text class="note" x="8" y="35">{escape(about)}</text>',
        f'<text class="note" x="8" y="51">median, line: min to max; ratio {ours}/peer (min–max)</text>',
    ]
    for index, (peer, both) in enumerate(rows):
        parts += bar(peer, both, TOP + index * (BAR + GAP), scale, peer == ours)
    return '\n'.join([*parts, '</svg>', ''])


def bar(peer, both, y, scale, is_ours):
    """Return the SVG of one row: name, bar, spread, median, and the ratio ours/peer."""
    figure, ratio = both['figure'], both['ratio']
    length, low, high = (figure[which] * scale for which in ('median', 'min', 'max'))
    middle, text = y + BAR / 2, y + BAR - 4
    kind = 'ours' if is_ours else 'bar'
    value = short(figure['median']) + (f' · {ratio_text(ratio)}' if ratio and not is_ours else '')
    return [
        f'<text x="{LABEL - 8}" y="{text}" text-anchor="end">{escape(peer)}</text>',
        f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}"/>',
        f'<path class="spread" d="M{LABEL + low:.1f} {middle}H{LABEL + high:.1f}"/>',
        f'<text x="{LABEL + max(length, high) + 6:.1f}" y="{text}">{value}</text>',
    ]
