"""How the documentation is built: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

project = "ala_metric"
author = "The ala_metric authors"
project_copyright = "the ala_metric authors, MIT license"
release = version = (HERE.parent / "VERSION").read_text().strip()
html_title = f"ala_metric {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = False  # annotations name types of other packages; check_links.py looks at what docstrings refer to
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_mock_imports = ["lightning", "pytorch_lightning"]  # its page is built without it
autodoc_default_options = {"members": True}
autoclass_content = "class"
napoleon_numpy_docstring, napoleon_google_docstring = True, False
napoleon_use_rtype = False
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

smartquotes_action = "D"  # dashes, but no quotes: an error message must be found as it is written

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_show_sourcelink = False
html_copy_source = False


def by_short_name(app: Any, environment: Any, node: Any, content: Any) -> Any:
    """A docstring may name a thing of another package of ours without its full name."""
    if node.get("refdomain") != "py":
        return None
    domain = environment.get_domain("py")
    ending = "." + node["reftarget"].rpartition(".")[2]
    found = {
        name: entry for name, entry in domain.objects.items() if name.endswith(ending) and not entry.aliased
    }
    if len(found) != 1:
        return None
    (name, entry), *_ = found.items()
    from sphinx.util.nodes import make_refnode

    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def setup(app: Any) -> None:
    app.connect("missing-reference", by_short_name)
