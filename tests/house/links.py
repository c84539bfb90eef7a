"""What the links of the documentation lead to: files that exist, headings that exist, nothing outside the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[^\n]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
INLINE = re.compile(r"(?<!\\)\[[^\]\n]*\]\(([^)\s]+)(?: \"[^\"]*\")?\)")
DEFINED = re.compile(r"^\[([^\]^]+)\]: (\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} (.+?) *#*$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z]+:")


def link_faults(root: Path) -> list[str]:
    """Links of README.md, CONTRIBUTING.md and docs/ that lead nowhere, and those of docs/ that leave docs/."""
    docs = root / "docs"
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted(docs.rglob("*.md"))]
    return [fault for page in pages if page.is_file() for fault in _faults_of(page, root)]


def _faults_of(page: Path, root: Path) -> Iterator[str]:
    docs, text = root / "docs", _without_code(page.read_text(encoding="utf-8"))
    name = page.relative_to(root)
    for target in _targets(text):
        if ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page.resolve()
        if not file.exists():
            yield f"{name}: {target}: there is no such file"
        elif page.is_relative_to(docs) and not file.is_relative_to(docs.resolve()):
            yield f"{name}: {target}: leaves docs/, where the site ends; name the file without a link"
        elif page.is_relative_to(docs) and file.is_dir():
            yield f"{name}: {target}: is a folder, which the site does not show; link a page of it"
        elif anchor and anchor not in anchors(file):
            yield f"{name}: {target}: {file.name} has no such heading"


def _targets(text: str) -> Iterator[str]:
    """Where links lead: those written in place, and the definitions of the others."""
    yield from INLINE.findall(text)
    yield from (target for _, target in DEFINED.findall(text))


def anchors(page: Path) -> set[str]:
    """What a link may name within a page: headings by the rule of GitHub, where the site's rule says the same."""
    if page.suffix != ".md":
        return set()
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading) for heading in HEADING.findall(text)]
    return {slug for heading in headings if (slug := _on_github(heading)) == _on_site(heading)}


def _on_github(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _on_site(heading: str) -> str:
    """As Python-Markdown does: letters beyond ASCII go, spaces and dashes in a row are one dash."""
    ascii_only = heading.encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())


def _without_code(text: str) -> str:
    return CODE.sub("", FENCE.sub("", text))
