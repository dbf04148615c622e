"""Imported by every Python that has this folder on its path."""

import windows_of_python  # noqa: F401
