"""Write the page of a profile: an index.html that needs no network and no other file.

The page shows phases.json or kernel.json, meta.json and the flame graphs, and computes nothing. Unknown figures are
left out. Warnings are always shown, and come first.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

from . import kernel_page
from .cells import bar
from .flame import VIEWS
from .phases import BETWEEN, verdict


def phase_rows(result: dict[str, Any]) -> str:
    """Return the rows of the table by phase."""
    rows = []
    for each in result['phases']:
        phase = each['phase']
        clock = bar(each['reactor_percent'], phase, 'clock')
        if phase == BETWEEN and result['reactor']:
            clock = '<td class="quiet">in _poll</td>'
        rows.append(
            f'<tr><th scope="row"><code>{escape(phase)}</code></th><td>{each["wall_samples"]:,}</td>'
            f'{bar(each["wall_percent"], phase)}{clock}{bar(each["cpu_percent"], phase)}</tr>'
        )
    return '\n'.join(rows)


def line_tables(result: dict[str, Any]) -> str:
    """Return a table of the costliest lines for each phase."""
    parts = []
    for each in result['phases']:
        rows = '\n'.join(
            f'<tr>{bar(line["wall_percent"], each["phase"])}{bar(line["cpu_percent"], each["phase"])}'
            f'<td class="line"><code>{escape(line["source"] or line["line"])}</code>'
            f'<small>{escape(line["line"])}</small></td></tr>'
            for line in each['lines']
        )
        if rows:
            parts.append(
                f'<details{" open" if each["wall_percent"] >= 10 else ""}><summary><code>{escape(each["phase"])}</code>'
                f' <span class="quiet">{each["wall_percent"]:.1f} % of the wall time</span></summary>'
                f'<div class="scroll"><table><thead><tr><th>wall %</th><th>CPU %</th><th class="line">line</th></tr>'
                f'</thead><tbody>{rows}</tbody></table></div></details>'
            )
    return '\n'.join(parts)


def banner(result: dict[str, Any], meta: dict[str, Any]) -> str:
    """Return the warnings, and whether the sampler and the reactor agree."""
    lines = [f'<p class="warning">WARNING: {escape(text)}</p>' for text in meta['warnings'] + result['warnings']]
    if result['agreement'] and result['agreement']['agrees']:
        lines.append(f'<p class="good">{escape(verdict(result["agreement"]).capitalize())}.</p>')
    return '\n'.join(lines)


def facts(result: dict[str, Any], meta: dict[str, Any]) -> str:
    """Return the list of facts: the recording, the versions, and what the reactor counted during the recording."""
    found = {
        'recorded': f'{meta["seconds"]} s each at {meta["rate"]} Hz',
        'commit': meta['commit'],
        'Python': meta['python'],
        'recorder': meta['recorder'],
        'system': meta['system'],
        'date': meta['date'],
    }
    for name, recording in meta['recordings'].items():
        if recording['samples'] is not None:
            found[f'{name} samples'] = f'{recording["samples"]:,}, {recording["errors"]:,} failed'
    if result['reactor']:
        spent = result['reactor']
        found['CPU used'] = f'{100 * spent["cpu_seconds"] / spent["elapsed"]:.0f} % of a core, system calls included'
        for name, count in spent['counts'].items():
            if count:
                rate = '' if name in ('incoming', 'outgoing') else f' ({count / spent["elapsed"]:,.0f}/s)'
                found[name] = f'{count:,}{rate}'
    return '\n'.join(
        f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>' for name, value in found.items() if value
    )


def by_phase(result: dict[str, Any]) -> str:
    """Return the tables of a profile of wall time and CPU time."""
    clock = '<th class="wide">reactor %</th>' if result['reactor'] else '<th></th>'
    return BY_PHASE.format(clock=clock, phases=phase_rows(result), lines=line_tables(result))


def whole_stacks(result: dict[str, Any]) -> str:
    """Return the tables of a profile of whole stacks."""
    return WHOLE_STACKS.format(table=kernel_page.table(result), functions=kernel_page.functions(result))


def page(result: dict[str, Any], meta: dict[str, Any], graphs: dict[str, str], changes: str = '') -> str:
    """Return the text of index.html; `changes` is the comparison with an earlier profile, as a text."""
    drawn = '\n'.join(f'<div class="graph" id="{view}">{svg}</div>' for view, svg in graphs.items())
    return PAGE.format(
        target=escape(meta['target']),
        style=STYLE,
        banner=banner(result, meta),
        tables=by_phase(result) if 'wall_samples' in result else whole_stacks(result),
        changes=f'<h2>Compared with an earlier profile</h2>\n<pre class="scroll">{escape(changes)}</pre>'
        if changes
        else '',
        graphs=drawn,
        facts=facts(result, meta),
    )


STYLE = """
:root{color-scheme:light dark;--ink:#1d2228;--quiet:#5b6570;--paper:#fff;--edge:#dfe3e8;--light:80%;
--good:#1a7f4b;--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--ink:#e8ebee;--quiet:#9aa5b1;--paper:#15191e;--edge:#2c343d;
--light:33%;--good:#5fd39a;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1280px;padding:28px 24px 60px;background:var(--paper);color:var(--ink);
font:15px/1.5 ui-sans-serif,system-ui,"DejaVu Sans",Verdana,sans-serif}
h1{font-size:26px;margin:0 0 4px}
h2{font-size:18px;margin:36px 0 8px}
code{font:13px ui-monospace,"DejaVu Sans Mono",Consolas,monospace}
.quiet,small{color:var(--quiet)}
.good,.warning{border-left:4px solid;padding:6px 12px;margin:12px 0}
.good{color:var(--good)}
.warning{color:var(--bad);font-weight:600}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;border-bottom:1px solid var(--edge);text-align:right;white-space:nowrap}
thead th{color:var(--quiet);font-weight:500;font-size:13px}
th[scope=row],th.line,td.line{text-align:left;font-weight:400}
td.line{width:100%}
td.line small{display:block;font-size:12px}
th.wide{width:24%}
.share{position:relative;z-index:0;min-width:84px}
.share i{position:absolute;z-index:-1;right:0;top:3px;bottom:3px;width:var(--share);border-radius:3px;
background:hsl(var(--hue) var(--saturation) var(--light))}
.share.clock i{background:repeating-linear-gradient(-45deg,
hsl(var(--hue) var(--saturation) var(--light)) 0 5px,transparent 5px 8px)}
details{margin:6px 0 10px}
summary{cursor:pointer;padding:4px 0}
.graph{overflow:hidden;border:1px solid var(--edge);border-radius:8px;padding:8px;margin:14px 0}
.graph svg{display:block}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:10px 24px;margin:0}
dt{color:var(--quiet);font-size:13px}
dd{margin:0;overflow-wrap:anywhere}
pre{font:13px/1.4 ui-monospace,"DejaVu Sans Mono",Consolas,monospace}
"""

BY_PHASE = """\
<h2>By phase</h2>
<div class="scroll"><table>
<thead><tr><th scope="row">phase</th><th>samples</th><th class="wide">wall %</th>{clock}<th class="wide">CPU %</th></tr>
</thead>
<tbody>
{phases}
</tbody>
</table></div>
<p class="quiet">Wall: all time, including waiting. Reactor: the same time by the loop's own counters; the two should
agree. CPU: samples in which a thread held the GIL. System calls release the GIL, so only wall time includes them.</p>
<h2>Costliest lines</h2>
{lines}
"""

WHOLE_STACKS = """\
<h2>By phase and callback</h2>
{table}
<h2>Costliest functions of the kernel</h2>
{functions}
"""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>Profile of {target}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<h1>Profile of {target}</h1>
<p class="quiet">Where the turns of the reactor spend their time, as measured by the sampler and by the reactor's own
clock.</p>
{banner}
{tables}
{changes}
<h2>Flame graphs</h2>
{graphs}
<h2>Measured</h2>
<dl>
{facts}
</dl>
</body>
</html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m perf.profiling.page', description='Write index.html into the folder of a profile.'
    )
    parser.add_argument('out', type=Path)
    out = parser.parse_args().out
    found = next(out / name for name in ('phases.json', 'kernel.json') if (out / name).exists())
    result, meta = (json.loads(path.read_text()) for path in (found, out / 'meta.json'))
    names = [*VIEWS, *(f'diff-{view}' for view in VIEWS)]
    graphs = {name: (out / f'{name}.svg').read_text() for name in names if (out / f'{name}.svg').exists()}
    changes = out / 'diff.txt'
    text = page(result, meta, graphs, changes.read_text() if changes.exists() else '')
    (out / 'index.html').write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
