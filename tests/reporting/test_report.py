from __future__ import annotations

import base64
import csv
import html as escaping
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from partopt.attackers.pictures import path_of
from partopt.config import SplitConfig
from partopt.errors import UsageError
from partopt.images.load import Split
from partopt.optimizer.budgets import BUDGETS
from partopt.optimizer.check import CheckResult
from partopt.optimizer.find import find
from partopt.reporting import checks
from partopt.reporting.charts import CHARTS
from partopt.reporting.compare import rows
from partopt.reporting.report import as_csv, html, markdown, pictures, verdict, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def result(tiny_loaded, monkeypatch) -> SplitConfig:
    budget = replace(
        BUDGETS["quick"],
        split=Split(64, 16, 24),
        resolution=32,
        minimum_images=20,
        settings={"linear": {"max_cells": 8000}, "decoder": {"epochs": 1, "width": 16}},
    )
    monkeypatch.setitem(BUDGETS, "quick", budget)
    return find(tiny_loaded, repetitions=2, command="partopt find --model tiny").config


@pytest.fixture
def hostile(result) -> SplitConfig:
    """A config whose every free text tries to break out."""
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    changed = result.model_copy(deep=True)
    changed.model.spec = changed.privacy.data = changed.command = evil
    changed.cuts[0].name = evil
    changed.warnings.append(evil)
    return changed


def test_the_page_is_self_contained(result):
    page = html(result)
    assert not re.search(r"https?://(?!www\.w3\.org|purl\.org)", page)
    assert "<script" not in page
    assert page.count("<svg") == len(CHARTS)
    assert all(f'aria-label="{label}' in page for _, label in CHARTS.values())
    images = re.findall(r"<img [^>]+>", page)
    assert images
    assert all('alt="Originals above' in i for i in images)
    assert escaping.escape(verdict(result)) in page.replace("&#39;", "'")
    for warning in result.warnings:
        assert escaping.escape(warning, quote=False).split("'")[0] in page
    assert "evidence: screening only, certifies nothing" in page
    assert "(screened, not certified)" in page
    assert 'class="verdict good"' not in page
    assert 'class="good"' not in page, "no cut of a screening is green"
    assert "partopt find --model tiny" in page


def test_hostile_text_stays_text(hostile, result):
    page = html(hostile)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<script" not in markdown(hostile)
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    nothing_steers(hostile)


def nothing_steers(changed: SplitConfig) -> None:
    """No report holds what steers a terminal or turns the direction of text."""
    evil = "a\x1b[2J\u202eb$x$\x07"
    changed.model.spec = changed.privacy.data = changed.command = evil
    changed.cuts[0].name = evil
    changed.warnings.append(evil)
    check = CheckResult(evil, evil, evil)
    texts = [
        html(changed),
        markdown(changed),
        as_csv(changed),
        *(text for row in rows(changed, changed) for text in row),
        checks.markdown([check]),
        checks.junit([check]),
    ]
    for text in texts:
        assert not set("\x1b\x07\u202e") & set(text)
    assert r"a\x1b[2J\u202eb$x$\x07</td>" in texts[0]


def test_pictures_are_kept_and_found(result):
    found = pictures(result)
    assert 1 <= len(found) <= 3
    data = base64.b64decode(found[0].url.partition(",")[2])
    assert data[:4] == b"\x89PNG"
    keys = [a.key for r in result.cuts for a in r.attacks]
    assert all(path_of(k).is_file() for k in keys)


def test_markdown_csv_and_charts(result, tmp_path):
    table = markdown(result)
    assert f"**`{result.cut.name}`**" in table
    lines = list(csv.DictReader(io.StringIO(as_csv(result))))
    assert {line["cut"] for line in lines} == {r.name for r in result.cuts}
    assert sum(line["chosen"] == "True" for line in lines) >= 1
    for chart in CHARTS:
        write(result, "svg", tmp_path / f"{chart}.svg", chart)
        ET.parse(tmp_path / f"{chart}.svg")
    write(result, "png", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UsageError, match="`format` got 'pdf'"):
        write(result, "pdf", tmp_path / "x")
    with pytest.raises(UsageError, match="`chart` got 'pie'"):
        write(result, "svg", tmp_path / "x", "pie")


def test_without_a_safe_cut(result, tmp_path):
    none = result.model_copy(update={"cut": None, "latency_ms": None})
    assert verdict(none).startswith("No cut of")
    for kind in ("html", "md", "svg", "png", "csv"):
        write(none, kind, tmp_path / f"x.{kind}")


def test_compare(result):
    other = result.model_copy(deep=True)
    other.model.weights_hash = "f" * 64
    differing = [label for label, a, b in rows(result, other) if a != b]
    assert differing == ["weights"]


