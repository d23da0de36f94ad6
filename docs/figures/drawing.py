"""A sheet to draw on: boxes, arrows, strips of frames and text as SVG, in the colours of a light or a dark page."""

from collections.abc import Sequence
from xml.sax.saxutils import escape


# What a thing is decides its colour; the pages' own backgrounds show through.
SCHEMES = {
    "light": {
        "ink": "#1f2937", "soft": "#596579", "line": "#8a96a8", "faint": "#e3e8ee", "paper": "#ffffff",
        "given": "#0f9d8a", "given-fill": "#bdeee5", "masked": "#8a96a8", "masked-fill": "#f1f4f8",
        "new": "#7048d8", "new-fill": "#ded4fb", "planner": "#c2720a", "planner-fill": "#fde9c4",
        "model": "#2f63d6", "model-fill": "#d7e4fd",
    },
    "dark": {
        "ink": "#e8ecf3", "soft": "#a9b4c6", "line": "#74819a", "faint": "#343b4d", "paper": "#1e2129",
        "given": "#3fd0ba", "given-fill": "#14524b", "masked": "#74819a", "masked-fill": "#2a3040",
        "new": "#b39bff", "new-fill": "#45337f", "planner": "#f6b04d", "planner-fill": "#5c3d10",
        "model": "#86aaff", "model-fill": "#26407c",
    },
}  # fmt: skip
_ANCHORS = {"left": "start", "middle": "middle", "right": "end"}
_FONT = "Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"


class Sheet:
    """An SVG of `width` x `height` in one scheme; colours are given by name.

    Args:
        width: of the drawing, in its own units, which are pixels at full size.
        height: likewise.
        title: what a screen reader says.
        scheme: `"light"` or `"dark"`.
    """

    def __init__(self, width: float, height: float, title: str, scheme: str):
        self.width, self.height, self.title = width, height, title
        self._colours = SCHEMES[scheme]
        self._parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, colour: str = "line", fill: str = "none",
        radius: float = 5, dashed: bool = False, weight: float = 1.4,
    ) -> None:  # fmt: skip
        """Draw a rectangle with round corners."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
            f'fill="{self._colour(fill)}" stroke="{self._colour(colour)}" stroke-width="{weight:g}"{dash}/>'
        )

    def text(
        self, x: float, y: float, text: str, size: float = 13, colour: str = "ink", align: str = "left",
        bold: bool = False, italic: bool = False, mono: bool = False,
    ) -> None:  # fmt: skip
        """Write a line of text whose baseline is at `y`; nothing for an empty one."""
        if not text:
            return
        style = ' font-weight="600"' * bold + ' font-style="italic"' * italic
        style += ' font-family="ui-monospace, Menlo, Consolas, monospace"' * mono
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{self._colour(colour)}" '
            f'text-anchor="{_ANCHORS[align]}"{style}>{escape(text)}</text>'
        )

    def lines(self, x: float, y: float, lines: Sequence[str], step: float = 17, **style) -> None:
        """Write lines of text below each other, see `text`."""
        for number, line in enumerate(lines):
            self.text(x, y + number * step, line, **style)

    def line(
        self, points: Sequence[tuple[float, float]], colour: str = "line", weight: float = 1.6,
        arrow: bool = False, dashed: bool = False,
    ) -> None:  # fmt: skip
        """Draw a line through points; with `arrow`, a head at its end."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{self._colour(colour)}" stroke-width="{weight:g}" '
            f'stroke-linejoin="round"{dash}/>'
        )
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
            dx, dy = (x - x0) / length, (y - y0) / length
            corners = ((x + 2 * dx, y + 2 * dy), (x - 7 * dx - 4.5 * dy, y - 7 * dy + 4.5 * dx),
                       (x - 7 * dx + 4.5 * dy, y - 7 * dy - 4.5 * dx))  # fmt: skip
            corner_text = " ".join(f"{round(a, 1):g},{round(b, 1):g}" for a, b in corners)
            self._parts.append(f'<polygon points="{corner_text}" fill="{self._colour(colour)}"/>')

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        """Draw a filled circle."""
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{self._colour(colour)}"/>')

    def frame(self, x: float, y: float, side: float, kind: str, label: str = "") -> None:
        """Draw a frame of a window: `"given"`, `"masked"` or `"new"`, with a label inside."""
        self.box(x, y, side, side, kind, f"{kind}-fill", radius=4, dashed=kind == "masked")
        if label:
            size = min(13, side * 0.46)
            self.text(
                x + side / 2, y + side / 2 + size * 0.36, label, size, "ink" if kind != "masked" else "soft", "middle"
            )

    def strip(self, x: float, y: float, kinds: Sequence[str], labels: Sequence[str], side: float, step: float) -> None:
        """Draw frames side by side; a kind of `""` leaves its place empty."""
        for number, (kind, label) in enumerate(zip(kinds, labels)):
            if kind:
                self.frame(x + number * step, y, side, kind, label)

    def svg(self) -> str:
        """Return the file."""
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'width="{self.width:g}" height="{self.height:g}" font-family="{_FONT}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n{body}\n</svg>\n"
        )

    def _colour(self, name: str) -> str:
        return name if name == "none" else self._colours[name]
