"""The page as a browser sees it: Chromium, without a window, started for one page at a time."""

from __future__ import annotations

import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.image import imread

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
  const plots = [...document.querySelectorAll("figure.plot .panel")];
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
    sweep = analysis.load(_make_folder(tmp_path, make_sweep))
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
    report = json.loads(html.unescape(found.group(1)))
    assert report["problems"] == []
    assert report["fetched"] == []
    assert report["ready"]
    assert report["figures"] == text.count('class="plot"') >= 5
    assert report["plots"] == report["drawn"] >= 15
    if width == 1280:
        assert report["answer"] < 900, "the answer is on the first screen"


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
