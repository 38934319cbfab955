"""How Sphinx builds these pages: ``sphinx-build -n -W --keep-going -b html docs docs/_build/html``."""

import ipcmap

project = "ipcmap"
author = "The ipcmap authors"
project_copyright = author
release = version = ipcmap.__version__

extensions = [
    "myst_parser",  # pages in Markdown
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings in Google's form
]
# docs/design/model holds the sources of the model checker.
exclude_patterns = ["_build", "design/model"]

html_theme = "furo"
html_title = f"ipcmap {release}"

# A figure's page is a figure of Linux: {manpage}`mmap(2)` links to its manual.
manpages_url = "https://man7.org/linux/man-pages/man{section}/{page}.{section}.html"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Imported for type checkers alone, so that autodoc cannot look it up.
autodoc_type_aliases = {"ReadableBuffer": "ReadableBuffer"}
napoleon_numpy_docstring = False

# Types of the standard library. Their links would need its inventory, and so the network.
nitpick_ignore = [
    ("py:class", "Callable"),
    ("py:class", "Iterable"),
    ("py:class", "Logger"),
    ("py:class", "ReadableBuffer"),
    ("py:class", "SyncManager"),
    ("py:class", "collections.abc.Callable"),
    ("py:class", "collections.abc.Iterable"),
    ("py:class", "collections.abc.Iterator"),
    ("py:class", "collections.abc.Mapping"),
    ("py:class", "collections.abc.Sequence"),
    ("py:class", "ipcmap.aio.queues.In"),  # type variables
    ("py:class", "ipcmap.aio.queues.Out"),
    ("py:class", "ipcmap.aio.queues.T"),
    ("py:class", "ipcmap.condition.Result"),
    ("py:class", "ipcmap.integrations.cluster.T"),
    ("py:class", "ipcmap.executor.T"),
    ("py:class", "ipcmap.forked_map.R"),
    ("py:class", "ipcmap.forked_map.T"),
    ("py:class", "ipcmap.objects.T"),
    ("py:class", "ipcmap.pool.S"),
    ("py:class", "ipcmap.pool.T"),
    ("py:class", "ipcmap.pool_results.T"),
    ("py:class", "ipcmap.pool_streams.T"),
    ("py:class", "ipcmap.queues.T"),
    ("py:class", "concurrent.futures._base.Future"),
    ("py:class", "concurrent.futures.process.BrokenProcessPool"),
    ("py:class", "multiprocessing.process.BaseProcess"),
    ("py:class", "os.PathLike"),
    ("py:class", "types.TracebackType"),
    ("py:exc", "BrokenBarrierError"),
    ("py:exc", "BrokenProcessPool"),
    ("py:exc", "CancelledError"),
    ("py:exc", "multiprocessing.BufferTooShort"),
    ("py:exc", "multiprocessing.TimeoutError"),
    ("py:exc", "queue.Empty"),
    ("py:exc", "queue.Full"),
]
