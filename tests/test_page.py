"""The page in a real browser: what it sorts, filters, draws and compares is what the records say."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import sample_perplexity, sample_record, sample_result, with_bits

from mcbench.allocation import BitAllocation
from mcbench.catalogue import TASKS
from mcbench.errors import BadInput
from mcbench.leaderboard import HTML, leaderboard, render, tabulate_records
from mcbench.page import SIGNIFICANCE, Significance, item_ids, read_significance, series
from mcbench.record import FILE_NAME, Record, Result

HOSTILE = "a\"b'<img src=x onerror=alert(1)></script><b>&amp;"
ITEMS = 40
NAMES = ("pmq+gptq", "fnorm+gptq", "hessian+gptq", HOSTILE, "random+gptq")


def scored(result: Result, outcomes: Sequence[float]) -> Result:
    """The same result with the score of every item."""
    return dataclasses.replace(result, outcomes=tuple(outcomes))


@functools.cache
def right(seed: int) -> tuple[float, ...]:
    """Invented right and wrong answers."""
    return tuple(float(x) for x in np.random.default_rng(seed).integers(0, 2, ITEMS))


def losses(seed: int) -> tuple[float, ...]:
    """Invented negative log-likelihoods of windows, in nats."""
    return tuple(float(x) for x in np.random.default_rng(seed).uniform(300, 400, ITEMS))


def run(at: int, **changes: Any) -> Record:
    """One of several comparable runs, of other scores and stored bits each."""
    record = sample_record(
        method=NAMES[at % len(NAMES)],
        allocation=BitAllocation(np.array([[1, 2, 3, 2], [2, 1, 2, 1 + at % 3]])),
        results=(
            scored(sample_perplexity(value=7.5 + (at * 7) % 5, standard_error=0.1 * (at + 1)), losses(at)),
            scored(sample_result(value=0.4 + 0.05 * ((at * 3) % 5)), right(at)),
            scored(sample_result("mini-boolq", protocol=f"{HOSTILE}@1"), right(at + 50)),
        ),
        **changes,
    )
    return with_bits(record, stored=5.0 + 0.25 * at)


@functools.cache
def runs() -> tuple[Record, ...]:
    """Five runs and the uncompressed model on one model, two on another; one of them lacks a task."""
    whole = run(0, baseline="", fingerprint="b" * 64, calibration=None)
    kept = BitAllocation(np.full((2, 4), 16), attention=16, shared=16)
    plain = tuple(dataclasses.replace(r, value=r.baseline, difference=None) for r in whole.results)
    whole = dataclasses.replace(whole, method="none", allocation=kept, results=tuple(map(again, plain, whole.results)))
    whole = with_bits(whole, asked=None, asked_as="", expert=16.0, label=16.0, whole_model=16.0, stored=16.0)
    other = dataclasses.replace(sample_record().model, name="another", digest="8" * 64)
    short = run(1, model=other)
    return (
        whole,
        *(run(at) for at in range(5)),
        run(0, model=other),
        dataclasses.replace(short, results=short.results[:1]),
    )


def again(result: Result, source: Result) -> Result:
    return scored(result, source.outcomes)


STATISTICS = (
    Significance("reference", "a" * 64, "on a text", {"frequency": np.array([[1.0, 2, 3, 400], [4, 3, 2, 1]])}),
    Significance("unrelated", "7" * 64, "on a text", {"frequency": np.ones((2, 4))}),
)


@functools.cache
def html() -> str:
    return render(*tabulate_records(runs()), significance=STATISTICS)[HTML]


# -- what can be seen without a browser


def test_equal_records_give_equal_pages() -> None:
    again = render(*tabulate_records(runs()[::-1]), significance=STATISTICS)[HTML]
    assert again == html()


def test_the_page_asks_for_nothing_outside_itself() -> None:
    assert not re.search(r"""<link|<iframe|@import|url\(|\bsrc=["']|https?://(?!www\.w3\.org/2000/svg)""", html())
    assert "default-src 'none'" in html()


def test_names_cannot_break_out_of_the_page() -> None:
    assert html().count("</script>") == 2
    assert "<img" not in html()
    data = json.loads(html().partition('id="data">')[2].partition("</script>")[0])
    assert f"{HOSTILE}@1" in data["tasks"]


def test_seeds_make_one_curve() -> None:
    given = {"random(seed=3)+gptq": "random+gptq", "a(seed=1, k=2)+b(k=1, seed=2)": "a(k=2)+b(k=1)", "pmq": "pmq"}
    assert {name: series(sample_record(method=name)) for name in given} == given


def test_ids_are_those_of_the_protocol_or_none() -> None:
    task = TASKS.get("mini-piqa")()
    assert item_ids("mini-piqa", task.protocol) == tuple(item.id for item in task.items())
    assert item_ids("mini-piqa", "mini-piqa@00000000") == item_ids("no such task", "x@1") == ()
    assert item_ids("piqa", "piqa@00000000") == ()  # a published set is not looked for


def test_the_size_of_a_large_leaderboard_is_reasonable() -> None:
    """250 runs of 13 tasks with 300 items each: below 3 MB."""
    rng = np.random.default_rng(0)
    base = sample_record()
    records = []
    for at in range(250):
        results = [scored(sample_perplexity(n=300), rng.uniform(300, 400, 300).tolist())]
        results += [
            scored(sample_result(f"task-{t}"), rng.integers(0, 2, 300).astype(float).tolist()) for t in range(12)
        ]
        records.append(dataclasses.replace(base, method=f"method-{at}(alpha=1.5)+gptq", results=tuple(results)))
    assert len(render(*tabulate_records(records))[HTML].encode()) < 3_000_000


def test_statistics_stand_beside_the_tables_or_are_refused(tmp_path: Path) -> None:
    assert read_significance(tmp_path) == []
    committed = Path(__file__).parent.parent / "leaderboards"
    found = read_significance(committed)
    assert [one.name for one in found] == ["reference", "reference-fine"]  # of Mixtral there is only a summary
    frequency = next(iter(found[0].measures.values()))
    assert frequency.sum(1) == pytest.approx(np.full(4, 200.0))  # top-2: every token counts twice
    (tmp_path / SIGNIFICANCE).parent.mkdir()
    for broken in ("{", '[{"token_count": [[1]]}]', '[{"name": "x", "token_count": 3, "tokens": "many"}]'):
        (tmp_path / SIGNIFICANCE).write_text(broken)
        with pytest.raises(BadInput, match=r"statistics .*figures\.json.* cannot be read"):
            read_significance(tmp_path)


def test_the_page_is_written_and_checked_with_the_tables(tmp_path: Path) -> None:
    for at, record in enumerate((sample_record(), sample_record(seed=1))):
        record.save(tmp_path / "runs" / str(at) / FILE_NAME)
    leaderboard([tmp_path / "runs"], tmp_path / "out")
    assert (tmp_path / "out" / HTML).read_text().startswith("<!doctype html>")
    leaderboard([tmp_path / "runs"], tmp_path / "out", check=True)


# -- in Chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="the package 'selenium' drives the browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1300,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture
def view(browser: Any, tmp_path: Path) -> Any:
    """The browser with the page open as a file."""
    (tmp_path / HTML).write_text(html(), encoding="utf-8")
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get((tmp_path / HTML).as_uri())
    return browser


def texts(view: Any, selector: str) -> list[str]:
    """The text of all that is visible of a selection."""
    script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length)"
    found: list[str] = view.execute_script(f"{script}.map(e => e.textContent)", selector)
    return found


