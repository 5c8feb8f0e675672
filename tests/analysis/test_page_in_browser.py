"""The page as a browser sees it: Chromium, without a window, started for one page at a time."""

from __future__ import annotations

import base64
import html
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from policy_sweeps import POLICIES, write_capacity, write_policies

import analysis
from analysis.page import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--virtual-time-budget=4000",
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")]

# What a page cannot be asked from outside, it writes into itself: errors, what it fetched, and words that collide.
_PROBE = """<script>
window.problems = [];
addEventListener("error", event => problems.push("error: " + event.message));
addEventListener("securitypolicyviolation", event => problems.push("blocked: " + event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...words) => problems.push(kind + ": " + words.join(" "));
addEventListener("load", () => setTimeout(() => {
  const plots = [...document.querySelectorAll("figure.plot .panel")].filter(plot => plot.offsetWidth);
  for (const plot of plots) {
    const texts = [...plot.querySelectorAll("svg text")].map(t => [t.textContent, t.getBoundingClientRect()]);
    const frame = plot.getBoundingClientRect();
    texts.forEach(([a, p], i) => {
      if (p.left < frame.left - 3 || p.right > frame.right + 3) problems.push("overflows: " + a);
      texts.slice(i + 1).forEach(([b, q]) => {
        const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
        const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
        if (wide > 2 && high > 4) problems.push("overlap: " + a + " / " + b);
      });
    });
  }
  if (document.documentElement.scrollWidth > innerWidth) problems.push("the page is wider than the window");
  const drawn = plots.filter(p => p.querySelectorAll("svg .series path, svg .series line").length);
  const first = document.querySelector(".verdicts table");
  document.body.dataset.report = JSON.stringify({plots: plots.length, drawn: drawn.length, problems,
    fetched: performance.getEntriesByType("resource").map(entry => entry.name),
    ready: "ready" in document.documentElement.dataset, answer: first ? first.getBoundingClientRect().bottom : 0,
    // How much wider than its place each kind of table is, and how many names each panel of a plot has.
    tables: Object.fromEntries([...document.querySelectorAll("table")].map(t => [t.className,
      t.parentNode.scrollWidth - t.parentNode.clientWidth])),
    named: Object.fromEntries([...document.querySelectorAll("figure.plot")].map(f => [f.dataset.name,
      [...f.querySelectorAll(".panel")].map(p => p.querySelectorAll("text.label").length)])),
    figures: document.querySelectorAll("figure.plot").length});
}, 300));
</script>"""


def _run(*arguments: str, profile: Path) -> str:
    command = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def _make_folder(tmp_path: Path, make_sweep: Callable[..., Path]) -> Path:
    points = [
        {"scheduler": scheduler, "workload.request_rate_rps": rate, "tps": tps * rate}
        # Two that nearly coincide, so that labels have to give way.
        for scheduler, tps in (("fcfs", 30), ("sjf", 30.2), ("a_scheduler_with_quite_a_long_name", 20))
        for rate in (2, 4, 8)
    ]
    return make_sweep(tmp_path / "sweep", points, repeats=3, failed={(5, 2): "timeout"})


@pytest.mark.parametrize("width", [480, 1280])
def test_a_browser_draws_every_plot_without_errors_or_requests(
    tmp_path: Path, make_sweep: Callable[..., Path], width: int
) -> None:
    report = _look(_make_folder(tmp_path, make_sweep), tmp_path, width)
    assert report["figures"] >= 5
    assert report["plots"] >= 14
    if width == 1280:
        assert report["answer"] < 900, "the answer is on the first screen"


@pytest.mark.parametrize("width", [480, 1280])
def test_a_browser_draws_precisions_whose_names_keep_off_each_other(
    tmp_path: Path, precisions_folder: Path, width: int
) -> None:
    report = _look(precisions_folder, tmp_path, width)
    assert report["tables"]["precisions"] <= 0 or width < 1280, "the table fits a wide window"
    # Of seven marks in each panel most have their names beside them, the others are in the legend.
    assert all(named >= 5 for named in report["named"]["precisions"]) and len(report["named"]["precisions"]) == 3
    assert all(named == 7 for named in report["named"]["precisions-kl"])


@pytest.mark.parametrize("width", [480, 1280])
def test_a_browser_draws_policies_whose_names_keep_off_each_other(tmp_path: Path, width: int) -> None:
    folder = write_policies(tmp_path / "policies", policies=list(POLICIES), rates=(4, 12), num_requests=20, repeats=2)
    write_capacity(folder, {policy: 2.0 + i for i, policy in enumerate(POLICIES)})
    report = _look(folder, tmp_path, width)
    assert all(named == 13 for named in report["named"]["scheduling-ttft"]), "each line ends in its name"
    # Lanes, the pool, and the queue.
    assert report["named"]["lanes"] == [1, 1, 2] and report["named"]["scheduling-capacity"] == [0]
    assert report["tables"]["precisions"] <= 0 or width < 1280, "the tables fit a wide window"


