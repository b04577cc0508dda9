"""The tables of whole stacks, for the page of a profile."""

from __future__ import annotations

from html import escape
from typing import Any

from .cells import bar
from .speedscope import KINDS


def row(name: str, found: dict[str, Any], phase: str) -> str:
    """Return one row of the table."""
    cells = [bar(found[f'{kind.lower()}_percent'], kind) for kind in KINDS]
    cells += [bar(found.get(f'{clock}_percent'), phase, 'clock') for clock in ('waiting', 'reactor')]
    return f'<tr><th scope="row"><code>{escape(name)}</code></th>{"".join(cells)}</tr>'


def table(result: dict[str, Any]) -> str:
    """Return the table by phase and callback."""
    rows = []
    for found in result['phases']:
        rows.append(row(found['phase'], found, found['phase']))
        rows += [row('\N{EM SPACE}' + each['callback'], each, found['phase']) for each in found['callbacks']]
    heads = ''.join(f'<th class="wide">{name} %</th>' for name in (*KINDS, 'waiting', 'reactor'))
    return TABLE.format(heads=heads, rows='\n'.join(rows))


def functions(result: dict[str, Any]) -> str:
    """Return the costliest functions of the kernel, for each phase and each callback."""
    parts = []
    for found in result['phases']:
        for name, each in [(found['phase'], found), *((of['callback'], of) for of in found['callbacks'])]:
            rows = '\n'.join(
                f'<tr>{bar(of["percent"], "kernel")}<td class="line"><code>{escape(of["function"])}</code>'
                f'<small>{escape(of["system_call"])}</small></td></tr>'
                for of in each['kernel_functions']
            )
            if rows:
                path = ' \N{RIGHTWARDS ARROW} '.join(map(escape, each['kernel_path']))
                parts.append(
                    f'<details{" open" if each["kernel_percent"] >= 10 else ""}><summary><code>{escape(name)}</code> '
                    f'<span class="quiet">{each["kernel_percent"]:.1f} % in the kernel</span></summary>'
                    f'<p class="quiet">Most of it by: <code>{path}</code></p>'
                    f'<div class="scroll"><table><tbody>{rows}</tbody></table></div></details>'
                )
    return '\n'.join(parts)


TABLE = """\
<div class="scroll"><table>
<thead><tr><th scope="row">phase, callback</th>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
<p class="quiet">Python: bytecode. C: the C functions that it calls. Kernel: system calls and interrupts. Reactor: how
long the phase lasted by the loop's own clock. Waiting: how much longer that is than it ran.</p>
"""
