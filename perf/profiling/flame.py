"""Draw the flame graph of a recording: an SVG file that can be zoomed and searched.

Every frame is a nested `<svg>` whose position is given in percent, so the graph fits any width and clips its own texts,
even where scripts do not run. The script only zooms, searches and shows details. A frame is a function; its tooltip has
the lines of code. It is coloured by the phase in which it runs, in a graph of whole stacks by its kind (Python, C or
kernel), and in a graph of two recordings by how much its share has changed. `--picture` draws a graph for pages that
show images and run no scripts: it has a fixed width, a legend and no script.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path
from zlib import crc32

from .phases import BETWEEN, FUNCTIONS, OUTSIDE, PHASES
from .speedscope import KINDS, Frame, Stack, read

ROW = 19  # height of a row in pixels
TOP = 76  # pixels above the first row
LINES_SHOWN = 5  # lines of a function that its tooltip shows
WIDE_ENOUGH = 3  # pixels; a picture leaves out narrower frames, because it cannot be zoomed
SHADES = 4
VIEWS = {
    'wall': 'wall time, including waiting',
    'cpu': 'CPU time of Python: samples in which a thread held the GIL',
    'native': 'wall time, with the frames of C functions',
    'kernel': 'CPU time of Python, C and the kernel',
}
PHASE_COLOURS = {  # hue and saturation of each phase
    '_poll': (208, 45),
    '_dispatch': (27, 88),
    '_run_timers': (140, 42),
    '_run_soon': (265, 58),
    '_run_completions': (335, 68),
    BETWEEN: (45, 14),
    OUTSIDE: (45, 8),
}
KIND_COLOURS = dict(zip(KINDS, ((208, 60), (45, 85), (12, 75)), strict=True))  # hue and saturation of each kind
CHANGE_COLOURS = {  # hue and saturation, from a much smaller share than before to a much larger one
    'much less': (212, 90),
    'less': (208, 60),
    'a little less': (205, 35),
    'unchanged': (45, 8),
    'a little more': (14, 40),
    'more': (8, 65),
    'much more': (4, 90),
}
COLOURS = PHASE_COLOURS | KIND_COLOURS | CHANGE_COLOURS
GROUPS = tuple(COLOURS)


class Node:
    """A function at one place in the tree of calls.

    Attributes:
        group: What its colour shows: its phase; its kind in a graph of whole stacks; its change in a graph of two.
        note: A last line for its tooltip.
    """

    def __init__(self, label: str, group: str) -> None:
        self.label = label
        self.group = group
        self.note = ''
        self.count = 0
        self.own = 0  # samples in which this function was the innermost frame
        self.lines: Counter[int] = Counter()
        self.children: dict[tuple[str, str], Node] = {}

    def child(self, key: tuple[str, str], label: str, group: str) -> Node:
        """Return the node of a function called from here; create it if it is new."""
        if key not in self.children:
            self.children[key] = Node(label, group)
        return self.children[key]


def tree(threads: dict[str, list[Stack]], by_kind: bool = False) -> Node:
    """Merge all samples from the outermost frame inwards.

    If there are several threads, the tree has a level for the threads.
    """
    root = Node('all', OUTSIDE)
    for name, stacks in threads.items():
        top = root.child((name, ''), name, OUTSIDE) if len(threads) > 1 else root
        for stack in stacks:
            root.count += 1
            top.count += top is not root
            add(top, stack, by_kind)
    return root


def add(top: Node, stack: Stack, by_kind: bool) -> None:
    """Add one sample."""
    node, phase = top, OUTSIDE
    for frame in stack:
        if phase not in PHASES:
            phase = FUNCTIONS.get(frame.function) or (BETWEEN if frame.function == 'Loop._turn' else phase)
        node = node.child((frame.function, frame.file), label(frame), frame.kind if by_kind else phase)
        node.count += 1
        node.lines[frame.line] += 1
    node.own += 1


def label(frame: Frame) -> str:
    """Return the text in a frame's box."""
    return f'{frame.function} ({frame.path})' if frame.file and frame.kind == 'Python' else frame.function


def walk(node: Node, left: int = 0, depth: int = 0) -> Iterator[tuple[Node, int, int]]:
    """Yield (node, samples to its left, depth); siblings are sorted by name, so that two graphs can be compared."""
    yield node, left, depth
    for _, child in sorted(node.children.items()):
        yield from walk(child, left, depth + 1)
        left += child.count


