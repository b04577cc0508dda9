"""The report: a tree for JSON, and a table for the terminal.

A ratio is always shown with its interval and with the number of rounds that it is computed from.
"""

import json

from .ratios import at_equal_wakeups, ratios, summary, values


def summaries(workloads, rounds, ours, syscalls):
    """Return, by workload and metric, the figures of each peer and the ratios ours/peer."""
    found = {}
    for workload in workloads:
        figures = rounds.figures(workload.name)
        metrics = {m.name: one_metric(m, figures, ours) for m in workload.metrics}
        if workload.name in syscalls:
            metrics['syscalls_per_request'] = counted(syscalls[workload.name], ours)
        found[workload.name] = {
            'about': workload.about,
            'rounds': len(figures),
            'metrics': metrics,
            'failures': rounds.failures(workload.name),
        }
    return found


def one_metric(metric, figures, ours):
    """Return the summary of one metric for each peer; `figures` has one dict for each round."""
    names = list(dict.fromkeys(name for one in figures for name in one))
    by_peer = {}
    for name in names:
        by_peer[name] = {
            'figure': summary(values(figures, metric.name, name)),
            'ratio': summary(ratios(figures, metric.name, ours, name)),
        }
        if metric.wakeups:
            by_peer[name]['ratio_at_equal_wakeups'] = summary(at_equal_wakeups(figures, metric, ours, name))
    return {'unit': metric.unit, 'better': metric.better, 'peers': by_peer}


def counted(counts, ours):
    """Return the summary of system calls, which are counted in a single pass and so have no spread."""
    by_peer = {name: {'figure': summary([n]), 'ratio': None} for name, n in counts.items()}
    for name, n in counts.items():
        if ours in counts:
            by_peer[name]['ratio'] = summary([counts[ours] / n])
    return {'unit': 'system calls/request', 'better': 'less', 'peers': by_peer}


def write(path, result):
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + '\n')


def table(result, ours):
    """Return the table for the terminal: each figure with the ratio ours/peer."""
    lines = [f'medians; ratio {ours}/peer within a round: median (min–max)']
    if result['scale'] != 1:
        lines.append(f'quick run: counts of connections and calls are multiplied by {result["scale"]:g}')
    lines.append('')
    for name, workload in result['workloads'].items():
        lines.append(f'{name}: {workload["about"]}; rounds: {workload["rounds"]}')
        for metric in workload['metrics'].values():
            lines.append(f'  {metric["unit"]} ({metric["better"]} is better)')
            lines += [row(peer, both, peer == ours) for peer, both in ordered(metric)]
        lines += [f'    {peer:<10} failed: {reason}' for peer, reason in workload['failures'].items()]
        lines.append('')
    lines += [f'left out: {peer}: {reason}' for peer, reason in result['left_out'].items()]
    return '\n'.join(lines)


def ordered(metric):
    """Return (peer, summary) for each peer that has a figure, the best first."""
    found = [(peer, both) for peer, both in metric['peers'].items() if both['figure']]
    return sorted(found, key=lambda item: item[1]['figure']['median'], reverse=metric['better'] == 'more')


def row(peer, both, is_ours):
    text = f'    {peer:<10} {short(both["figure"]["median"]):>12}'
    if is_ours or both['ratio'] is None:
        return text
    equal = both.get('ratio_at_equal_wakeups')
    return f'{text}   {ratio_text(both["ratio"])}' + (f'   at equal wake-ups {ratio_text(equal)}' if equal else '')


def ratio_text(ratio):
    return '{median:.3f} ({min:.3f}–{max:.3f})'.format_map(ratio)


def short(figure):
    """Return a figure as text: rounded to an integer from 1,000 on, otherwise with four significant digits."""
    return f'{figure:,.0f}' if abs(figure) >= 1000 else f'{figure:.4g}'
