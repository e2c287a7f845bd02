"""The site of a small results folder: whole, offline, without a broken link, and honest."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest

from dmlkit import site
from dmlkit.chapters import chapter_names, chapter_source, profile_names, read_notebook
from dmlkit.fingerprint import code_fingerprint
from dmlkit.paths import PROJECT_ROOT

PIXEL = (  # a PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
LOOKED_AT = ("index", "02_baseline_losses", "results", "claims", "api/dmlkit.losses.soft_triple")
LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """Links, anchors, loaded files, images and text of one page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.loads, self.images, self.text = [], {""}, [], [], []
        self.inside = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag in LOADING and attrs.get(LOADING[tag]):
            self.loads.append(attrs[LOADING[tag]])
        if tag == "img":
            self.images.append(attrs)
        if tag in ("script", "style", "pre", "code"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text.append(data)


def executed(folder, name, code, *, edited=False):
    """Write a chapter as the runner keeps it, with a table, a figure and all kinds of links."""
    notebook = read_notebook(chapter_source(name))
    table = "<table class='dataframe'><tr><td>5.8 [3.1, 8.6]</td></tr></table>"
    figure = nbformat.v4.new_output("display_data", {"image/png": PIXEL})
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.outputs = [nbformat.v4.new_output("execute_result", {"text/html": table}), figure]
    described = next(cell for cell in notebook.cells if "mystnb" in cell.metadata)
    described.outputs = [figure]
    if edited:
        notebook.cells[0].source += "\n\nA sentence that has gone since."
    (folder / name / "tables").mkdir(parents=True)
    (folder / name / "figures").mkdir()
    nbformat.write(notebook, folder / name / "chapter.ipynb")
    pd.DataFrame({"method": ["a"], "R@1": ["5.8"]}).to_csv(folder / name / "tables" / "main.csv")
    shutil.copy(next(PROJECT_ROOT.glob("results/*/*/figures/*.png")), folder / name / "figures")
    row = {"dataset": "aviary", "method": "a", "seed": 0, "seconds": 1.0, "commit": "0ab1c2d"}
    pd.DataFrame([row | {"code": code}]).to_csv(folder / name / "runs.csv")


@pytest.fixture(scope="module")
def built(tmp_path_factory, run_dmlkit):
    """Return the finished command and the site of three chapters, one by other code."""
    folder = tmp_path_factory.mktemp("site")
    results, output = folder / "results", folder / "pages"
    executed(results, "01_evaluation", code_fingerprint("01_evaluation"))
    executed(results, "02_baseline_losses", "000000000000")
    executed(results, "03_norm_softmax", code_fingerprint("03_norm_softmax"), edited=True)
    asked = ("--profile", "smoke", "--results-dir", results, "--output", output)
    return run_dmlkit("site", *asked), output


@pytest.fixture(scope="module")
def pages(built):
    """Return each page of the site, by path."""
    every = sorted(built[1].rglob("*.html"))
    return {path: Page(path) for path in every if "_static" not in path.parts}


def text_of(page):
    return re.sub(r"\s+", " ", "".join(page.text))


@pytest.mark.slow
def test_it_builds_without_a_warning(built):
    finished, output = built
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert finished.stdout.splitlines()[-1].startswith(f"site: {output / 'index.html'}, of ")


@pytest.mark.slow
def test_every_internal_link_leads_to_something_in_the_site(built, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link in ("#", "#!"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_relative_to(built[1]) or not target.is_file():
                broken.append(f"{path.name}: {link}")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.name}: {link} has no such place")
    assert broken == []


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(built, pages):
    away = [(p.name, load) for p, page in pages.items() for load in page.loads if ":" in load]
    assert [(name, load) for name, load in away if not load.startswith("data:")] == []
    sheets = [path.read_text() for path in built[1].rglob("*.css")]
    assert not [s for s in sheets if re.search(r"(@import|url\()\s*[\"']?(https?:)?//", s)]


@pytest.mark.slow
def test_formulas_are_rendered_and_figures_described(built, pages):
    chapters = [page for path, page in pages.items() if path.name[:2].isdigit()]
    assert len(chapters) == 3
    for page in chapters:
        assert "$$" not in text_of(page)
        assert all(image.get("alt") for image in page.images)
    alts = [image["alt"] for page in chapters for image in page.images]
    assert any(alt.startswith("Precision over recall, before and after training") for alt in alts)
    assert (built[1] / "_static" / "mathjax" / "tex-chtml.js").is_file()


@pytest.mark.slow
def test_rows_by_other_code_and_edited_chapters_are_marked(built, pages):
    fresh = text_of(pages[built[1] / "01_evaluation.html"])
    assert "earlier version" not in fresh and "Executed before" not in fresh
    stale = text_of(pages[built[1] / "02_baseline_losses.html"])
    assert "Made by an earlier version of the code: commit 0ab1c2d." in stale
    edited = text_of(pages[built[1] / "03_norm_softmax.html"])
    assert "Executed before the chapter was last edited" in edited
    front = text_of(pages[built[1] / "index.html"])
    assert [front.count(s) for s in ("present code", "earlier code", "earlier text")] == [1, 1, 1]


@pytest.mark.slow
def test_chapters_that_were_not_run_are_listed_and_have_no_page(built, pages):
    front = text_of(pages[built[1] / "index.html"])
    assert re.search("Not run in this profile: .*4. Self-supervised ranking", front)
    assert not (built[1] / "04_self_supervised_ranking.html").exists()


def test_links_of_chapters_lead_to_pages():
    names, book = ["01_evaluation"], PROJECT_ROOT / "book"
    committed = PROJECT_ROOT / "results" / "mini" / "02_baseline_losses"
    expected = {
        "[a](01_evaluation.ipynb)": "[a](01_evaluation.ipynb)",
        "[a](../01_evaluation/chapter.ipynb#x)": "[a](01_evaluation.ipynb)",
        "[a](03_norm_softmax.ipynb)": "a",  # not in this site
        "[`a`](../../../book/claims.csv)": "[`a`](claims.md)",
        "[a](../dmlkit/losses)": "[a](api/dmlkit.losses.rst)",
        "[a](../../../dmlkit/slade.py)": "[a](api/dmlkit.slade.rst)",
        "[a](../../benchmarks/metrics.md)": "[a](benchmarks/metrics.md)",
        "[a](../LICENSE)": "a",
        "[a](https://arxiv.org/abs/1706.07567)": "[a](https://arxiv.org/abs/1706.07567)",
        "$[d]_+(x)$": "$[d]_+(x)$",
    }
    for folder in (committed, Path("/elsewhere/results/02_baseline_losses"), book):
        for text, moved in expected.items():
            if folder == committed or "../../" not in text:
                assert site._with_links_to_pages(text, folder, names) == moved, (text, folder)


@pytest.mark.slow
def test_all_chapters_verdicts_stand_in_the_ledger(built, pages):
    ledger = text_of(pages[built[1] / "claims.html"])
    claims = pd.read_csv(PROJECT_ROOT / "book" / "claims.csv")
    assert [s for s in claims["statement"] if re.sub(r"\s+", " ", s) not in ledger] == []
    judged = pd.read_csv(PROJECT_ROOT / "results/features/02_baseline_losses/claims.csv").iloc[0]
    assert f"{judged.verdict} ({100 * judged.difference:+.1f}, " in ledger


def test_every_paper_that_is_linked_is_among_the_references():
    listed = (PROJECT_ROOT / "book" / "site" / "references.bib").read_text()
    sources = [*PROJECT_ROOT.glob("book/*.py"), *PROJECT_ROOT.glob("dmlkit/**/*.py")]
    text = "\n".join(path.read_text() for path in sources)
    papers = re.findall(r"arxiv\.org/abs/(\d+\.\d+)|doi(?:\.org/|:)(10\.[\w./-]*\w)", text)
    assert {a or d for a, d in papers if (a or d) not in listed} == set()


def test_wrong_requests_end_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="there is no profile 'tiny'"):
        site.build_site("tiny")
    with pytest.raises(FileNotFoundError, match="no executed chapter in .*dmlkit run --profile"):
        site.build_site("mini", str(tmp_path))
    results, output = tmp_path / "results", tmp_path / "thesis"
    executed(results, "01_evaluation", "x")
    output.mkdir()
    (output / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not a site made before"):
        site.build_site("mini", str(results), output)


def test_own_results_are_shown_before_committed_ones(tmp_path, monkeypatch):
    assert "mini" in profile_names()
    monkeypatch.setattr(site, "LOCAL_RESULTS", tmp_path)
    assert site._results("mini", None) == PROJECT_ROOT / "results" / "mini"
    executed(tmp_path / "mini", "01_evaluation", "x")
    assert site._results("mini", None) == tmp_path / "mini"


def test_what_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch):
    executed(tmp_path, "01_evaluation", "x")
    monkeypatch.setattr(site, "TOOLS", ("sphinx_of_another_world",))
    with pytest.raises(
        FileNotFoundError, match="the site needs sphinx_of_another_world; `make site`"
    ):
        site.build_site("mini", str(tmp_path), tmp_path / "pages")


class Browser:
    """Chromium, told what to do by its debugging protocol."""

    def __init__(self, folder):
        import websocket  # comes with JupyterLab

        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        options += ["--disable-dev-shm-usage", "--remote-allow-origins=*"]
        self.process = subprocess.Popen(
            [CHROMIUM, *options, f"--user-data-dir={folder}", "about:blank"],
            stderr=subprocess.PIPE,
            text=True,
        )
        said = (re.search(r"ws://127\.0\.0\.1:(\d+)/", line) for line in self.process.stderr)
        port = next(filter(None, said))[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        self.socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=60)
        self.asked, self.events = 0, []

    def __call__(self, method, **parameters):
        self.asked += 1
        request = {"id": self.asked, "method": method, "params": parameters}
        self.socket.send(json.dumps(request))
        while (message := json.loads(self.socket.recv())).get("id") != self.asked:
            self.events.append(message)
        return message["result"]

    def value(self, expression):
        return self("Runtime.evaluate", expression=expression)["result"]["value"]

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    for domain in ("Page", "Runtime", "Network", "Log"):
        browser(f"{domain}.enable")
    yield browser
    browser.close()


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("name", LOOKED_AT)
@pytest.mark.slow
def test_pages_are_whole_in_a_browser(built, browser, name, width):
    browser.events.clear()
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser("Emulation.setDeviceMetricsOverride", **size)
    browser("Page.navigate", url=f"file://{built[1]}/{name}.html")
    until = time.monotonic() + 30
    rendered = "document.readyState == 'complete' && (!document.querySelector('.math') || "
    rendered += "!!document.querySelector('.math mjx-container'))"
    while not browser.value(rendered) and time.monotonic() < until:
        time.sleep(0.2)

    assert browser.value(rendered), "formulas are not rendered"
    missing = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src) + ''"
    assert browser.value(missing) == ""
    assert browser.value("document.documentElement.scrollWidth") <= width
    events = [(event["method"], event["params"]) for event in browser.events if "method" in event]
    assert [said for method, said in events if method == "Runtime.exceptionThrown"] == []
    assert [said for method, said in events if method == "Log.entryAdded"] == []
    asked = [
        said["request"]["url"] for method, said in events if method == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_papers_named_in_the_text_become_citations(tmp_path):
    papers = site.cited_as(PROJECT_ROOT / "book" / "site" / "references.bib")
    assert papers["Zhai and Wu, 2019"] == "zhai2019classification"
    text = (
        "as NormSoftmax (Zhai and Wu, 2019) and, by\n"
        "Hadsell, Chopra and\nLeCun, 2006, or Yi et al., 2014; not Zhai and Wu, 20190"
    )
    assert site.with_citations(text, papers) == (
        "as NormSoftmax ({cite:alp}`zhai2019classification`) and, by\n"
        "{cite:alp}`hadsell2006dimensionality`, or {cite:alp}`yi2014deep`; not Zhai and Wu, 20190"
    )
    twice = tmp_path / "twice.bib"
    entry = "@misc{%s, author = {Holm, S.}, year = {1979}, title = {T}}\n"
    twice.write_text(entry % "a" + entry % "b")
    assert site.cited_as(twice) == {}


def test_chapters_name_papers_that_are_in_the_references():
    papers = site.cited_as(PROJECT_ROOT / "book" / "site" / "references.bib")
    cited = {}
    for chapter in chapter_names():
        for cell in read_notebook(chapter_source(chapter)).cells:
            if cell.cell_type != "markdown":
                continue
            text = " ".join(cell.source.split())
            left = site.with_citations(text, papers)
            cited.setdefault(chapter, []).extend(re.findall(r"\{cite:alp\}`(\w+)`", left))
            assert not re.findall(r"[A-Z]\w+ et al\., [12]\d{3}", left), (chapter, left)
    assert all(cited.values())