def tooltip(node: Node, total: int) -> str:
    """Return the tooltip of a frame: its share, its phase and its lines."""
    text = f'{node.label}\n{node.count:,} samples, {100 * node.count / total:.1f} %'
    if node.own and node.children:
        text += f', {100 * node.own / total:.1f} % in itself'
    if node.group in PHASES:
        text += f', in {node.group}'
    for line, count in node.lines.most_common(LINES_SHOWN):
        if line:
            text += f'\nline {line}: {100 * count / total:.1f} %'
    return f'{text}\n{node.note}' if node.note else text


def box(node: Node, left: int, depth: int, total: int) -> str:
    """Return the SVG of one frame."""
    place = f'x="{100 * left / total:.4f}%" y="{TOP + depth * ROW}" width="{100 * node.count / total:.4f}%"'
    shade = crc32(node.label.encode()) % SHADES
    return (
        f'<svg class="frame p{GROUPS.index(node.group)} s{shade}" {place} height="{ROW - 1}">'
        f'<title>{escape(tooltip(node, total))}</title><rect width="100%" height="100%" rx="2"/>'
        f'<text x="4" y="13">{escape(node.label)}</text></svg>'
    )


def style() -> str:
    """Return the stylesheet, with colours for light and dark pages."""
    groups = ''.join(
        f'.flame .p{index}{{--hue:{hue};--saturation:{saturation}%}}'
        for index, (hue, saturation) in enumerate(COLOURS.values())
    )
    shades = ''.join(f'.flame .s{shade}{{--shade:{shade}}}' for shade in range(SHADES))
    return groups + shades + STYLE


def draw(root: Node, title: str, subtitle: str) -> str:
    """Return the SVG of an interactive graph."""
    nodes = list(walk(root)) if root.count else []
    height = TOP + ROW * (1 + max((depth for _, _, depth in nodes), default=0)) + 8
    boxes = '\n'.join(box(node, left, depth, root.count) for node, left, depth in nodes)
    return FRAME.format(
        title=escape(title), subtitle=escape(subtitle), height=height, style=style(), boxes=boxes, script=SCRIPT
    )


def picture(root: Node, title: str, subtitle: str, width: int) -> str:
    """Return an SVG that is shown as an image, `width` pixels wide."""
    seen = [found for found in walk(root) if found[0].count * width >= WIDE_ENOUGH * root.count > 0]
    height = TOP + ROW * (1 + max((depth for _, _, depth in seen), default=0)) + 8
    boxes = '\n'.join(box(node, left, depth, root.count) for node, left, depth in seen)
    groups = [group for group in (*PHASES, *KINDS) if any(node.group == group for node, _, _ in seen)]
    legend = ''.join(
        f'<g class="p{GROUPS.index(group)} s1 frame"><rect x="{4 + 150 * n}" y="53" width="13" height="13" rx="2"/>'
        f'<text x="{22 + 150 * n}" y="64">{group}</text></g>'
        for n, group in enumerate(groups)
    )
    return PICTURE.format(
        title=escape(title), subtitle=escape(subtitle), width=width, height=height, style=style(), legend=legend,
        boxes=boxes,
    )  # fmt: skip


STYLE = """
.flame{--ink:#1d2228;--quiet:#5b6570;--paper:#fff;--light:79%;--step:2.6%;--mark:hsl(300 85% 72%);
background:var(--paper);
font:12px ui-sans-serif,system-ui,"DejaVu Sans",Verdana,sans-serif;color-scheme:light dark}
@media (prefers-color-scheme:dark){.flame{--ink:#e8ebee;--quiet:#9aa5b1;--paper:#15191e;--light:31%;
--mark:hsl(300 70% 42%)}}
.flame text{fill:var(--ink);pointer-events:none}
.flame .title{font-size:16px;font-weight:600}
.flame .quiet{fill:var(--quiet)}
.flame .frame{cursor:pointer;overflow:hidden}
.flame .frame rect{fill:hsl(var(--hue) var(--saturation) calc(var(--light) + var(--shade) * var(--step)));
stroke:var(--paper);stroke-width:.6}
.flame .frame:hover rect{stroke:var(--ink);stroke-width:1.5}
.flame .match rect{fill:var(--mark)}
.flame .above{opacity:.55}
.flame .gone{display:none}
.flame input{box-sizing:border-box;width:100%;height:25px;padding:2px 8px;font:inherit;color:var(--ink);
background:transparent;border:1px solid var(--quiet);border-radius:6px}
.flame .reset{cursor:pointer;pointer-events:all;text-decoration:underline}
"""

