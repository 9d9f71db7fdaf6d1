"""The report in headless Chromium: light, dark, phone, print, keyboard. Run by ``tox run -e browser``.

Needs a Chromium: ``CHROMIUM=/path``, Debian's ``chromium``, Chrome, or what ``playwright install chromium`` fetches.
"""

from __future__ import annotations

import pathlib
import unicodedata
from typing import Literal

import pypdf
import pytest
from playwright.sync_api import Browser, Dialog, Page, ViewportSize
from report_examples import EXAMPLES, judgement
from test_report_from_judges import accuracy_findings, latency_findings, tokens_findings

from validation.reporting import write_reports

CONTRAST = 4.5
"""Least contrast of text: WCAG 2.2, success criterion 1.4.3, level AA."""
PHONE = ViewportSize(width=360, height=740)
DESK = ViewportSize(width=1200, height=900)

LUMINANCE = """
element => {
  const channels = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = colour => { const [r, g, b] = channels(colour); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const clear = colour => colour === "rgba(0, 0, 0, 0)" || colour === "transparent";
  let behind = element;
  while (behind && clear(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const style = getComputedStyle(element);
  const front = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
  const [a, b] = [light(front), light(behind ? getComputedStyle(behind).backgroundColor : "rgb(255, 255, 255)")];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
"""


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp("reports")
    judged = {**EXAMPLES, "judged": judgement(*latency_findings(), *accuracy_findings(), *tokens_findings())}
    return {name: write_reports(folder / name, j) for name, j in judged.items()}


Scheme = Literal["light", "dark"]


def opened(browser: Browser, report: pathlib.Path, scheme: Scheme = "light", size: ViewportSize = DESK) -> Page:
    """The report in a page that fails the test on any request or script error."""
    page = browser.new_page(viewport=size, color_scheme=scheme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert asked == [report.as_uri()], "a self-contained page asks for nothing else"
    return page


@pytest.mark.parametrize("name", [*EXAMPLES, "judged"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_page_never_scrolls_sideways(
    browser: Browser, reports: dict[str, pathlib.Path], name: str, size: ViewportSize
) -> None:
    page = opened(browser, reports[name], size=size)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(browser: Browser, reports: dict[str, pathlib.Path], scheme: Scheme) -> None:
    page = opened(browser, reports["judged"], scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    texts = page.locator("h1, h2, h3, p, td, th, a, summary, figcaption, .verdict, svg text")
    worst = min(texts.evaluate_all(f"elements => elements.map({LUMINANCE})"))
    assert worst >= CONTRAST
    page.close()


def test_verdicts_are_told_without_colour(browser: Browser, reports: dict[str, pathlib.Path]) -> None:
    page = opened(browser, reports["fail"])
    said = {text.strip() for text in page.locator(".ladder .verdict").all_inner_texts()}
    assert said == {"✓ pass", "✗ fail", "○ not run", "✗ inconsistent"}
    page.close()


def test_the_keyboard_reaches_the_verdict_the_tables_and_the_details(
    browser: Browser, reports: dict[str, pathlib.Path]
) -> None:
    page = opened(browser, reports["judged"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className"))
    assert {"A.", "DIV.scroll", "DIV.plot", "SUMMARY."} <= seen
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.evaluate("element => element.open")
    page.close()


def test_hostile_text_runs_nothing(browser: Browser, reports: dict[str, pathlib.Path]) -> None:
    page = browser.new_page(viewport=DESK)
    raised: list[str] = []

    def refuse(dialog: Dialog) -> None:
        raised.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    page.on("pageerror", lambda error: raised.append(str(error)))
    page.goto(reports["hostile"].as_uri())
    assert page.locator("script, img, iframe, b").count() == 0
    assert "<script>alert(1)</script>" in page.locator("h1").inner_text()
    assert raised == []
    page.close()


def test_a_script_would_not_run_even_if_one_slipped_in(
    browser: Browser, reports: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    html = reports["pass"].read_text(encoding="utf-8")
    planted = tmp_path / "planted.html"
    planted.write_text(html.replace("</main>", "<script>document.title = 'ran'</script></main>"), encoding="utf-8")
    page = browser.new_page()
    page.goto(planted.as_uri())
    assert page.title() != "ran"
    page.close()


def test_print_holds_everything_on_white_paper(
    browser: Browser, reports: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    page = opened(browser, reports["judged"], "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    pdf = tmp_path / "report.pdf"
    page.pdf(path=pdf, format="A4")
    printed = "".join(p.extract_text() for p in pypdf.PdfReader(pdf).pages)
    text = "".join(unicodedata.normalize("NFKC", printed).split())  # a PDF's text holds ligatures
    assert "numbersoflatency.primary" in text.lower()
    assert "sign_flip_smallest_p" in text, "details that are closed on the screen are open on paper"
    page.close()


def test_plots_have_names_and_lie_inside_their_boxes(browser: Browser, reports: dict[str, pathlib.Path]) -> None:
    page = opened(browser, reports["judged"])
    plots = page.locator("svg")
    assert plots.count() == 4
    for plot in plots.all():
        assert plot.get_attribute("role") == "img"
        assert plot.get_attribute("aria-label")
        overflow = plot.evaluate(
            """svg => { const box = svg.getBoundingClientRect(); return [...svg.querySelectorAll("text")].filter(t => {
            const r = t.getBoundingClientRect(); return r.left < box.left - 2 || r.right > box.right + 2; })
            .map(t => t.textContent); }"""
        )
        assert overflow == []
    page.close()
