"""What becomes of a generated answer before it is compared with references."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """Rules, applied in the order of these fields.

    Attributes:
      cut: the text ends before the first of these.
      last_cut: what is left ends before this one, in a second step; "" = nothing.
      remove: characters that are taken out.
      strip: is white space around it taken off?
    """

    cut: tuple[str, ...] = ()
    last_cut: str = ""
    remove: str = ""
    strip: bool = False

    def clean(self, text: str) -> str:
        """The answer that counts."""
        places = [place for mark in self.cut if (place := text.find(mark)) >= 0]
        text = text[: min(places)] if places else text
        if self.last_cut:
            text = text.split(self.last_cut, 1)[0]
        for character in self.remove:
            text = text.replace(character, "")
        return text.strip() if self.strip else text