def choose(view: Any, element: str, value: str) -> None:
    """What a user does who picks an option or types a text."""
    script = (
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))"
    )
    view.execute_script(script, element, value)


def option(view: Any, element: str, start: str) -> None:
    """Picks the option whose text begins so."""
    script = (
        "return [...document.getElementById(arguments[0]).options].find(o => o.text.startsWith(arguments[1])).value"
    )
    choose(view, element, view.execute_script(script, element, start))


def column(view: Any, sheet: int, number: int) -> list[str]:
    return texts(view, f"#sheet-{sheet} table.scores tbody tr > :nth-child({number + 1})")


def press(view: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(view).send_keys(*keys).perform()


def unfold(view: Any, details: str) -> None:
    """Opens a list and waits until it is written."""
    from selenium.webdriver.support.ui import WebDriverWait

    view.find_element("css selector", f"{details} summary").click()
    WebDriverWait(view, 10).until(lambda _: view.find_elements("css selector", f"{details} ul"))


def head(view: Any, sheet: int, number: int) -> Any:
    return view.find_element("css selector", f"#sheet-{sheet} table.scores thead th:nth-child({number + 1}) button")


def first_sheet() -> Sequence[Record]:
    return next(t.records for t in tabulate_records(runs())[0] if t.records[0].model.name == "reference")


def sheet_of(view: Any, model: str) -> int:
    return int(view.execute_script("return document.querySelector(`[data-model=${arguments[0]}]`).id.slice(6)", model))


def test_a_column_sorts_by_number_both_ways_from_the_keyboard(view: Any) -> None:
    sheet = sheet_of(view, "reference")
    button = head(view, sheet, 6)  # perplexity
    view.execute_script("arguments[0].focus()", button)
    expected = sorted(record.results[0].value or 0 for record in first_sheet())
    for order, values in (("ascending", expected), ("descending", expected[::-1])):
        press(view, "\ue007")  # Enter
        assert [float(cell.split()[0]) for cell in column(view, sheet, 6)] == pytest.approx(values)
        assert button.find_element("xpath", "..").get_attribute("aria-sort") == order
    head(view, sheet, 0).click()
    assert column(view, sheet, 0) == sorted((r.method for r in first_sheet()), key=lambda m: m.lower())
    assert len(view.find_elements("css selector", "[aria-sort]")) == 1


def test_blank_comes_last_either_way(view: Any) -> None:
    sheet = sheet_of(view, "another")
    for _ in range(2):
        head(view, sheet, 7).click()
        assert [bool(text) for text in column(view, sheet, 7)] == [True, False]


def test_filters_leave_what_fits_in_tables_and_plot(view: Any) -> None:
    sheet = sheet_of(view, "reference")
    choose(view, "table", str(sheet))
    choose(view, "by-method", "GPTQ n")  # all the words, in any case
    assert column(view, sheet, 0) == [r.method for r in first_sheet() if "gptq" in r.method and "n" in r.method]
    choose(view, "by-method", "")
    choose(view, "from-bits", "5.3")
    choose(view, "to-bits", "6")
    fits = [r.method for r in first_sheet() if 5.3 <= r.bits.stored <= 6]
    assert column(view, sheet, 0) == fits
    assert len(view.find_elements("css selector", "#plot .point")) == len(fits)
    choose(view, "by-model", "another")
    assert texts(view, "section.sheet h3") == ["another (MixtralForCausalLM)"]
    assert texts(view, "#count") == ["0 of 8 runs: no run fits these filters"]
    view.find_element("id", "reset").click()
    assert texts(view, "#count") == ["8 of 8 runs"]


def test_differences_take_the_place_of_scores(view: Any) -> None:
    assert not texts(view, "table.differences")
    choose(view, "show", "differences")
    assert not texts(view, "table.scores")
    assert "-10.0 ± 3.0*" in texts(view, "table.differences td")


@pytest.mark.parametrize(("metric", "result", "sign"), [("mini-perplexity", 0, -1), ("mini-piqa", 1, 1)])
def test_the_plot_has_every_point_and_the_pareto_front(view: Any, metric: str, result: int, sign: int) -> None:
    choose(view, "table", str(sheet_of(view, "reference")))
    option(view, "metric", metric)
    compressed = [r for r in first_sheet() if r.method != "none"]
    points = {r.method: (-r.bits.stored, sign * (r.results[result].value or 0)) for r in compressed}
    front = {
        name
        for name, mine in points.items()
        if not any(other != mine and all(o >= m for o, m in zip(other, mine, strict=True)) for other in points.values())
    }
    labels = [p.get_attribute("aria-label") for p in view.find_elements("css selector", "#plot .point")]
    assert {label.rpartition(": ")[0] for label in labels} == set(points)
    assert {label.rpartition(": ")[0] for label in labels if label.endswith("Pareto front")} == front
    assert 0 < len(front) < len(points)
    assert len(view.find_elements("css selector", "#plot .ring")) == len(front)
    assert f"5 runs, {len(front)} on the Pareto front" in texts(view, "#plot-status")[0]
    assert len(view.find_elements("css selector", "#plot-table tbody tr")) == len(points)


def test_error_bars_are_one_standard_error_each_way(view: Any) -> None:
    choose(view, "table", str(sheet_of(view, "reference")))
    option(view, "metric", "mini-perplexity")
    script = """return [...document.querySelectorAll('#plot .point')].map(p => [p.getAttribute('aria-label'),
        ...p.querySelector('.bar').getAttribute('d').match(/ (.*?)V(.*?)M/).slice(1).map(Number)])"""
    height = {label.rpartition(": ")[0]: down - up for label, up, down in view.execute_script(script)}
    errors = {r.method: r.results[0].standard_error or 0 for r in first_sheet() if r.method != "none"}
    assert {name: tall / height["pmq+gptq"] for name, tall in height.items()} == pytest.approx(
        {name: error / errors["pmq+gptq"] for name, error in errors.items()}, rel=1e-6
    )


def test_arrow_keys_go_from_point_to_point(view: Any) -> None:
    choose(view, "table", str(sheet_of(view, "reference")))
    view.execute_script("document.querySelector('#plot .point[tabindex=\"0\"]').focus()")
    told = [texts(view, "#plot-point")[0]]
    for _ in range(9):  # more often than there are points
        press(view, "\ue014")  # right
        told.append(texts(view, "#plot-point")[0])
    bits = [float(re.search(r"at (\S+) stored", line)[1]) for line in told]  # type: ignore[index]
    assert bits == [5.0, 5.25, 5.5, 5.75, *[6.0] * 6]


def test_a_tab_leads_through_filters_and_tables_to_a_visible_focus(view: Any) -> None:
    press(view, *["\ue004"] * 7)  # over the link that skips and the five parts of the page
    assert view.switch_to.active_element.get_attribute("id") == "by-model"
    outline = view.execute_script("return getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2


def test_two_runs_are_compared_item_by_item(view: Any) -> None:
    choose(view, "table", str(sheet_of(view, "reference")))
    option(view, "run-a", "pmq")
    option(view, "run-b", "hessian")
    rows = [[c.text for c in row.find_elements("css selector", "th, td")]
            for row in view.find_elements("css selector", "#pairs tbody tr")]  # fmt: skip
    one, other = right(0), right(2)
    pairs = list(zip(one, other, strict=True))
    only_a, only_b = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
    change = 100 * (sum(other) - sum(one)) / ITEMS
    assert rows[1] == ["mini-piqa", str(ITEMS), str(only_a), str(only_b), str(ITEMS - only_a - only_b),
                       str(pairs.count((1.0, 1.0))), f"{change:+.1f}"]  # fmt: skip
    lower = sum(b < a for a, b in zip(losses(0), losses(2), strict=True))
    assert rows[0][:4] == ["mini-perplexity", str(ITEMS), str(ITEMS - lower), str(lower)]
    unfold(view, "details[data-task=mini-piqa]")
    listed = texts(view, "details[data-task=mini-piqa] li")
    assert listed == [f"item {at + 1}" for want in ((1, 0), (0, 1)) for at, pair in enumerate(pairs) if pair == want]


def test_items_of_an_embedded_task_are_named(browser: Any, tmp_path: Path) -> None:
    task = TASKS.get("mini-piqa")()
    ids = [item.id for item in task.items()]
    both = [
        sample_record(
            method=name,
            results=(scored(sample_result(protocol=task.protocol), [float(at == only) for at in range(len(ids))]),),
        )
        for name, only in (("one", 3), ("other", 299))
    ]
    (tmp_path / HTML).write_text(render(*tabulate_records(both))[HTML], encoding="utf-8")
    browser.get((tmp_path / HTML).as_uri())
    unfold(browser, "#pairs details")
    assert texts(browser, "#pairs li") == [f"4: {ids[3]}", f"300: {ids[299]}"]


def test_widths_and_significance_of_experts_are_shown(view: Any) -> None:
    choose(view, "table", str(sheet_of(view, "reference")))
    option(view, "record", "hessian")
    assert texts(view, "#allocation td") == ["", *"1232", *"2123"]
    assert "2 at 1 bit, 4 at 2 bits, 2 at 3 bits" in texts(view, "#allocation p")[0]
    assert texts(view, "#significance td")[1:] == ["1.00", "2.00", "3.00", "400", "4.00", "3.00", "2.00", "1.00"]
    choose(view, "table", str(sheet_of(view, "another")))
    assert "do not stand beside" in texts(view, "#significance")[0]


def test_without_scores_of_items_the_page_says_so(browser: Any, tmp_path: Path) -> None:
    (tmp_path / HTML).write_text(render(*tabulate_records([sample_record()]))[HTML], encoding="utf-8")
    browser.get((tmp_path / HTML).as_uri())
    assert "Fewer than two runs" in texts(browser, "#pairs")[0]
    assert len(browser.find_elements("css selector", "#plot .point")) == 1


def test_nothing_is_requested_and_nothing_goes_wrong(view: Any) -> None:
    choose(view, "show", "differences")
    events = [json.loads(entry["message"])["message"] for entry in view.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked == [view.current_url]
    assert view.get_log("browser") == []  # neither an error of the script nor a breach of the policy
    assert not view.find_elements("css selector", "img")
    assert HOSTILE in texts(view, "table.differences th")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(view: Any, scheme: str) -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for markers."""
    choose(view, "table", str(sheet_of(view, "reference")))
    feature = {"name": "prefers-color-scheme", "value": scheme}
    view.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    paper = colour(view, "body", "backgroundColor")
    assert (luminance(paper) > 0.5) == (scheme == "light")
    for selector in ("body", ".hint", ".facts", "nav a", "#plot-status", "caption", "thead small"):
        assert contrast(colour(view, selector, "color"), paper) >= 4.5, selector
    for at in range(len(NAMES)):
        assert contrast(colour(view, f"#legend .c{at}", "stroke"), paper) >= 3
    for cell in view.find_elements("css selector", "#allocation td[class]"):
        pair = [view.execute_script("return getComputedStyle(arguments[0])[arguments[1]]", cell, name)
                for name in ("color", "backgroundColor")]  # fmt: skip
        assert contrast(*map(parsed, pair)) >= 4.5
    view.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def parsed(text: str) -> tuple[float, ...]:
    return tuple(float(part) / 255 for part in re.findall(r"[\d.]+", text)[:3])


def colour(view: Any, selector: str, name: str) -> tuple[float, ...]:
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return parsed(view.execute_script(script, selector, name))


def luminance(rgb: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_everything_is_named_for_a_screen_reader(view: Any) -> None:
    tree = view.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "combobox", "searchbox", "spinbutton", "link", "region", "table", "image"}
    nodes = [node for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    assert {node["role"]["value"] for node in nodes} == roles
    assert [node["role"]["value"] for node in nodes if not node.get("name", {}).get("value")] == []
    ids = view.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_a_narrow_window_scrolls_tables_and_not_the_page(view: Any) -> None:
    view.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        view.refresh()
        assert view.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        view.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_pairs_of_runs_are_all_open_to_choice(view: Any) -> None:
    choose(view, "table", str(sheet_of(view, "reference")))
    methods = [r.method for r in first_sheet()]
    for one, other in itertools.islice(itertools.permutations(methods, 2), 8):
        option(view, "run-a", one)
        option(view, "run-b", other)
        assert len(view.find_elements("css selector", "#pairs tbody tr")) == 3
