"""Pages: nobody shares one by accident, known prefixes are found, room is made from the oldest."""

from __future__ import annotations

import random

import pytest

from validation.engine.pool import PAGE_SIZE, PagePool


def tokens(*pages: int, tail: int = 0) -> list[int]:
    """Tokens that fill one page for each number, and ``tail`` more."""
    return [page for page in pages for _ in range(PAGE_SIZE)] + [0] * tail


def fill(pool: PagePool, prompt: list[int]) -> list[int]:
    """Serve a prompt: match, allocate the rest, publish, release. The pages it used."""
    matched = pool.match(prompt)
    fresh = pool.allocate(-(-(len(prompt) + 1) // PAGE_SIZE) - len(matched))
    assert fresh is not None
    pool.publish(matched + fresh, prompt)
    pool.release(matched + fresh)
    return matched + fresh


def test_a_known_prefix_is_found_by_pages() -> None:
    pool = PagePool(8)
    first = fill(pool, tokens(1, 2, tail=5))
    assert pool.match(tokens(1, 2, tail=1)) == first[:2]
    assert pool.match(tokens(1, 3, tail=1)) == first[:1]
    assert pool.match(tokens(2, tail=1)) == []


def test_the_last_token_is_always_computed() -> None:
    pool = PagePool(8)
    first = fill(pool, tokens(1, 2))
    assert pool.match(tokens(1, 2)) == first[:1]


def test_a_page_in_use_is_never_handed_out() -> None:
    pool = PagePool(3)
    fill(pool, tokens(1, tail=1))
    held = pool.match(tokens(1, tail=1))
    others = pool.allocate(2)
    assert others is not None
    assert not set(held) & set(others)
    assert pool.allocate(1) is None


def test_room_is_made_from_the_oldest_leaf() -> None:
    pool = PagePool(4)
    fill(pool, tokens(1, 2, tail=1))
    fill(pool, tokens(3, tail=1))
    assert pool.available == 4
    taken = pool.allocate(2)
    assert taken is not None
    assert len(pool.match(tokens(1, 2, tail=1))) == 1, "the continuation goes before the page it continues"
    assert len(pool.match(tokens(3, tail=1))) == 1


def test_flush_forgets_and_keeps_what_is_held() -> None:
    pool = PagePool(4)
    fill(pool, tokens(1, 2, tail=1))
    held = pool.match(tokens(1, tail=1))
    pool.flush()
    assert pool.match(tokens(1, 2, tail=1)) == []
    assert pool.available == 3
    pool.release(held)
    assert pool.available == 4


def test_a_prefix_filled_twice_is_known_once() -> None:
    pool = PagePool(8)
    both = [pool.allocate(2), pool.allocate(2)]
    for pages in both:
        assert pages is not None
        pool.publish(pages, tokens(1, 2))
    for pages in both:
        pool.release(pages or [])
    assert pool.available == 8
    assert pool.match(tokens(1, 2, tail=1)) == both[0]


def test_pages_are_conserved_under_random_use() -> None:
    rng = random.Random(0)
    pool = PagePool(12)
    held: list[list[int]] = []
    for _ in range(2000):
        if held and rng.random() < 0.5:
            pool.release(held.pop(rng.randrange(len(held))))
            continue
        prompt = tokens(*(rng.randrange(3) for _ in range(rng.randint(1, 3))), tail=1)
        matched = pool.match(prompt)
        fresh = pool.allocate(-(-len(prompt) // PAGE_SIZE) - len(matched))
        if fresh is None:
            pool.release(matched)
            continue
        assert not set(fresh) & {page for pages in held for page in pages}
        pool.publish(matched + fresh, prompt)
        held.append(matched + fresh)
        assert pool.available == 12 - len({page for pages in held for page in pages})
    for pages in held:
        pool.release(pages)
    assert pool.available == 12


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="0 pages"):
        PagePool(0)
