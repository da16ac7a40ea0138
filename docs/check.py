"""Checks the built site: links lead somewhere, and no page knows the machine that built it.

    python docs/check.py docs/_build/html

Links within the site are followed to the page and the place in it; no network is asked.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
# Folders of machines, objects by their address, and the hosts that packages come from.
MACHINE = re.compile(
    rf"{re.escape(str(ROOT))}|{re.escape(str(Path.home()))}/|site-packages|/tmp/|/home/\w|/Users/\w"
    r"| at 0x[0-9a-f]{6,}|" + "|".join(["py" + "pi.org", "python" + "hosted", "jsde" + "livr"])
)


class Page(HTMLParser):
    """The links of a page and the places that may be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag links to, and what it is called."""
        for name, value in attrs:
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.places.add(value)
            elif value and name in ("href", "src"):
                self.links.append(value)


def broken_links(pages: dict[Path, Page]) -> list[str]:
    """Links within the site that lead nowhere."""
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{path}: {link}")
            elif parts.fragment and target in pages:
                if unquote(parts.fragment) not in pages[target].places:
                    found.append(f"{path}: {link}")
    return found


def words_of_machines(folder: Path) -> list[str]:
    """What pages, and what is searched in, should not know."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".js", ".txt", ".inv") and "_static" not in path.parts:
            text = path.read_text(encoding="utf-8", errors="ignore")
            found += [f"{path}: {hit.group()}" for hit in MACHINE.finditer(text)]
    return found


def main(folder: str) -> int:
    """Print what is wrong, and how much has been looked at."""
    root = Path(folder).resolve()
    pages = {path: Page(path) for path in sorted(root.rglob("*.html"))}
    wrong = broken_links(pages) + words_of_machines(root)
    print(*wrong, sep="\n")
    links = sum(len(page.links) for page in pages.values())
    print(f"{len(pages)} pages, {links} links, {len(wrong)} faults")
    return bool(wrong or not pages)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
