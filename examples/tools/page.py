"""A page of text, tables and pictures, as one HTML file."""

import html
from pathlib import Path
from typing import Any

__all__ = ["Page"]

_STYLE = """<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
td { padding: .15rem 1.5rem .15rem 0; } td:nth-child(2) { text-align: right; font-weight: 600; }
td:nth-child(3) { color: #555; } pre { background: #f6f6f6; padding: .8rem; white-space: pre-wrap; }
img { max-width: 100%; display: block; margin: 1rem 0; }
</style>"""


class Page:
    """Sections of text and pictures, written as one HTML file."""

    def __init__(self, out: Path, title: str) -> None:
        self.out, self.title, self.parts = out, title, [f"<h1>{html.escape(title)}</h1>"]

    def text(self, heading: str, *paragraphs: Any) -> None:
        """A heading with paragraphs; several lines stay as they are."""
        self.parts.append(f"<h2>{html.escape(heading)}</h2>")
        for paragraph in map(str, paragraphs):
            tag = "pre" if "\n" in paragraph else "p"
            self.parts.append(f"<{tag}>{html.escape(paragraph)}</{tag}>")

    def table(self, rows: dict[str, tuple[str, str]]) -> None:
        """Names, values and what they mean."""
        cells = (
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td>"
            f"<td>{html.escape(meaning)}</td></tr>"
            for name, (value, meaning) in rows.items()
        )
        self.parts.append(f"<table>{''.join(cells)}</table>")

    def picture(self, name: str, figure: Any) -> None:
        """Save a figure beside the page and show it."""
        figure.savefig(self.out / f"{name}.png", dpi=110, bbox_inches="tight")
        self.parts.append(f'<img src="{name}.png" alt="{name}">')

    def write(self) -> Path:
        """Write the page."""
        path = self.out / "index.html"
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title>{_STYLE}'
        text = f"<!doctype html>\n<html><head>{head}</head>\n<body>\n"
        path.write_text(text + "\n".join(self.parts) + "\n</body></html>\n", encoding="utf-8")
        return path
