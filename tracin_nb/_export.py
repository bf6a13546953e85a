"For `nbdev-export` (see pyproject.toml): lists of public names with at most 100 characters a line"

from textwrap import TextWrapper
from typing import Any

import nbdev.maker


class Narrow(TextWrapper):
    "A text wrapper for 100 characters a line, where nbdev asks for 120."

    def __init__(self, width: int, **options: Any):
        super().__init__(min(width, 100 - len('__all__ = ')), **options)


def narrow(cell: Any) -> None:
    "Leave a cell as it is: what is to be done is done when this module is imported."


nbdev.maker.TextWrapper = Narrow
