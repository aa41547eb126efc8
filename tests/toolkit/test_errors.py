# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import re
from typing import Any

from orinkit import errors
from orinkit.errors import OrinError

CLASSES: dict[str, Any] = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls)}


def drawn() -> dict[str, tuple[str | None, int | None]]:
    """What the drawing in the module's docstring says: name -> parent, exit code (None: that of the parent)."""
    found: dict[str, tuple[str | None, int | None]] = {}
    above: dict[int, str] = {}
    for match in re.finditer(r"^([ │├└─]*)(\w+Error)(?: +(\d+))?(?: .*)?$", inspect.getdoc(errors) or "", re.MULTILINE):
        column, (_, name, code) = len(match[1]), match.groups()
        parents = [above[left] for left in sorted(above) if left < column]
        above = {left: known for left, known in above.items() if left < column} | {column: name}
        found[name] = (parents[-1] if parents else None, int(code) if code else None)
    return found


def test_the_drawing_shows_every_error_below_its_parent() -> None:
    real = {name: None if cls is OrinError else cls.__mro__[1].__name__ for name, cls in CLASSES.items()}
    assert {name: parent for name, (parent, _) in drawn().items()} == real


def test_the_drawing_shows_the_exit_codes() -> None:
    for name, (parent, code) in drawn().items():
        expected = code if code is not None else CLASSES[parent or ""].exit_code
        assert CLASSES[name].exit_code == expected, name


def test_every_error_derives_from_the_base() -> None:
    assert all(issubclass(cls, OrinError) for cls in CLASSES.values())


def test_every_error_has_a_docstring_of_its_own() -> None:
    assert all("__doc__" in vars(cls) and cls.__doc__ for cls in CLASSES.values())
