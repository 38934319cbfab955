"""Docstrings: every public name has one, and the examples in them print what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import ipcmap


def import_all() -> Iterator[ModuleType]:
    """Import every module of the package, but those whose optional dependency is not there."""
    yield ipcmap
    for found in pkgutil.walk_packages(ipcmap.__path__, "ipcmap."):
        try:
            yield importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if (error.name or "ipcmap").partition(".")[0] == "ipcmap":
                raise


MODULES = {module.__name__: module for module in import_all()}
FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = {
    name: sum(len(test.examples) for test in FINDER.find(module))
    for name, module in MODULES.items()
}


def public_members() -> Iterator[tuple[str, Any]]:
    """Yield every public name, and each public method and property of every public class."""
    for name in ipcmap.__all__:
        thing = getattr(ipcmap, name)
        if not isinstance(thing, type):
            if callable(thing):
                yield name, thing
            continue
        yield name, thing
        for owner in thing.__mro__:
            if owner.__module__.partition(".")[0] == "ipcmap":
                for member, value in vars(owner).items():
                    wrapped = isinstance(value, (classmethod, staticmethod, property))
                    if not member.startswith("_") and (wrapped or callable(value)):
                        yield f"{name}.{member}", getattr(owner, member)


MEMBERS = dict(public_members())


def test_the_examples_are_found() -> None:
    """There are examples, in the class that every other builds on among them."""
    assert EXAMPLES["ipcmap.mapping"] > 0


@pytest.mark.parametrize("name", [name for name, examples in EXAMPLES.items() if examples])
def test_examples_of_a_module_print_what_they_say(name: str) -> None:
    """Every example runs, in a process of its own, without a warning."""
    program = f"import doctest, sys, {name} as m; sys.exit(doctest.testmod(m).failed)"
    command = [sys.executable, "-W", "error", "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_public_names_are_looked_at() -> None:
    """Inherited methods count as well as a class's own."""
    assert {"Mapping", "Mapping.read", "Mapping.flush", "Mapping.address"} <= {*MEMBERS}


@pytest.mark.parametrize("name", MEMBERS)
def test_public_name_has_a_docstring(name: str) -> None:
    """Whatever a user may call says what it does, in a sentence that ends."""
    text = inspect.getdoc(MEMBERS[name])

    assert text
    assert text.partition("\n\n")[0].endswith(".")


@pytest.mark.parametrize("name", MODULES)
def test_module_has_a_docstring(name: str) -> None:
    """Every file begins with what it is for."""
    assert MODULES[name].__doc__