PROBE = """
<!doctype html><body><iframe id=f style="border:0;width:{width}px;height:900px"></iframe><script>
const page = atob("{page}"), f = document.getElementById("f");
f.onload = () => {{
  const d = f.contentDocument, w = f.contentWindow, out = {{width: w.innerWidth}};
  out.overflow = d.documentElement.scrollWidth - w.innerWidth;
  out.charts = [...d.querySelectorAll(".scroll svg")].map(s => s.getBoundingClientRect().height);
  out.images = [...d.images].map(i => i.naturalWidth);
  const lum = c => {{ const [r,g,b] = c.match(/[0-9.]+/g).map(Number).slice(0, 3).map(v => {{
    v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 }});
    return .2126 * r + .7152 * g + .0722 * b }};
  const ground = e => {{ for (; e; e = e.parentElement) {{ const b = w.getComputedStyle(e)
    .backgroundColor; if (!/, 0\\)$/.test(b) && b !== "transparent") return b }}
    return "rgb(255,255,255)" }};
  out.contrast = 99;
  for (const e of d.querySelectorAll("h1,h2,p,li,dt,dd,td,th,figcaption,code,svg text")) {{
    const s = w.getComputedStyle(e), ink = e.closest("svg") ? s.fill : s.color;
    if (!/^rgb/.test(ink) || !e.textContent.trim()) continue;
    const [a, b] = [lum(ink), lum(ground(e))].sort((x, y) => y - x);
    out.contrast = Math.min(out.contrast, (a + .05) / (b + .05));
  }}
  document.body.innerHTML = "<pre>" + JSON.stringify(out) + "</pre>";
}};
f.srcdoc = page;
</script></body>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_real_browser(result, tmp_path, width, dark):
    page = html(result).encode("ascii", "xmlcharrefreplace")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(width=width, page=base64.b64encode(page).decode()))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1600,1000",
        "--enable-logging=stderr",
        "--virtual-time-budget=8000",
        "--dump-dom",
    ]
    if dark:
        flags.append("--blink-settings=preferredColorScheme=0")
    done = subprocess.run(
        [CHROMIUM, *flags, probe.as_uri()], capture_output=True, text=True, timeout=120
    )
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors
    found = re.search(r"<pre>(\{.*\})</pre>", done.stdout)
    assert found, done.stdout[-500:]
    seen = json.loads(escaping.unescape(found.group(1)))
    assert seen["width"] == width
    assert seen["overflow"] <= 0
    assert len(seen["charts"]) == len(CHARTS)
    assert min(seen["charts"]) > 50
    assert min(seen["images"]) > 0
    assert seen["contrast"] >= 4.5


@pytest.fixture
def outcomes() -> list[CheckResult]:
    good = CheckResult("a.split.json", "m", "c")
    good.add("graph", "holds", "still there")
    good.add("latency", "skipped", "switched off")
    bad = CheckResult("b|<x>.split.json", "m\x00", "c")
    bad.add("privacy", "regressed", "leaks <b>|`now`")
    bad.add("best cut", "moved", "from c to d")
    return [good, bad]


def test_check_output_formats(outcomes):
    assert [r["exit_code"] for r in json.loads(checks.as_json(outcomes))] == [0, 4]
    root = ET.fromstring(checks.junit(outcomes))
    cases = root.findall(".//testcase")
    assert len(cases) == 4
    assert len(root.findall(".//failure")) == 2
    assert len(root.findall(".//skipped")) == 1
    text = checks.markdown(outcomes)
    assert text.splitlines()[0] == "## partopt check: FAILS"
    assert text.index("PRIVACY REGRESSION") < text.index("a.split.json")
    assert "<b>" not in text
    assert checks.markdown(outcomes[:1]).splitlines()[0] == "## partopt check: holds"


def test_a_screened_cut_that_holds_is_not_called_certified(outcomes):
    good, bad = outcomes
    good.status = "screened"
    good.add("privacy", "holds", f"{good.caveat}at most 0.10")
    said = "screened, not certified"
    assert good.exit_code == 0
    (raw,) = json.loads(checks.as_json([good]))
    assert (raw["verdict"], raw["status"], raw["certified"]) == (
        f"holds, {said}",
        "screened",
        False,
    )
    root = ET.fromstring(checks.junit([good]))
    (case,) = [c for c in root.findall(".//testcase") if c.get("name") == "privacy"]
    assert said in case.findtext("system-out")
    assert not root.findall(".//failure")
    text = checks.markdown([good, bad])
    assert text.splitlines()[0] == "## partopt check: FAILS"
    assert f"1 of 2 {said}: `a.split.json`" in text
    assert checks.markdown([good]).splitlines()[0] == f"## partopt check: holds, {said}"
    assert "budget" in checks.markdown([good])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(checks.table([good]))
    assert f"a.split.json: holds, {said}" in console.export_text()
    good.add("best cut", "moved", "from c to d")
    assert (good.exit_code, good.verdict) == (5, f"{said}, but the cut moved or latency regressed")
    assert json.loads(checks.as_json([good]))[0]["certified"] is False


def test_a_certified_cut_that_holds_is_said_to(outcomes):
    good, bad = outcomes
    good.status = bad.status = "safe"
    good.add("privacy", "holds", f"{good.caveat}at most 0.10")
    for text in (checks.markdown([good]), checks.junit([good])):
        assert "not certified" not in text
    certified = [r["certified"] for r in json.loads(checks.as_json([good, bad]))]
    assert certified == [True, False], "a regression certifies nothing"
