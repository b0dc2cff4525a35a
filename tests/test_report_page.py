"""The pages in a real browser: headless Chromium opens them on a phone, on a desk, in the dark, and on paper."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlparse
from xml.etree import ElementTree

import pytest
import torch
from synthetic_runs import make_ladders, make_run

from engine.models import build_model
from lab.inspection.checkpoints import History, Inspection
from lab.inspection.measure import measure_model
from lab.inspection.write import write_inspection
from lab.runs import read_runs
from lab.speedup.report import build_report
from lab.speedup.write import write_report

ROOT = Path(__file__).resolve().parents[1]
PHONE, DESK = 390, 1100  # CSS pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser here: none of {', '.join(BROWSERS)} is on the PATH")
DARK = "--blink-settings=preferredColorScheme=0"

# A page around the page under test, which stays as it is: it measures, and writes what it found into its own DOM.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><body><iframe src="{address}" style="width:{width}px; height:900px; border:0">
</iframe><pre id="found"></pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const inside = frame.contentDocument, root = inside.documentElement, found = {{}};
  const all = (what) => [...inside.querySelectorAll(what)];
  const outside = (node) => !node.closest(".scroll");
  found.overflow = root.scrollWidth - root.clientWidth;
  found.sticking_out = all("body *").filter((n) => outside(n) && n.getBoundingClientRect().right > {width} + 1)
                                    .map((n) => n.outerHTML.slice(0, 80));
  found.pictures = all("img, svg").map((n) => {{
    const box = n.getBoundingClientRect();
    return {{loaded: n.complete && n.naturalWidth > 0 && n.naturalHeight > 0, width: box.width, height: box.height,
             alt: n.getAttribute("alt") || "", caption: n.closest("figure")?.querySelector("figcaption")?.innerText || "",
             filter: inside.defaultView.getComputedStyle(n).filter}};
  }});
  found.numbers_end = all("table.numbers td:nth-child(2)").map((n) => n.getBoundingClientRect().right);
  found.links = all("a[href]").map((n) => n.href);
  found.outside = all("[src], link[href]").map((n) => n.src || n.href).filter((address) => !address.startsWith("data:"));
  found.background = inside.defaultView.getComputedStyle(inside.body).backgroundColor;
  found.letters = Math.min(...all("body *").filter((n) => n.innerText).map(
      (n) => parseFloat(inside.defaultView.getComputedStyle(n).fontSize)));
  document.querySelector("#found").textContent = JSON.stringify(found);
}};
</script></body>"""


