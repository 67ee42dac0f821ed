"""What MkDocs calls while it builds the site: pages from the code and from the repository's other files."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from elsewhere import loaded_from_elsewhere
from fact_tables import GENERATED
from repository import PICTURES, PLACE, ROOT, linked_pages, source_of, text_of, with_site_links
from settings_pages import command_page, group_page, groups

from bdbnet.__main__ import COMMANDS

MARKER = re.compile(r"<!-- generated: ([\w ]+) -->")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are in no file below ``docs/``."""
    from mkdocs.structure.files import File

    made = {f"reference/commands/{command}.md": command_page(command) for command in COMMANDS}
    made |= {f"reference/groups/{group}.md": group_page(group) for group in groups()}
    written = [ROOT / "docs" / file.src_uri for file in files.documentation_pages()]
    linked = linked_pages(written)
    made |= {page: text_of(file) for page, file in linked.items() if file.suffix not in PICTURES}
    pictures: dict[str, Any] = {page: file for page, file in linked.items() if file.suffix in PICTURES}
    pictures["assets/icon.svg"] = ROOT / "src" / "bdbnet" / "serving" / "static" / "icon.svg"
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    for page, file in pictures.items():
        files.append(File.generated(config, page, abs_src_path=str(file)))
    return files


def on_post_build(config: Any) -> None:
    """Let the search work in pages that are opened as files, and refuse a site that loads anything from another one."""
    site = Path(config.site_dir)
    index = site / "search" / "search_index.json"
    (index.with_suffix(".js")).write_text(f"var __index = {index.read_text()}")
    found = {
        f"{page.relative_to(site)}: {each}"
        for page in site.rglob("*.html")
        for each in loaded_from_elsewhere(page.read_text())
    }
    if found:
        from mkdocs.exceptions import PluginError

        raise PluginError("pages load from elsewhere:\n" + "\n".join(sorted(found)))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in the tables that the code knows, and let links to files of the repository lead to their pages."""
    uri = page.file.src_uri
    if uri.startswith(f"{PLACE}/"):
        page.meta.setdefault("search", {}).setdefault("boost", 0.5)  # records come after pages that explain
    if not uri.startswith(("reference/commands/", "reference/groups/")):
        markdown = with_site_links(markdown, source_of(uri), uri)
    return MARKER.sub(lambda match: GENERATED[match[1]](), markdown)
