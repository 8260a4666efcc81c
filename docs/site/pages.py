"""Pages of the site that are not files of docs/: those at the project's top, and the commands, made from the CLI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
COMMANDS = """# Commands

What `pipeline --help` says, command by command. [Exit codes](running.md) are the same for all.

::: mkdocs-click
    :module: pipeline.cli
    :command: main
    :prog_name: pipeline
    :depth: 1
    :style: table
"""
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=_placed((TOP / name).read_text(), at=TOP, page=page)))
    files.append(File.generated(config, "commands.md", content=COMMANDS))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links from docs/ to what lies beside it lead to the page that it became; to other files, they are words."""
    if page.file.src_uri in {*PAGES.values(), "commands.md"}:
        return markdown
    return _placed(markdown, at=(DOCS / page.file.src_uri).parent, page=page.file.src_uri)


def _placed(markdown: str, *, at: Path, page: str) -> str:
    """Markdown of a file in the folder `at`, for the page of this name."""

    def link(found: re.Match[str]) -> str:
        words, path, anchor = found[1], found[2], found[3] or ""
        wanted = (at / path).resolve()
        if wanted.is_relative_to(DOCS):
            target = wanted.relative_to(DOCS).as_posix()
        else:
            target = PAGES.get(wanted.relative_to(TOP).as_posix(), "")
        if not target.endswith(".md"):
            return words
        return f"[{words}]({'../' * page.count('/')}{target}{anchor})"

    return _LINK.sub(link, markdown)
