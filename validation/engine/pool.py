"""Pages of the KV pool: who holds them, and which of them hold a known prefix. No tensors here.

Only pages that prefill filled completely are kept for reuse. Prefill always runs in the same page-aligned chunks, so a
reused page holds the very bits that computing it again would give; tokens from decode steps would not promise that.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

PAGE_SIZE = 64
"""SGLang's page size for sparse MLA (its page table is in units of 64 slots)."""

_Key = tuple[int, tuple[int, ...]]
"""The page before (-1 for none) and the tokens in this one."""


@dataclasses.dataclass
class _Page:
    key: _Key | None = None
    """What it can be found by; None while its content is not known."""
    holders: int = 0
    children: int = 0
    """Known pages that continue it; it must outlive them."""


class PagePool:
    """Hands out pages by number. Known pages that nobody holds stay until their room is needed, oldest first."""

    def __init__(self, pages: int) -> None:
        if pages < 1:
            raise ValueError(f"a pool of {pages} pages was asked for; expected at least 1")
        self._pages = [_Page() for _ in range(pages)]
        self._free = list(range(pages - 1, -1, -1))
        self._known: dict[_Key, int] = {}
        self._idle: collections.OrderedDict[int, None] = collections.OrderedDict()

    @property
    def size(self) -> int:
        """Pages in all."""
        return len(self._pages)

    @property
    def available(self) -> int:
        """Pages that ``allocate`` could hand out now."""
        return len(self._free) + len(self._idle)

    def match(self, tokens: Sequence[int]) -> list[int]:
        """Take hold of the known pages that ``tokens`` starts with; the last token is never among them.

        Its logits are wanted, so at least one token is always computed.
        """
        found: list[int] = []
        parent = -1
        for start in range(0, len(tokens) - PAGE_SIZE, PAGE_SIZE):
            page = self._known.get((parent, tuple(tokens[start : start + PAGE_SIZE])))
            if page is None:
                break
            found.append(page)
            parent = page
        for page in found:
            self._pages[page].holders += 1
            self._idle.pop(page, None)
        return found

    def allocate(self, count: int) -> list[int] | None:
        """``count`` empty pages, or None where there are not so many."""
        if count > self.available:
            return None
        pages = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._evict()
            self._pages[page].holders = 1
            pages.append(page)
        return pages

    def publish(self, pages: Sequence[int], tokens: Sequence[int]) -> None:
        """Make the full ones of ``pages``, which hold ``tokens``, findable; a known prefix stays where it is."""
        parent = -1
        for number, page in enumerate(pages[: len(tokens) // PAGE_SIZE]):
            key = (parent, tuple(tokens[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]))
            known = self._known.get(key)
            if known is None:
                self._known[key] = known = page
                self._pages[page].key = key
                if parent >= 0:
                    self._pages[parent].children += 1
            if known != page:
                return  # its followers hang on another page than ours, so ours stay private
            parent = page

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back; known ones go idle, the others are free."""
        for page in pages:
            entry = self._pages[page]
            entry.holders -= 1
            if entry.holders == 0:
                if entry.key is None:
                    self._free.append(page)
                else:
                    self._idle[page] = None

    def flush(self) -> None:
        """Forget every prefix. Pages in use stay with their holders and are free afterwards."""
        for page in self._idle:
            self._free.append(page)
        self._idle.clear()
        self._known.clear()
        for entry in self._pages:
            entry.key, entry.children = None, 0

    def _evict(self) -> int:
        page = next(p for p in self._idle if not self._pages[p].children)
        del self._idle[page]
        entry = self._pages[page]
        if entry.key is not None:
            del self._known[entry.key]
            if entry.key[0] >= 0:
                self._pages[entry.key[0]].children -= 1
        entry.key = None
        return page
