"""The report in a headless Chromium: slider, keyboard, narrow and dark screens, and nothing from the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import CompiledProgram, Preference
from iapo_dspy.bandit.compound.arm_words import arm_in_words
from iapo_dspy.report.page import page_html
from iapo_dspy.report.page_data import PageArm, PageReliability
from tests.support.compiling import optimizers
from tests.support.loopback import Loopback
from tests.support.pages import ARMS, small_page
from tests.support.worlds import adder, questions, student

webdriver = pytest.importorskip("selenium.webdriver")
pytest.importorskip("selenium.webdriver.support.ui")
pytest.importorskip("plotly")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver"),
]
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
MOVE = """
const slider = document.getElementById("weight"), out = document.getElementById("chosen"), found = [];
for (let i = 0; i <= Number(slider.max); i += 1) {
  slider.value = i;
  slider.dispatchEvent(new Event("input"));
  const star = document.getElementById("frontier-chart").data.at(-1);
  found.push([{...out.dataset}, star.x[0], star.y[0]]);
}
return found;
"""


@pytest.fixture(scope="module")
def program() -> CompiledProgram:
    with Loopback(adder) as server, dspy.context(lm=server.lm(seed=3)):
        return optimizers(budget=300, max_n=8)().compile(student(), trainset=questions(40))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory, program: CompiledProgram) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("browser")
    program.detailed_results.report(folder / "report.html")
    with opened(folder, "report.html") as driver:
        yield driver


@contextmanager
def opened(folder: Path, name: str) -> Iterator[Any]:
    """Open a page in a browser of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(f"file://{folder / name}")
        wait = webdriver.support.ui.WebDriverWait(driver, 60)
        wait.until(lambda d: d.execute_script("return document.documentElement.dataset.ready") == "yes")
        yield driver
    finally:
        driver.quit()


def screen(chromium: Any, width: int, scheme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_of = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_of)


