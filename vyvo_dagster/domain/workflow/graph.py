"""A workflow's graph as text and as SVG, for people. No program beside Python is needed.

The SVG is layered: a step stands one column after the last that it needs, and inside a column near
the middle of those (the barycentre method of Sugiyama, Tagawa and Toda, 1981).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

__all__ = ["Node", "svg", "text"]


@dataclass(frozen=True, slots=True)
class Node:
    """A step of the graph. `what` is its model or operation; `state` that of a run, if one is shown."""

    name: str
    what: str
    needs: Sequence[str]
    mapped: bool = False
    conditional: bool = False
    state: str | None = None

    @property
    def label(self) -> str:
        """What is said of it beside its name."""
        marks = [*(["for each"] if self.mapped else []), *(["when"] if self.conditional else [])]
        return self.what + (f" ({', '.join(marks)})" if marks else "")


def text(nodes: Sequence[Node]) -> str:
    """One line for each step, and lines between them as `git log --graph` draws them.

    Args:
        nodes: each after all that it needs.
    """
    left = {node.name: sum(node.name in other.needs for other in nodes) for node in nodes}
    columns: list[str | None] = []
    drawn: list[tuple[str, Node]] = []
    for node in nodes:
        needed = [i for i, name in enumerate(columns) if name is not None and name in node.needs]
        first = needed[0] if needed else None
        at = next(
            (i for i, name in enumerate(columns) if name is None and i > max(needed, default=-1)),
            len(columns),
        )
        cells: list[str] = []
        for i in range(at):
            name = columns[i] if i < len(columns) else None
            inside = first is not None and i >= first
            if name is not None and i in needed:
                left[name] -= 1
                begins = i == first
                cells.append({(True, True): "├─", (False, True): "┼─", (True, False): "└─",
                              (False, False): "┴─"}[begins, left[name] > 0])  # fmt: skip
            elif name is None:
                cells.append("──" if inside else "  ")
            else:
                cells.append("│─" if inside else "│ ")
        after = "".join("│ " if name is not None else "  " for name in columns[at + 1 :])
        drawn.append((("".join(cells) + "● " + after).rstrip(), node))
        columns += [None] * (at + 1 - len(columns))
        columns[at] = node.name if left[node.name] else None
        columns = [name if name is not None and left[name] else None for name in columns]
        while columns and columns[-1] is None:
            columns.pop()
    rail = max((len(line) for line, _ in drawn), default=0)
    name = max((len(node.name) for node in nodes), default=0)
    return "\n".join(
        f"{line:<{rail}} {node.name:<{name}}  {node.label}"
        + (f"  {node.state}" if node.state else "")
        for line, node in drawn
    )


_WIDTH: Final = 200
_HEIGHT: Final = 52
_GAP_X: Final = 70
_GAP_Y: Final = 22
_MARGIN: Final = 20
_CHARS: Final = 26
_COLOURS: Final[Mapping[str, str]] = {
    "succeeded": "#d9f2e3", "failed": "#fbdcdc", "expired": "#fbdcdc", "canceled": "#ececec",
    "skipped": "#f4f4f4", "running": "#d9e9fb", "dispatched": "#e8f1fc", "submitted": "#e8f1fc",
}  # fmt: skip


def svg(nodes: Sequence[Node], title: str) -> str:
    """An SVG document of the graph, left to right."""
    places = _places(nodes)
    columns = max((x for x, _ in places.values()), default=0) + 1
    rows = max((y for _, y in places.values()), default=0.0) + 1
    width = columns * (_WIDTH + _GAP_X) - _GAP_X + 2 * _MARGIN
    height = round(rows * (_HEIGHT + _GAP_Y)) - _GAP_Y + 2 * _MARGIN
    edges = [
        _edge(*_corner(*places[need]), *_corner(*places[node.name]))
        for node in nodes for need in node.needs
    ]  # fmt: skip
    boxes = [_box(node, *_corner(*places[node.name])) for node in nodes]
    return "\n".join(
        [
            (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
            f' viewBox="0 0 {width} {height}" font-family="sans-serif" role="img">'),
            f"<title>{escape(title)}</title>",
            ('<defs><marker id="to" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7"'
            ' markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#888"/></marker></defs>'),
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *edges, *boxes, "</svg>", "",
        ]
    )  # fmt: skip


def _places(nodes: Sequence[Node]) -> dict[str, tuple[int, float]]:
    """Column and row of each step."""
    column: dict[str, int] = {}
    for node in nodes:
        column[node.name] = max((column[need] + 1 for need in node.needs), default=0)
    places: dict[str, tuple[int, float]] = {}
    for x in range(max(column.values(), default=-1) + 1):
        members = [node for node in nodes if column[node.name] == x]
        wanted = {
            node.name: sum(places[n][1] for n in node.needs) / len(node.needs) if node.needs
            else float(i)
            for i, node in enumerate(members)
        }  # fmt: skip
        row = 0.0
        for node in sorted(members, key=lambda n: wanted[n.name]):
            row = max(row, wanted[node.name])
            places[node.name] = (x, row)
            row += 1
    return places


def _corner(x: int, y: float) -> tuple[int, int]:
    return _MARGIN + x * (_WIDTH + _GAP_X), _MARGIN + round(y * (_HEIGHT + _GAP_Y))


def _edge(x1: int, y1: int, x2: int, y2: int) -> str:
    start, end = x1 + _WIDTH, x2
    middle_1, middle_2 = y1 + _HEIGHT // 2, y2 + _HEIGHT // 2
    half = (start + end) // 2
    return (
        f'<path d="M{start} {middle_1}C{half} {middle_1} {half} {middle_2} {end} {middle_2}"'
        ' fill="none" stroke="#888" marker-end="url(#to)"/>'
    )


def _box(node: Node, x: int, y: int) -> str:
    fill = _COLOURS.get(node.state or "", "#f3f0fa")
    dash = ' stroke-dasharray="5 3"' if node.conditional else ""
    stack = (
        f'<rect x="{x + 5}" y="{y + 5}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="#fff"'
        ' stroke="#999"/>'
        if node.mapped
        else ""
    )
    second = node.label if node.state is None else f"{node.what} · {node.state}"
    return (
        f"<g><title>{escape(f'{node.name}: {node.label}')}</title>{stack}"
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{fill}"'
        f' stroke="#666"{dash}/>'
        f'<text x="{x + 12}" y="{y + 22}" font-size="14" font-weight="bold">'
        f"{escape(_short(node.name))}</text>"
        f'<text x="{x + 12}" y="{y + 40}" font-size="12" fill="#444">{escape(_short(second))}'
        "</text></g>"
    )


def _short(value: str) -> str:
    return value if len(value) <= _CHARS else value[: _CHARS - 1] + "…"
