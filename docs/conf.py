"""How these pages become a site: `sphinx-build -W docs site`."""

import re
from pathlib import Path

import ser_ray

project, author, release = "ser_ray", "The ser_ray authors", ser_ray.__version__
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"ser_ray {release}"
exclude_patterns = ["site"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_ivar = True
suppress_warnings = ["misc.highlighting_failure"]  # of `csv`, which has no colours
FROM_ROOT = {"index": "README.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
LINKS = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}


def read_from_root(app, name, source):
    """Put a page of the repository's root before what its page here holds, with links as they are from here."""
    if name in FROM_ROOT:
        text = (Path(__file__).parent.parent / FROM_ROOT[name]).read_text()
        text = re.sub(r"\]\(docs/", "](", text)
        for link, here in LINKS.items():
            text = text.replace(f"]({link})", f"]({here})")
        source[0] = f"{text}\n{source[0]}"


def setup(app):
    """Connect it."""
    app.connect("source-read", read_from_root)
