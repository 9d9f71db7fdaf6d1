"""The timeline and the case page in headless Chromium: clicks, hover, zoom, keys, both schemes, 50,000 kernels."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Dialog, Page, ViewportSize
from test_timeline_case_page import ABOUT, judged
from timeline_examples import HOSTILE, many, recorded, single_and_dual, written

from validation.case_page import to_case_page
from validation.timeline import to_timeline

DESK = ViewportSize(width=1300, height=900)
PHONE = ViewportSize(width=360, height=740)
Scheme = Literal["light", "dark"]
Opener = Callable[..., Page]
USABLE_MS = 100
"""Longest that a drawing may take: below it, a response feels immediate (Nielsen, Usability Engineering, 1993)."""
CONTRAST = 4.5
"""Least contrast of text: WCAG 2.2, success criterion 1.4.3, level AA."""
MARK_CONTRAST = 3.0
"""Least contrast of a graphical object: WCAG 2.2, success criterion 1.4.11, level AA."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp("timelines")
    (folder / "traces").mkdir()
    traces = {
        "dual": single_and_dual(folder / "traces"),
        "recorded": [recorded("cat"), recorded("skip")],
        "hostile": [written(folder / "traces", HOSTILE, [(HOSTILE, 7, 0.0, 10.0), ("x" + HOSTILE, 7, 15.0, 10.0)])],
        "many": [many(folder / "traces", 50_000)],
    }
    files = {}
    for name, named in traces.items():
        files[name] = folder / f"{name}.html"
        files[name].write_text(to_timeline(named), encoding="utf-8")
    files["case"] = folder / "case.html"
    files["case"].write_text(to_case_page(judged(), "cat_skip", ABOUT), encoding="utf-8")
    return files


