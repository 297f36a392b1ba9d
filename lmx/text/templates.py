"""Texts from the fields of a record: 'question: {question} context: {context}'."""

from __future__ import annotations

import re
import string

from lmx.types import BadInput, Record


def filled(template: str, record: Record, **more: str) -> str:
    """`str.format` over the record's fields, and over `more`.

    Raises:
      BadInput: a field that is not there.
    """
    try:
        return template.format(**{**record, **more})
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise BadInput(f'template {template!r} asks for {error}, records have {", ".join(record)}; change the template') from None


def fields_of(template: str) -> list[str]:
    """The fields of a record that a template asks for.

    Raises:
      BadInput: braces that do not close.
    """
    try:
        return [re.split(r'[.\[]', name)[0] for _, name, _, _ in string.Formatter().parse(template) if name]
    except ValueError as error:
        raise BadInput(f'template {template!r} cannot be read: {error}; write {{{{ and }}}} for braces') from None
