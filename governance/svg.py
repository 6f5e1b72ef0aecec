"""A matplotlib figure as inline SVG for a page of our own: no script, no link, text as text, colours from the page.

matplotlib knows only fixed colours. The charts draw with the placeholders below, and ``to_svg`` puts the page's CSS
variables in their place, so that one drawing is right in light and in dark mode and on paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree  # only reads what matplotlib wrote a moment ago

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK, MUTED, GRID, PAPER = "#010203", "#020304", "#030405", "#040506"
SERIES = ("#0a0101", "#0a0102", "#0a0103", "#0a0104")
MARKERS = ("o", "s", "^", "D")
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedethos",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "hatch.linewidth": 0.6,
}


@contextmanager
def chart_style() -> Iterator[None]:
    """Draw and save inside this context: matplotlib reads its settings at both moments."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of this machine must not change the page
        mpl.rcParams.update(_STYLE)
        yield


def to_svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    """The figure as one ``<svg>`` element. ``name`` makes its ids unique on the page; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314
    for parent in list(root.iter()):
        for child in [child for child in parent if _local(child.tag) in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _adapt(_local(key), value, name) for key, value in element.attrib.items()}
    _describe(root, name, title, description)
    return ElementTree.tostring(root, encoding="unicode")


def _describe(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(index, element)
    root.attrib = {
        "class": "chart",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
    }


def _adapt(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value.removeprefix('#')}"
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    value = re.sub(r"'DejaVu Sans'[^;]*", "var(--font)", value)
    return re.sub(r"#[0-9a-f]{6}", lambda match: _VARIABLES.get(match[0], match[0]), value)


def _local(name: str) -> str:
    """A tag or attribute without its XML namespace: inline SVG in HTML needs none."""
    return name.rpartition("}")[2]


def printable(text: str, limit: int = 28) -> str:
    """A label for a chart: nothing that XML cannot hold, and not longer than ``limit``."""
    clean = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