def launch(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Start the browser once, with a profile of its own, and return what it printed."""
    # --no-sandbox: Chromium's sandbox does not start for root, as whom containers run their tests.
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--allow-file-access-from-files",
        "--virtual-time-budget=20000",
        f"--user-data-dir={folder}/profile",
    ]
    assert BROWSER is not None
    command = [BROWSER, *options, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)


def measure(page: Path, width: int, folder: Path, *options: str) -> dict:
    """Open a page in a frame of that width and return what the browser says of it."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = folder / f"frame-{width}.html"
    frame.write_text(FRAME.format(address=page.resolve().as_uri(), width=width), encoding="utf-8")
    done = launch(folder, f"--window-size={width + 50},1000", *options, "--dump-dom", frame.as_uri())
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the browser measured nothing: {done.stdout[-500:]} {done.stderr[-1000:]}"
    return json.loads(html.unescape(found[1])) | {"console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


def find_faults(found: dict) -> list[str]:
    """Return what is wrong with a measured page, one line each."""
    faults = [f"console: {line}" for line in found["console"]]
    faults += [f"needs a file beside it: {address}" for address in found["outside"]]
    if found["overflow"] > 0 or found["sticking_out"]:
        faults.append(f"wider than the screen by {found['overflow']}: {found['sticking_out'][:3]}")
    for number, picture in enumerate(found["pictures"], start=1):
        if not picture["loaded"] or min(picture["width"], picture["height"]) < 150:
            faults.append(f"picture {number} is missing or has no size: {picture}")
        if not picture["alt"] or not picture["caption"]:
            faults.append(f"picture {number} has no words beside it")
    for link in found["links"]:
        target = urlparse(link)
        if target.scheme != "file" or not Path(unquote(target.path)).is_file():
            faults.append(f"the link leads nowhere: {link}")
    return faults


def inspect_model(name: str) -> Inspection:
    size = {"vocab_size": 40, "n_layer": 2, "n_head": 2, "n_embd": 16, "sequence_length": 8}
    torch.manual_seed(0)
    measured = measure_model(build_model({"name": name} | size))
    history = History([0, 10], {"sz": [1.0, 1.5]} if measured.scales else {}, [None, 1e-7], [3.0, 2.0])
    return Inspection(name, f"a-run-of-{name}-with-a-long-name", name, 10, 640, 1e-3, size, None, history, measured)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Return every kind of page: reports of one setting and of two, with the parts of the speedup, and an inspection."""
    root = tmp_path_factory.mktemp("pages")
    plain = make_ladders(root / "plain", 1.5, budgets=(100, 200), seeds=(1, 2), rates=(1e-3, 3e-3, 9e-3), noise=0.003)
    plain.append(make_run(root / "plain", "a name & <b>#1</b> %41 " + "x" * 90, seed=3))
    longer = {"model.sequence_length": 4096, "size": "a-size-with-a-name-that-nobody-would-give-to-it"}
    other = [
        make_run(root / "other", f"{arm}-{steps}", arm, steps, 1.7 if arm == "ngpt" else 1.0, config=longer)
        for arm in ("gpt", "ngpt")
        for steps in (100, 200)
    ]
    stored = {"precision": {"name": "bf16_weights", "matrices": "bfloat16"}}
    parts = make_ladders(root / "parts", 1.9, budgets=(100, 200, 400))
    parts += [make_run(root / "parts", f"stored-{steps}", "gpt", steps, 0.6, config=stored) for steps in (100, 200, 400)]
    for name, runs, with_parts in (("one", plain, False), ("two", plain + other, False), ("parts", parts, True)):
        write_report(build_report(read_runs(runs), with_parts=with_parts), root / name)
    write_inspection([inspect_model("gpt"), inspect_model("ngpt")], root / "inspection")
    return {
        "one": root / "one" / "report.html",
        "two": root / "two" / "report.html",
        "parts": root / "parts" / "report.html",
        "inspection": root / "inspection" / "inspection.html",
        "committed": ROOT / "docs" / "results" / "tiny" / "report.html",
    }


@pytest.mark.slow
@in_browser
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize(
    "name, pictures, links", [("one", 7, 25), ("two", 14, 29), ("parts", 7, 9), ("inspection", 7, 0), ("committed", 6, 68)]
)
def test_a_page_is_whole_in_a_browser(pages, tmp_path, name, pictures, links, width):
    found = measure(pages[name], width, tmp_path)
    assert not find_faults(found)
    assert (len(found["pictures"]), len(found["links"])) == (pictures, links)
    assert found["letters"] >= 12
    assert all(" against " in picture["alt"] or "token speedup" in picture["alt"] for picture in found["pictures"])


@pytest.mark.slow
@in_browser
def test_on_a_phone_the_numbers_of_an_inspection_are_beside_their_names(pages, tmp_path):
    found = measure(pages["inspection"], PHONE, tmp_path)
    assert len(found["numbers_end"]) > 20 and max(found["numbers_end"]) < PHONE


@pytest.mark.slow
@in_browser
def test_a_dark_screen_gets_a_dark_page_and_turned_pictures(pages, tmp_path):
    light = measure(pages["one"], PHONE, tmp_path / "light")
    dark = measure(pages["one"], PHONE, tmp_path / "dark", DARK)
    assert light["background"] == "rgb(255, 255, 255)" and dark["background"] == "rgb(21, 24, 28)"
    assert {picture["filter"] for picture in light["pictures"]} == {"none"}
    assert all("invert(1)" in picture["filter"] for picture in dark["pictures"]) and not find_faults(dark)


@pytest.mark.slow
@in_browser
def test_the_page_prints(pages, tmp_path):
    (tmp_path / "unfolded.html").write_text(pages["one"].read_text().replace("<details>", "<details open>"))
    sheets = []
    for page in (pages["one"], tmp_path / "unfolded.html"):
        done = launch(tmp_path, DARK, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path}/report.pdf", page.as_uri())
        paper = (tmp_path / "report.pdf").read_bytes()
        assert paper.startswith(b"%PDF") and "CONSOLE" not in done.stderr
        # Vectors stay vectors: a page that printed its pictures through a filter would hold them as images.
        assert not re.search(rb"/Subtype\s*/Image\b", paper)
        sheets.append(len(re.findall(rb"/Type\s*/Page\b", paper)))
    assert sheets[0] == sheets[1] and sheets[0] in range(4, 14), "what is folded on a screen is open on paper"


@in_browser
def test_the_measurement_finds_what_is_broken(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<!DOCTYPE html><title>x</title><img src="none.png" alt="a"><img src="data:image/png;base64,AAAA">'
        '<p style="width: 700px">wide</p><a href="runs/none/config.yaml">a run</a><script>console.error("oh")</script>'
    )
    words = "\n".join(find_faults(measure(page, PHONE, tmp_path / "work")))
    for fault in (
        "picture 1 is missing",
        "picture 2 is missing",
        "picture 2 has no words",
        "wider than the screen",
        "leads nowhere",
        'CONSOLE:1] "oh"',
        "none.png",
    ):
        assert fault in words


def test_conditions_are_said_in_sentences(tmp_path):
    folders = make_ladders(tmp_path, 1.5, budgets=(100, 200), seeds=(1, 2), rates=(1e-3, 3e-3, 9e-3), noise=0.003)
    folders.append(make_run(tmp_path, "more", "ngpt", 400, 1.5, lr=3e-3, seed=1, environment={"evaluation.digest": "eval-1"}))
    words = build_report(read_runs(folders)).sections[0].caveats.conditions
    for part, sentence in zip(
        (
            "GPT 410k, 819k; nGPT 410k, 819k, 1.64M",
            "linear warmup (GPT 10, nGPT 0 steps), then one cosine from the peak rate down to 0",
            "GPT 2 at each point (1, 2); nGPT 1 to 2 at each point (1, 2)",
            "Beside the model the arms differ in: warmup_steps GPT 10, nGPT 0; weight_decay GPT 0.1, nGPT 0.",
        ),
        words,
        strict=True,
    ):
        assert part in sentence


def test_pictures_are_whole_whatever_an_arm_is_called(tmp_path):
    folders = [make_run(tmp_path, f"{steps}{len(arm)}", arm, steps) for arm in ("gpt", "a\x07--><b>$x_{") for steps in (100, 200)]
    write_report(build_report(read_runs(folders)), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) >= 4
    for picture in pictures:
        assert ElementTree.fromstring(base64.b64decode(picture)).tag.endswith("svg")  # raises on XML that is none


def test_links_survive_a_move_of_report_and_runs_together(tmp_path, undrawn):
    folders = make_ladders(tmp_path / "all" / "runs", 1.5, budgets=(100, 200))
    write_report(build_report(read_runs(folders)), tmp_path / "all" / "report")
    shutil.move(tmp_path / "all", tmp_path / "elsewhere")
    page = tmp_path / "elsewhere" / "report" / "report.html"
    links = re.findall(r'href="([^"]+)"', page.read_text())
    assert len(links) == len(folders) and all((page.parent / unquote(link)).is_file() for link in links)
    assert str(tmp_path) not in page.read_text()
