"""The plugins of the test run."""

from __future__ import annotations

pytest_plugins = ["pytester", "leftovers", "watchdog", "children"]