def test_the_page_asks_the_network_for_nothing_and_raises_nothing(chromium: Any) -> None:
    sent = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [m["params"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    urls = [
        p["request"]["url"] for p in asked if p["documentURL"].startswith("file:")
    ]  # not of the browser's own pages
    assert urls[0].endswith("/report.html")
    assert all(url.startswith(("data:", "blob:")) for url in urls[1:])
    assert chromium.get_log("browser") == []


def test_the_slider_shows_what_the_program_solves(chromium: Any, program: CompiledProgram) -> None:
    found = chromium.execute_script(MOVE)
    assert len(found) >= 200
    known = {p.wishes for p in program.preferences}
    for i, (shown, x, y) in enumerate(found):
        preference = Preference(cost=float(shown["weight"]))
        arm = program.solve(preference)
        assert (int(shown["prompt"]), int(shown["n"])) == (arm.prompt, arm.n)
        assert shown["words"] == (arm_in_words(arm, program.policy.strategy.aggregator()) if arm.compound else "")
        assert shown["stop"] == (arm.stop.in_words if arm.stop is not None and not arm.compound else "")
        if i % 20 == 1 and preference.wishes not in known:
            chosen = program.explain(preference=preference).chosen
            assert float(shown["utility"]) == pytest.approx(chosen.utility, abs=1e-9)
            assert (x, y) == (pytest.approx(chosen.cost), pytest.approx(chosen.reward))


def test_the_keyboard_moves_the_slider_and_words_tell_where_it_is(chromium: Any) -> None:
    slider = chromium.find_element("id", "weight")
    chromium.execute_script("arguments[0].value = 0; arguments[0].focus()", slider)
    slider.send_keys("\ue014")  # the right arrow
    assert slider.get_attribute("value") == "1"
    assert slider.get_attribute("aria-valuetext").startswith("cost weight 0.001, prompt ")
    assert "Cost weight 0.001: N=" in chromium.find_element("id", "chosen").text


def test_another_axis_moves_the_points(chromium: Any) -> None:
    script = """
    const select = document.getElementById("axis"), chart = document.getElementById("frontier-chart");
    return [...select.options].map((option) => {
      select.value = option.value;
      select.dispatchEvent(new Event("change"));
      return [option.textContent, chart.layout.xaxis.title.text, chart.data.at(-1).x[0]];
    });
    """
    found = chromium.execute_script(script)
    assert [name for name, _, _ in found] == ["Output tokens", "Seconds"]
    assert all(title == f"{name} per call" for name, title, _ in found)
    assert len({x for _, _, x in found}) == 2


def test_narrow_screens_do_not_scroll_sideways(chromium: Any) -> None:
    width = "return document.documentElement.scrollWidth"
    drawn = """
    const drawn = [...document.querySelectorAll(".chart .main-svg")];
    return Math.max(...drawn.map((svg) => svg.getBoundingClientRect().width));
    """
    screen(chromium, 360)
    assert chromium.execute_script(width) <= 360  # the charts may still be as wide as before
    wait = webdriver.support.ui.WebDriverWait(chromium, 60)
    assert wait.until(lambda d: d.execute_script(drawn) <= 360)
    assert chromium.execute_script(width) <= 360
    screen(chromium, 1280)
    wait.until(lambda d: d.execute_script(drawn) > 360)


def test_a_chart_that_is_too_wide_does_not_widen_the_page(chromium: Any) -> None:
    screen(chromium, 360)
    script = """
    const charts = [...document.querySelectorAll(".chart")];
    const wide = charts.map((chart) => chart.appendChild(document.createElement("p")));
    wide.forEach((p) => { p.style.width = "3000px"; p.textContent = "wide"; });
    const found = [wide.length, document.documentElement.scrollWidth, document.body.scrollWidth];
    wide.forEach((p) => p.remove());
    return found;
    """
    charts, *widths = chromium.execute_script(script)
    assert charts == 4
    assert max(widths) <= 360
    screen(chromium, 1280)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_easy_to_read(chromium: Any, scheme: str) -> None:
    screen(chromium, 1280, scheme)
    script = """
    const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    return ["--ground", "--panel", "--text", "--soft", "--accent"].map(value);
    """
    ground, panel, *texts = chromium.execute_script(script)
    for text in texts:
        assert min(contrast(text, ground), contrast(text, panel)) >= 4.5  # WCAG 2.1, AA
    screen(chromium, 1280)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.1)."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_cascades_are_said_in_words_and_labels_are_shown_letter_by_letter(tmp_path: Path) -> None:
    label, words = "Say <b>why</b> & %{x} &lt;", "2 of prompt 0; 4 of prompt 1 instead where not all 2 agree"
    cascade = PageArm(
        prompt=0, n=2, stop="", words=words, prompts=(0, 1), reward=0.9, standard_error=0.02, completions=3.2,
        use={"cost": 12.0, "tokens": 12.5}, abstains=0.04,
    )  # fmt: skip
    data = small_page(label=label)
    view = replace(data.views[0], arms=(cascade, *ARMS), chosen=(0, 1, 2))
    sure = PageReliability(
        name="safe <i>", confidence=(0.55, 0.9), right=(0.5, 0.92), count=(20, 80), error="confidence is off by 0.026"
    )
    page = page_html(replace(data, views=(view,), reliability=(sure,)))
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    script = """
    const chart = document.getElementById("frontier-chart");
    const several = chart.data.find((trace) => trace.name.includes("cascade"));
    return {
      text: document.getElementById("chosen").textContent, told: document.getElementById("weight").ariaValueText,
      words: document.getElementById("chosen").dataset.words, star: chart.data.at(-1),
      point: [several.x, several.y, several.text],
      rows: [...document.querySelectorAll("#arms-table tbody tr")].map((row) => row.cells[0].textContent),
      sure: document.getElementById("confidence-chart").data.map((trace) => [trace.x, trace.y]),
      legends: [...document.querySelectorAll("#frontier-chart .legendtext")].map((text) => text.textContent),
    };
    """
    with opened(tmp_path, "page.html") as driver:
        found = driver.execute_script(script)
        assert driver.get_log("browser") == []
    assert found["text"].startswith(
        f"Cost weight 0: {words}; 3.2 completions on average; no answer to 4.0 %. Utility 0.900, quality 0.900"
    )
    assert (found["words"], found["told"]) == (words, f"cost weight 0, {words}")
    assert (found["star"]["x"], found["star"]["y"]) == ([12.0], [0.9])
    assert found["point"][:2] == [[12.0], [0.9]] and words.replace("; ", ";<br>") in found["point"][2][0]
    assert found["rows"] == [words, "1: Think first", f"0: {label}"]
    assert found["legends"][0] == f"0: {label}"
    assert found["sure"] == [[[0, 1], [0, 1]], [[0.55, 0.9], [0.5, 0.92]]]
    assert "safe &lt;i&gt;: confidence is off by 0.026." in page and "0.920" in page
