"""All else is in pyproject.toml: here is what happens when the native engine cannot be built."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FAILED = """
ipcmap: the native engine was not built: {error}
ipcmap: the reference engine is installed alone; it does the same in plain Python, far slower.
ipcmap: What the compiler said stands above. With a C compiler (CC names it) and Python's headers
ipcmap: there, install again; ipcmap.backend says which engine there is.
"""


class BuildNative(build_ext):
    """Build an extension that may fail, but neither in silence nor with an older one in its place.

    pip shows what a build says with ``-v``, and whenever the build fails as a whole.
    """

    def build_extension(self, ext: Extension) -> None:
        """Build it; if that fails, say so and remove what an earlier build has left."""
        try:
            super().build_extension(ext)
        except Exception as error:
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            print(FAILED.format(error=error), file=sys.stderr, flush=True)
            raise  # which setuptools lets pass for what is optional


setup(cmdclass={"build_ext": BuildNative})