# The script must contain nothing that XML or HTML would parse as a tag or an entity.
SCRIPT = """
(function () {
  const flame = document.currentScript.closest('.flame');
  const find = name => flame.querySelector(name);
  const details = find('.details'), reset = find('.reset'), input = find('input'), rest = details.textContent;
  const number = (box, name) => parseFloat(box.getAttribute(name));
  const frames = Array.from(flame.querySelectorAll('.frame'), box => ({
    box, x: number(box, 'x'), y: number(box, 'y'), width: number(box, 'width'),
    title: box.querySelector('title').textContent }));
  const slack = 0.0005;

  function zoom(to) {
    const end = to.x + to.width + slack, scale = 100 / to.width;
    for (const frame of frames) {
      const holds = Math.min(frame.x, to.x - slack) === frame.x || frame.x - to.x === 0;
      const above = to.y > frame.y ? (holds ? frame.x + frame.width + slack >= to.x + to.width : false) : false;
      const inside = frame.y >= to.y ? (frame.x + slack >= to.x ? end >= frame.x + frame.width : false) : false;
      frame.box.classList.toggle('above', above);
      frame.box.classList.toggle('gone', !(above || inside));
      frame.box.setAttribute('x', (above ? 0 : (frame.x - to.x) * scale) + '%');
      frame.box.setAttribute('width', (above ? 100 : frame.width * scale) + '%');
    }
    reset.classList.toggle('gone', to === frames[0]);
  }

  function search() {
    const wanted = input.value.toLowerCase();
    let share = 0, end = 0;
    for (const frame of frames) {
      const match = wanted ? frame.title.split('\\n')[0].toLowerCase().includes(wanted) : false;
      frame.box.classList.toggle('match', match);
      frame.match = match;
    }
    for (const frame of frames.filter(each => each.match).sort((a, b) => a.x - b.x || b.width - a.width)) {
      if (frame.x + slack >= end) { share += frame.width; end = frame.x + frame.width; }
    }
    details.textContent = wanted ? 'matched: ' + share.toFixed(1) + ' %' : rest;
  }

  flame.addEventListener('click', event => {
    const box = event.target.closest('.frame');
    if (box) zoom(frames.find(frame => frame.box === box));
    else if (event.target === reset) zoom(frames[0]);
  });
  flame.addEventListener('mouseover', event => {
    const box = event.target.closest('.frame');
    if (box) details.textContent = frames.find(frame => frame.box === box).title.split('\\n').slice(0, 2).join('   ');
    else search();
  });
  flame.addEventListener('keydown', event => {
    if (event.key === 'Escape') { input.value = ''; search(); zoom(frames[0]); }
  });
  input.addEventListener('input', search);
})();
"""

FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" class="flame" width="100%" height="{height}" role="group" aria-label="{title}">
<style>{style}</style>
<text class="title" x="4" y="21">{title}</text>
<text class="quiet" x="4" y="42">{subtitle}</text>
<svg x="100%" y="6" overflow="visible"><foreignObject x="-216" width="212" height="28"><input \
xmlns="http://www.w3.org/1999/xhtml" type="search" placeholder="search a function or file" \
aria-label="search a function or file" autocomplete="off"/></foreignObject>
<text class="quiet reset gone" x="-4" y="42" text-anchor="end">show all</text></svg>
<text class="quiet details" x="4" y="64">Click a frame to zoom in; point at it to see its lines.</text>
{boxes}
<script>{script}</script>
</svg>
"""

PICTURE = """\
<svg xmlns="http://www.w3.org/2000/svg" class="flame" width="{width}" height="{height}" role="img" aria-label="{title}">
<style>{style}</style>
<rect width="100%" height="100%" fill="var(--paper)"/>
<text class="title" x="4" y="21">{title}</text>
<text class="quiet" x="4" y="42">{subtitle}</text>
{legend}
{boxes}
</svg>
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m perf.profiling.flame',
        description='Draw VIEW.svg from VIEW.speedscope.json, in the folder of a profile.',
    )
    parser.add_argument('out', type=Path, help='the folder of the profile')
    parser.add_argument('view', choices=list(VIEWS))
    parser.add_argument('--picture', type=int, metavar='WIDTH', help='draw an image of this width, without a script')
    parser.add_argument('--title', help='the title above the graph')
    args = parser.parse_args()
    threads = read(args.out / f'{args.view}.speedscope.json')
    samples = sum(map(len, threads.values()))
    title, subtitle = args.title or VIEWS[args.view][:1].upper() + VIEWS[args.view][1:], f'{samples:,} samples'
    root = tree(threads, by_kind=args.view == 'kernel')
    if args.view == 'kernel' and not args.picture:  # a picture has a legend
        subtitle += '; blue: Python, yellow: C, red: kernel'
    if args.picture:
        (args.out / f'{args.view}-picture.svg').write_text(picture(root, title, subtitle, args.picture))
    else:
        (args.out / f'{args.view}.svg').write_text(draw(root, title, subtitle))


if __name__ == '__main__':
    main()
