"""How the site is built: `make docs`, every warning an error.

Pages are Markdown (MyST). Tutorials are notebooks in Markdown and run at build time (MyST-NB); all
other blocks of code run in the test suite (`tests/test_docs.py`). The reference is made from the
docstrings (`_ext/reference.py`). Formulas become MathML, so that no page needs a script from
elsewhere.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
EXAMPLES = ROOT / "examples" / "pyro"

sys.path[:0] = [str(HERE / "_ext"), str(ROOT)]

import numpyro_dvae  # noqa: E402

# Kernels that run the tutorials find the packages and the scripts that these are about.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(EXAMPLES)])
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")

project = "pyro_dvae and numpyro_dvae"
author = "the authors of pyro_dvae and numpyro_dvae"
project_copyright = author
version = release = numpyro_dvae.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx_copybutton",
    "myst_nb",
    "mathml",
    "docstrings",
    "reference",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints", "ratios.md"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_in_temp = True  # what a tutorial writes is left behind
nb_execution_timeout = 1800  # of a cell; a busy machine is slow
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # no script from elsewhere

default_role = "py:obj"  # names in docstrings; see `_ext/docstrings.py` for those of no object
add_module_names = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Types of other libraries are named, and lead nowhere: the site is built without a network.
nitpick_ignore_regex = [(r"py:.*", r"(?!(num)?pyro_dvae\b).*")]

html_theme = "furo"
html_title = "pyro_dvae · numpyro_dvae"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5394", "color-brand-content": "#0b5394"},
    "dark_css_variables": {"color-brand-primary": "#7ab8f5", "color-brand-content": "#7ab8f5"},
}
pygments_style = "friendly"
pygments_dark_style = "native"