@pytest.fixture
def opened(browser: Browser, pages: dict[str, pathlib.Path]) -> Iterator[Opener]:
    """Opens a timeline in a page that fails the test on any request, dialog or script error."""
    errors: list[str] = []
    open_pages: list[Page] = []

    def refuse(dialog: Dialog) -> None:
        errors.append(dialog.message)
        dialog.dismiss()

    def open_page(name: str, scheme: Scheme = "light", size: ViewportSize = DESK) -> Page:
        page = browser.new_page(viewport=size, color_scheme=scheme)
        url = pages[name].as_uri()
        page.on("request", lambda request: errors.append(request.url) if request.url != url else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", refuse)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(url)
        open_pages.append(page)
        return page

    yield open_page
    for page in open_pages:
        page.close()
    assert errors == []


def settled(page: Page) -> Page:
    """Two frames later: what was asked for is drawn."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))")
    return page


def bar(page: Page) -> dict[str, float]:
    """Position and width in pixels of the kernel that begins the first trace's layer pass."""
    return dict(
        page.evaluate(
            """() => { const at = (e, key) => +e.getAttribute(key);
            const window = document.querySelector("#shapes .window"), lane = document.querySelector("#shapes .lane");
            const near = k => Math.abs(at(k, "y") - at(lane, "y")) < 6;
            const bars = [...document.querySelectorAll("#shapes .k")].filter(near);
            const away = k => Math.abs(at(k, "x") - at(window, "x"));
            const first = bars.reduce((a, b) => away(b) < away(a) ? b : a);
            return {x: at(first, "x"), width: at(first, "width")}; }"""
        )
    )


def hover(page: Page, microseconds: float, row: int = 0) -> str:
    """Point at a moment of one stream (counted over all traces' drawn streams); the tip's text."""
    place: dict[str, Any] = page.evaluate(
        """([us, row]) => { const lane = document.querySelectorAll('#shapes .lane')[row].getBoundingClientRect();
        const ticks = [...document.querySelectorAll('#shapes .tick')]
          .map(t => [parseFloat(t.textContent), +t.getAttribute('x') - 3]);
        const [[t0, x0], [t1, x1]] = ticks;
        return {x: lane.left + x0 + (us - t0) * (x1 - x0) / (t1 - t0), y: lane.top + lane.height / 2}; }""",
        [microseconds, row],
    )
    page.mouse.move(place["x"], place["y"])
    tip = page.locator("#tip")
    return tip.inner_text() if tip.is_visible() else ""


def test_it_opens_fitted_to_the_layer_pass(opened: Opener) -> None:
    page = opened("dual")
    assert page.locator("#labels .trace").all_inner_texts() == ["single", "dual"]
    assert page.locator("#labels .stream").count() == 3
    width = page.locator("#chart").evaluate("chart => chart.clientWidth")
    window = page.locator("#shapes .window").first.evaluate("w => +w.getAttribute('width')")
    assert 0.85 * width < window <= width


@pytest.mark.parametrize(("button", "scale"), [("1", 4.0), ("1.5", 6.0), ("2", 8.0)])
def test_zoom_buttons_set_pixels_a_microsecond(opened: Opener, button: str, scale: float) -> None:
    page = opened("dual")
    page.click(f"[data-zoom='{button}']")
    settled(page)
    assert bar(page)["width"] == pytest.approx(10.0 * scale, abs=0.1), "norm takes 10 us"
    page.click("[data-zoom=fit]")
    settled(page)
    assert bar(page)["width"] > 10.0 * 8.0


def test_hover_tells_full_name_duration_and_start(opened: Opener) -> None:
    page = opened("recorded")
    said = ""
    box = page.locator("#shapes .k").nth(3).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    said = page.locator("#tip").inner_text()
    assert "duration" in said
    assert "start" in said
    data = json.loads(page.locator("#data").inner_text())
    assert said.splitlines()[0] in data["names"]
    page.mouse.move(2, 2)
    assert not page.locator("#tip").is_visible()


def test_hover_on_a_gap_tells_its_class_and_length(opened: Opener) -> None:
    page = opened("dual")
    assert "stall of 5.00 us: nothing runs on any stream" in hover(page, 24.0, row=1)
    assert "dispatch of 0.50 us" in hover(page, 10.25, row=0)
    page.click("[data-gaps=on_lane]")
    assert page.locator("[data-gaps=on_lane]").get_attribute("aria-pressed") == "true"
    assert "stream 0:9 is idle" in hover(page, 5.0, row=2)


def test_gaps_are_told_by_pattern_and_not_by_colour_alone(opened: Opener) -> None:
    page = opened("dual")
    fills = set(page.locator("#shapes .gap").evaluate_all("gaps => gaps.map(g => g.getAttribute('fill'))"))
    assert fills == {"url(#stall)", "url(#fence)", "url(#dispatch)"}
    shapes = {page.locator(f"#{kind}").inner_html().replace(kind, "") for kind in ("stall", "fence", "dispatch")}
    assert len(shapes) == 3
    assert page.locator("#shapes .gap.stall").count() >= 1


def test_scrolling_moves_through_the_whole_trace(opened: Opener) -> None:
    page = opened("dual")
    page.click("[data-zoom='2']")
    settled(page)
    before = page.locator("#shapes .k").evaluate_all("all => all.map(k => k.getAttribute('x'))")
    page.locator("#chart").evaluate("chart => { chart.scrollLeft = chart.scrollWidth; }")
    settled(settled(page))
    end = "k => +k.getAttribute('x') + +k.getAttribute('width')"
    ends = page.locator("#shapes .k").evaluate_all(f"all => all.map({end})")
    assert len(before) != len(ends) or before != ends
    right = page.locator("#chart").evaluate("chart => chart.clientWidth")
    assert 0.8 * right < max(ends) <= right, "the last kernel ends the trace"


def test_the_keyboard_walks_kernels_streams_and_stalls(opened: Opener) -> None:
    page = opened("dual")
    chart, detail = page.locator("#chart"), page.locator("#detail")
    for _ in range(40):
        page.keyboard.press("Tab")
        if chart.evaluate("chart => chart === document.activeElement"):
            break
    assert detail.inner_text().startswith("norm"), "focus chooses the first kernel of the pass"
    assert settled(page).locator("#shapes .chosen").count() == 1
    said = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowDown", "End", "Home"):
        page.keyboard.press(key)
        said.append(detail.inner_text().split()[0])
    assert said == ["index", "query", "index", "query", "index", "attention", "norm"]
    page.keyboard.press("n")
    assert "stall" in detail.inner_text()
    page.keyboard.press("Escape")
    assert settled(page).locator("#shapes .chosen").count() == 0
    assert detail.get_attribute("aria-live") == "polite"


def test_keys_zoom_too(opened: Opener) -> None:
    page = opened("dual")
    page.locator("#chart").focus()
    before = bar(page)["width"]
    page.keyboard.press("-")
    settled(page)
    assert bar(page)["width"] == pytest.approx(before / 1.5, rel=0.02)
    page.keyboard.press("f")
    settled(page)
    assert bar(page)["width"] == pytest.approx(before, rel=0.02)


def test_control_and_the_wheel_zoom_around_the_pointer(opened: Opener) -> None:
    page = opened("dual")
    before = hover(page, 5.0)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    settled(page)
    assert bar(page)["width"] > 300
    assert before.startswith("norm")
    assert hover(page, 5.0).startswith("norm")


def test_a_click_chooses_and_the_stall_table_leads_to_the_stall(opened: Opener) -> None:
    page = opened("dual")
    page.locator("#shapes .k").nth(1).click()
    assert page.locator("#detail").inner_text().startswith("norm")
    page.locator("table.stalls [data-at]").first.click()
    settled(page)
    said = page.locator("#detail").inner_text()
    assert said.startswith("attention")
    assert "across streams 5.00 us (stall)" in said
    stall = page.locator("#shapes .gap.stall").first.bounding_box()
    assert stall is not None
    assert stall["width"] >= 40
    assert page.locator("#chart").evaluate("chart => chart === document.activeElement")


def test_the_decomposition_card_shows_the_parts(opened: Opener) -> None:
    page = opened("dual")
    assert page.locator("#decomposition .stall_us td").all_inner_texts() == ["0.00", "5.00", "+5.00"]
    assert page.locator("svg.bar").count() == 2


def test_streams_idle_in_the_pass_are_folded_and_can_be_shown(opened: Opener) -> None:
    page = opened("recorded")
    folded = page.locator("#labels .stream").count()
    page.check("#quiet")
    assert page.locator("#labels .stream").count() > folded
    assert not opened("dual").locator("#quiet").is_visible(), "there is none"


def test_the_diagrams_of_a_case_keep_their_text_in_their_boxes(opened: Opener) -> None:
    page = opened("case")
    plots = page.locator("main svg[role=img]")
    assert plots.count() == 4
    for plot in plots.all():
        outside = plot.evaluate(
            """svg => { const boxes = [...svg.querySelectorAll("rect")].map(r => r.getBoundingClientRect());
            const inside = (t, b) => t.top >= b.top && t.bottom <= b.bottom && t.left >= b.left && t.right <= b.right;
            const crosses = (t, b) => !(t.right < b.left || t.left > b.right || t.bottom < b.top || t.top > b.bottom);
            return [...svg.querySelectorAll("text")].filter(text => { const t = text.getBoundingClientRect();
              return boxes.some(b => crosses(t, b)) && !boxes.some(b => inside(t, b)); }).map(t => t.textContent); }"""
        )
        assert outside == []


def test_fifty_thousand_kernels_stay_usable(opened: Opener) -> None:
    page = opened("many")

    def drawn_ms() -> float:
        return float(settled(page).locator("#drawing").get_attribute("data-draw-ms") or "inf")

    drawn = []
    for how in ("fit", "1", "1.5", "2", "all", "in", "in", "in", "out"):
        page.click(f"[data-zoom='{how}']")
        drawn.append(drawn_ms())
    for share in (0.1, 0.5, 0.9):
        page.locator("#chart").evaluate(f"chart => {{ chart.scrollLeft = {share} * chart.scrollWidth; }}")
        drawn.append(drawn_ms())
    assert max(drawn) < USABLE_MS, drawn
    assert int(page.locator("#drawing").get_attribute("data-shapes") or 0) < 5000
    page.click("[data-zoom='2']")
    settled(page)
    assert hover(page, 1.5, row=0).startswith("void ns::kernel_0<0>(int)")


def test_hostile_names_run_nothing(opened: Opener) -> None:
    page = opened("hostile")
    assert page.locator("img, iframe").count() == 0
    assert "<img src=x" in hover(page, 3.0)
    page.locator("#chart").focus()
    page.keyboard.press("ArrowRight")
    assert "</script>" in page.locator("#detail").inner_text()


def test_a_planted_script_does_not_run(
    browser: Browser, pages: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    html = pages["dual"].read_text(encoding="utf-8")
    planted = tmp_path / "planted.html"
    planted.write_text(html.replace("</main>", "<script>document.title = 'ran'</script></main>"), encoding="utf-8")
    page = browser.new_page()
    page.goto(planted.as_uri())
    assert page.title() != "ran"
    assert page.locator("#shapes .k").count() > 0, "our own script still does"
    page.close()


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", ["dual", "recorded", "case"])
def test_the_page_never_scrolls_sideways(opened: Opener, name: str, size: ViewportSize) -> None:
    page = opened(name, size=size)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


COLOURS = """
() => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = name => {
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    context.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  return {
    text: [..."01234567"].map(n => ratio("--bar-ink", `--c${n}`))
      .concat(ratio("--quiet", "--page"), ratio("--ink", "--panel")),
    marks: [ratio("--stall", "--stall-back"), ratio("--fence", "--fence-back"), ratio("--stall", "--panel"),
      ratio("--fence", "--panel"), ratio("--bar-edge", "--panel"), ratio("--chosen", "--panel")],
  };
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_gaps_and_edges_have_contrast(opened: Opener, scheme: Scheme) -> None:
    found = opened("dual", scheme).evaluate(COLOURS)
    assert min(found["text"]) >= CONTRAST
    assert min(found["marks"]) >= MARK_CONTRAST