def _look(folder: Path, tmp_path: Path, width: int) -> dict[str, Any]:
    """What a page says of itself in a window of some width; that it is without faults is asserted."""
    sweep = analysis.load(folder)
    text = page(sweep, analysis.points(sweep))
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.replace("<style>", _PROBE + "<style>", 1).encode())

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/report"
        dom = _run("--dump-dom", f"--window-size={width},900", address, profile=tmp_path / "profile")
        server.shutdown()
    assert asked == ["/report"]
    found = re.search(r'data-report="([^"]*)"', dom)
    assert found, "the page's script did not get to its end"
    report: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    assert report["problems"] == []
    assert report["fetched"] == []
    assert report["ready"]
    assert report["figures"] == text.count('class="plot"')
    assert report["plots"] == report["drawn"]
    return report


def test_a_page_opened_as_a_file_is_not_blank(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    sweep = analysis.load(_make_folder(tmp_path, make_sweep))
    path = tmp_path / "report.html"
    path.write_text(page(sweep, analysis.points(sweep)), encoding="utf-8")
    picture = tmp_path / "page.png"
    _run(f"--screenshot={picture}", "--window-size=1280,2400", path.as_uri(), profile=tmp_path / "profile")
    pixels = imread(picture)[..., :3]
    # In every third of the page there are words and colours.
    for part in (pixels[:800], pixels[800:1600], pixels[1600:]):
        assert part.std() > 0.03
        assert (part.max(axis=-1) - part.min(axis=-1) > 0.3).mean() > 0.0005


def _ask(folder: Path, tmp_path: Path, script: str) -> dict[str, Any]:
    """What a page answers to a script that runs in it; the script puts it into `answer`, and may wait."""
    sweep = analysis.load(folder)
    text = page(sweep, analysis.points(sweep))
    probe = (
        "<script>const answer = {problems: []}; addEventListener('error', e => answer.problems.push(e.message));"
        "addEventListener('securitypolicyviolation', e => answer.problems.push('blocked: ' + e.blockedURI));"
        "addEventListener('load', () => setTimeout(async () => {"
        f"try {{ {script} }} catch (error) {{ answer.problems.push(error.stack); }}"
        "document.body.dataset.report = JSON.stringify(answer); }, 300));</script>"
    )
    path = tmp_path / "report.html"
    path.write_text(text.replace("<style>", probe + "<style>", 1), encoding="utf-8")
    budget = "--virtual-time-budget=30000"
    dom = _run("--dump-dom", "--window-size=1280,900", budget, path.as_uri(), profile=tmp_path / "profile")
    found = re.search(r'data-report="([^"]*)"', dom)
    assert found, "the script did not get to its end"
    answer: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    assert answer["problems"] == []
    return answer


_SVG = "{http://www.w3.org/2000/svg}"
_HOLDERS = "const holders = [...document.querySelectorAll('figure.plot, table.forest')].filter(h => h.offsetWidth);"


def test_every_plot_can_be_saved_as_an_svg_that_opens_alone(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    answer = _ask(
        _make_folder(tmp_path, make_sweep),
        tmp_path,
        f"""{_HOLDERS}
        document.documentElement.dataset.theme = "dark";
        answer.svg = Object.fromEntries(holders.map(h => [h.dataset.name, asSvg(h)]));
        answer.theme = document.documentElement.dataset.theme;
        document.documentElement.dataset.theme = "light";
        answer.light = holders.every(h => asSvg(h) === answer.svg[h.dataset.name]);""",
    )
    assert answer["theme"] == "dark" and answer["light"], "a picture for paper is light, and the page stays as it was"
    svgs = answer["svg"]
    assert {"verdicts-output_throughput_tps", "effects-main", "frontier", "latency", "load", "time"} <= set(svgs)
    for name, text in svgs.items():
        root = ElementTree.fromstring(text)
        nodes = list(root.iter())
        assert root.tag == f"{_SVG}svg" and float(root.attrib["height"]) > 60, name
        assert "sans-serif" in root.attrib["font-family"]
        drawn = [node for node in nodes if node.tag in (f"{_SVG}path", f"{_SVG}line", f"{_SVG}circle", f"{_SVG}rect")]
        inks = {node.attrib.get(key, "none") for node in drawn for key in ("fill", "stroke")} - {"none", "#ffffff"}
        assert len(drawn) > 10 and len(inks) > 2, name
        assert all(re.fullmatch("#[0-9a-f]{6}", ink) for ink in inks), name
        assert sum(bool("".join(node.itertext()).strip()) for node in root.iter(f"{_SVG}text")) > 5, name
        assert not {key for node in nodes for key in node.attrib} & {"class", "style", "href"}, name
        assert (
            "var(" not in text
            and "url(" not in text
            and "%" not in "".join(value for node in nodes for value in node.attrib.values())
        ), name
    words = " ".join(ElementTree.fromstring(svgs["verdicts-output_throughput_tps"]).itertext())
    assert "slower" in words and "a_scheduler_with_quite_a_long_name" in words


def test_a_saved_svg_looks_as_it_did_on_the_page(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    answer = _ask(
        _make_folder(tmp_path, make_sweep),
        tmp_path,
        "answer.svg = asSvg(document.querySelector('[data-name=load]'));",
    )
    path = tmp_path / "load.svg"
    path.write_text(answer["svg"], encoding="utf-8")
    picture = tmp_path / "load.png"
    _run(f"--screenshot={picture}", "--window-size=1280,800", path.as_uri(), profile=tmp_path / "profile")
    pixels = imread(picture)[..., :3]
    assert pixels.std() > 0.03 and (pixels.max(axis=-1) - pixels.min(axis=-1) > 0.3).mean() > 0.0005


def test_the_buttons_save_files_of_both_kinds(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    answer = _ask(
        _make_folder(tmp_path, make_sweep),
        tmp_path,
        f"""{_HOLDERS}
        const bars = [...document.querySelectorAll(".save")];
        answer.labels = bars.flatMap(bar => [...bar.children].map(button => button.getAttribute("aria-label")));
        answer.names = [...document.querySelectorAll("figure.plot, table.forest")].map(h => h.dataset.name);
        const saved = [], make_url = URL.createObjectURL;
        URL.createObjectURL = blob => {{ saved.push({{blob}}); return make_url(blob); }};
        HTMLAnchorElement.prototype.click = function () {{ saved[saved.length - 1].name = this.download; }};
        const buttons = document.querySelector("figure[data-name=frontier]").previousElementSibling.children;
        for (const button of buttons) {{
          const before = saved.length;
          button.click();
          for (let i = 0; i < 400 && (saved.length === before || !saved[before].name); i++)
            await new Promise(done => setTimeout(done, 25));
        }}
        answer.files = await Promise.all(saved.map(one => new Promise(done => {{
          const reader = new FileReader();
          reader.onload = () => done([one.name, reader.result]);
          reader.readAsDataURL(one.blob);
        }})));""",
    )
    assert answer["labels"] == [f"save {name} as {kind}" for name in answer["names"] for kind in ("SVG", "PNG")]
    (svg_name, svg), (png_name, png) = answer["files"]
    assert (svg_name, png_name) == ("sweep-frontier.svg", "sweep-frontier.png")
    root = ElementTree.fromstring(base64.b64decode(svg.partition(",")[2]))
    assert svg.startswith("data:image/svg+xml") and root.tag == f"{_SVG}svg"
    pixels = imread(io.BytesIO(base64.b64decode(png.partition(",")[2])))
    assert pixels.shape[1] == 3 * int(root.attrib["width"]), "as fine as paper wants it"
    assert pixels[..., :3].std() > 0.03 and pixels[0, 0, :3].min() == 1


# What paper shows: the rules for print put into force, those for screens taken away.
_ON_PAPER = """
  for (const sheet of document.styleSheets) for (const rule of [...sheet.cssRules]) if (rule instanceof CSSMediaRule) {
    if (rule.media.mediaText.startsWith("screen")) rule.media.mediaText = "not all";
    else if (rule.media.mediaText === "print") rule.media.mediaText = "all";
  }
"""


def test_the_reader_chooses_points_over_time_and_paper_has_the_first_choice(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    points = [{"size": size, "tps": 100 + size % 9} for size in range(20)]
    answer = _ask(
        make_sweep(tmp_path / "sweep", points, num_requests=2),
        tmp_path,
        f"""
        const drawn = () => [...document.querySelectorAll("[data-name=time] .run")]
          .filter(run => run.offsetWidth && run.querySelector("svg .series path"))
          .map(run => run.querySelector("h3").firstChild.textContent);
        const box = document.querySelector(".chooser"), ticks = [...box.querySelectorAll("input[type=checkbox]")];
        const name = tick => tick.parentNode.querySelector("span").textContent;
        answer.choice = ticks.map(name);
        answer.first = drawn();
        box.querySelector("summary").focus();
        answer.keyboard = document.activeElement.tagName === "SUMMARY";
        box.open = true;
        for (const tick of ticks) {{ tick.focus(); answer.keyboard &&= document.activeElement === tick; }}
        ticks.find(tick => name(tick) === answer.first[0]).click();
        ticks.find(tick => name(tick) === "size=5").click();
        answer.then = drawn();
        answer.said = box.querySelector("summary").textContent;
        const find = box.querySelector("input[type=search]");
        find.value = "size=1";
        find.dispatchEvent(new Event("input"));
        answer.found = ticks.filter(tick => tick.offsetWidth).map(name);
        {_ON_PAPER}
        answer.paper = drawn();
        answer.controls = [...document.querySelectorAll(".chooser, .save")].filter(one => one.offsetWidth).length;
        """,
    )
    assert answer["choice"] == [f"size={i}" for i in range(20)]
    assert answer["first"] == ["size=0", "size=8"], "the baseline, which is the worst, and the best"
    assert answer["keyboard"]
    assert answer["then"] == ["size=5", "size=8"]
    assert answer["said"] == "Choose points: 2 of 20 drawn"
    assert answer["found"] == [f"size={i}" for i in (1, *range(10, 20))]
    assert answer["paper"] == answer["first"] and answer["controls"] == 0
