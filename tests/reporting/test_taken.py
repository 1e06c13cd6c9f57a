"""Every output says on which machine times were taken, and when."""

from __future__ import annotations

import csv
import io
import json

import pytest

from partopt.config import Machine, SplitConfig, Taken
from partopt.reporting.charts import CHARTS, to_svg
from partopt.reporting.compare import rows
from partopt.reporting.report import as_csv, html, markdown, verdict

from .test_table import certified, config, shown

MACHINE = Machine(
    name="node-7",
    system="Linux",
    cpu="Xeon 9",
    cores=8,
    memory_bytes=32 << 30,
    gpu="H100",
    sgx=True,
    gramine="Gramine 1.9",
    torch="2.9",
    partopt="0.3",
)
HERE = Taken(machine=MACHINE, at="2026-01-02T03:04:05Z")
THERE = HERE.model_copy(update={"profile": "ab" * 32})


@pytest.mark.parametrize(
    ("taken", "source"), [(HERE, "in this run"), (THERE, "profile abababababab")]
)
def test_every_output_names_machine_and_time(taken, source):
    made = config(taken=taken)
    assert SplitConfig.parse(made.to_json().encode()).taken == taken
    facts = {label: one for label, one, _ in rows(made, made)}
    for text in (shown(made), markdown(made), html(made), facts["times"]):
        assert "node-7 (Xeon 9, 8 core(s), 32 GiB, H100, SGX, Gramine 1.9, torch 2.9)" in text
        assert "at 2026-01-02T03:04:05Z" in text
        assert source in text
    (row,) = csv.DictReader(io.StringIO(as_csv(made)))
    assert (row["machine"], row["taken_at"]) == ("node-7", "2026-01-02T03:04:05Z")
    for name in ("latency", "front"):
        draw, label = CHARTS[name]
        assert "node-7, 2026-01-02T03:04:05Z" in to_svg(draw(made), label)


def test_results_of_older_versions_say_that_they_do_not_know():
    raw = json.loads(config().to_json())
    del raw["taken"]
    old = SplitConfig.parse(json.dumps(raw).encode())
    for text in (shown(old), markdown(old), html(old)):
        assert "n older partopt did not say on which machine or when" in text
    assert "machine not known" in to_svg(CHARTS["latency"][0](old), "l")


def test_a_machine_may_be_called_anything():
    odd = MACHINE.model_copy(update={"name": "=cmd|'$x$\x1b[31m<b>"})
    made = config(taken=HERE.model_copy(update={"machine": odd}))
    assert "<b>" not in html(made).partition("Warnings")[2]
    assert "\x1b" not in markdown(made) + as_csv(made)
    (row,) = csv.DictReader(io.StringIO(as_csv(made)))
    assert row["machine"].startswith("'=")
    for draw, label in CHARTS.values():
        to_svg(draw(made.shown()), label)


@pytest.mark.parametrize(
    ("taken", "whose"),
    [(None, "times of this machine"), (HERE, "times of this machine"), (THERE, "times of node-7")],
)
def test_where_times_compare_nothing_the_headline_says_so_and_how_to_get_others(taken, whose):
    made = certified(taken=taken)
    headline = shown(made).partition("cut (last in enclave)")[0]
    for text in (headline, verdict(made)):
        assert "38% of the work (380 of 1000 MFLOP)" in text
        assert f"{whose}" in text
        assert "say nothing of a deployment: run `partopt profile` on its machine" in text
        assert " ms" not in text
        assert "the speed" not in text
    facts = {label: one for label, one, _ in rows(made, made)}
    assert facts["ratio"] == "says nothing of a deployment"
    assert facts["work left outside"] == "38% of the work (380 of 1000 MFLOP)"
