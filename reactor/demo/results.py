"""The results of an experiment as a table."""

from __future__ import annotations

from typing import Any

from .load import quantile


def percentiles(ordered: list[float]) -> dict[str, float | None]:
    """Return the median, the 99th percentile and the maximum of sorted times."""
    shares = {'p50': 0.5, 'p99': 0.99, 'max': 1.0}
    return {name: round(quantile(ordered, share), 6) if ordered else None for name, share in shares.items()}


def each(total: float, connections: int) -> float | None:
    """Return the share of one connection, or None if there were no connections."""
    return round(total / connections, 1) if connections else None


def table(result: dict[str, Any], delay: float) -> str:
    """Format the results as a table."""
    server, reply, load = result['server'], result['reply_time'], result['load']
    slab, after = result['kernel_memory_bytes'], result['answers_after_release']
    kinds = ''.join(f', {count} {kind}' for kind, count in sorted(result['errors_by_kind'].items()))
    waited, processes = result['waited_for_all'], server['processes']
    rows = [
        ('open at once', f'{result["peak_open"]:,} of {result["connections"]:,} connections'),
        ('answered', f'{result["answered"]:,}'),
        ('errors', f'{result["errors"]:,}{kinds}'),
        ('opened at', f'{result["rate"]:,.0f} a second, without those that failed' if result['errors'] else
                      f'{result["rate"]:,.0f} a second') if result['rate'] else None,
        ('took', f'{result["seconds"]:.1f} s' + (f'; the answers waited {waited:.1f} s until all were open'
                                                 if waited else '')),
        ('reply time', f'p50 {reply["p50"]:.3f} s, p99 {reply["p99"]:.3f} s, max {reply["max"]:.3f} s, '
                       f'including the delay of {delay:g} s' if reply['p50'] is not None else 'none'),
        ('answers', f'p50 {after["p50"]:.3f} s, p99 {after["p99"]:.3f} s, max {after["max"]:.3f} s '
                    f'after all connections were open') if after['p50'] is not None else None,
        ('server memory', f'{server["memory_bytes"] / 1e6:.1f} MB ({server["memory"]}) in {processes} '
                          f'process{"es" if processes > 1 else ""}, '
                          f'{server["base_memory_bytes"] / 1e6:.1f} MB of it before the first connection'),
        ('', f'{server["bytes_per_connection"]:.0f} bytes per connection') if result['peak_open'] else None,
        ('kernel memory', f'{slab["before"] / 1e6:,.0f} MB before, {slab["open"] / 1e6:,.0f} MB with all open, '
                          f'{slab["after"] / 1e6:,.0f} MB after') if slab.get('before') else None,
        ('', f'{(slab["open"] - slab["before"]) / result["peak_open"]:,.0f} bytes for both ends of a connection')
        if slab.get('before') and result['peak_open'] else None,
        ('load memory', f'{load["bytes_per_connection"]:.0f} bytes per connection in {load["processes"]} '
                        f'process{"es" if load["processes"] > 1 else ""}') if result['peak_open'] else None,
        ('idle', f'{100 * result["idle_cpu"]:.1f} % of a core for all servers, while all were open and nothing moved')
        if result['idle_cpu'] is not None else None,
        ('server CPU', f'{server["cpu_us_per_connection"]:.1f} µs per connection') if result['peak_open'] else None,
        ('selector', f'{result["selector"]}, Python {result["python"]}'),
    ]  # fmt: skip
    return '\n'.join(f'{row[0]:<14} {row[1]}' for row in rows if row)
