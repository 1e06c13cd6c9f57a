from __future__ import annotations

import io

import pytest
from rich.console import Console

from partopt import config as c
from partopt.reporting.compare import rows
from partopt.reporting.report import markdown, verdict
from partopt.reporting.table import advised, render


def time(ms: float, backend: str = "native") -> c.Time:
    return c.Time(ms=ms, noise_ms=0.1, basis="measured", backend=backend)


def config(backend: str = "native", **changes) -> c.SplitConfig:
    parts = {
        "enclave": time(3, backend),
        "handoff": time(1),
        "accelerator": time(4, "cpu"),
        "total": time(8, backend),
    }
    row = c.CutRow(
        name="late",
        aliases=[],
        stage=True,
        payload_bytes=4,
        head_flops=1,
        head_layers=1,
        head_param_bytes=1,
        head_peak_activation_bytes=1,
        ssim_raw=0.3,
        score=0.06,
        low=0.05,
        high=0.07,
        suffix_score=0.1,
        suffix_high=0.11,
        safe=True,
        status="screened",
        reason="",
        attacks=[],
        latency_ms=c.Latency(**parts),
    )
    made = c.SplitConfig(
        model=c.ModelInfo(
            spec="net",
            weights="w",
            weights_hash="0",
            random_weights=False,
            graph_hash="0",
            traced_by="torch.fx",
            input_shape=[1, 3, 8, 8],
            input_dtype="float32",
            preprocessing=c.PreprocessingInfo(
                input_size=8,
                resize=8,
                mean=[0.5] * 3,
                std=[0.5] * 3,
                interpolation="bilinear",
                source="given",
            ),
        ),
        cut=c.CutInfo(
            name="late",
            boundary=[],
            aliases=[],
            payload_bytes=4,
            head_flops=620_000_000,
            tail_flops=380_000_000,
            head_param_bytes=1,
            head_peak_activation_bytes=1,
        ),
        latency_ms=c.ChosenLatency(
            **parts,
            full_enclave=time(7, backend),
            full_accelerator=time(6, "cpu"),
            threads=1,
            batch=1,
            repetitions=1,
        ),
        full_enclave_ms=time(7, backend),
        privacy=c.Privacy(
            threshold=0.2,
            scale="corrected",
            rule="r",
            budget="quick",
            evidence="screening",
            floor=0.2,
            floor_p95=0.3,
            ssim="s",
            resolution=8,
            data="d",
            data_hash="0",
            images={"test": 1},
            skipped=[],
            attackers=[],
            score=0.06,
            low=0.05,
            high=0.07,
            suffix_high=0.13,
        ),
        cuts=[row],
        search=c.Search(
            trials_run=1,
            trials_reused=0,
            image_steps=1,
            attack_seconds=1.0,
            study="s",
            storage="j",
        ),
        seed=0,
        versions={},
        warnings=[],
    )
    return made.model_copy(update=changes)


def certified(**changes) -> c.SplitConfig:
    """The same, with evidence that certifies the cut."""
    made = config(**changes)
    row = made.cuts[0].model_copy(update={"status": "safe", "safe": True})
    enough = made.privacy.model_copy(update={"budget": "standard", "evidence": "standard"})
    return made.model_copy(update={"cuts": [row], "privacy": enough})


def shown(made: c.SplitConfig) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(made))
    return " ".join(console.export_text().split())


def test_both_upper_ends_are_named():
    for text in (shown(config()), verdict(config())):
        assert "0.06 (at most 0.07 at this cut, 0.13 here or later)" in text


def test_a_result_of_an_older_version_takes_the_largest_from_its_row():
    old = config()
    old.privacy.suffix_high = None
    assert "0.11 here or later" in shown(old)
    assert advised(old) == "not compared"
    assert advised(config("gramine-sgx")) == "split"


@pytest.mark.parametrize(
    ("what", "said", "unsaid"),
    [
        ("split", ["Cut", "8.0 ms against 7.0 ms"], ["say nothing of a deployment"]),
        (
            "not compared",
            ["leaves 38% of the work (380 of 1000 MFLOP)", "say nothing of a deployment"],
            ["ms against", "the speed"],
        ),
        ("do not split", ["Do not split", "late"], ["Cut after", "the speed"]),
    ],
)
def test_the_headline_says_what_is_recommended(what, said, unsaid):
    made = certified(recommendation=what)
    headline = shown(made).partition("cut (last in enclave)")[0]
    for text in (headline, verdict(made)):
        assert all(s in text for s in said), text
        assert not any(u in text for u in unsaid), text
    assert ("split or not", what, what) in rows(made, made)


@pytest.mark.parametrize("advice", ["split", "not compared", "do not split"])
def test_a_screened_cut_is_a_candidate_and_nothing_more(advice):
    made = config(recommendation=advice)
    headline = shown(made).partition("cut (last in enclave)")[0]
    side = {label: one for label, one, _ in rows(made, made)}
    for text in (headline, verdict(made)):
        assert "andidate" in text, text
        assert "late (screened, not certified)" in text, text
        assert "safe" not in text, text
    assert side["cut"] == "late (screened, not certified)"
    sure = certified(recommendation=advice)
    headline = shown(sure).partition("cut (last in enclave)")[0]
    side = {label: one for label, one, _ in rows(sure, sure)}
    assert side["cut"] == "late"
    for text in (headline, verdict(sure)):
        assert "certified" not in text, text
        assert "andidate" not in text, text


@pytest.mark.parametrize(
    "change", [{"budget": "quick"}, {"evidence": "screening"}, {"protocol": "paper"}]
)
def test_no_row_makes_a_screening_more_than_that(change):
    """Whatever a config says of a cut: older versions called screened cuts safe."""
    made = certified()
    made.privacy = made.privacy.model_copy(update=change)
    assert made.standing == "screened"
    for text in (shown(made), verdict(made), markdown(made)):
        assert "not certified" in text
    assert c.SplitConfig.parse(made.to_json().encode()).cuts[0].safe is False


def test_a_screening_says_what_could_certify_its_cut():
    made = config()
    assert "--budget standard" in markdown(made)
    made.privacy.shortfall = "1400 images could certify it"
    assert "**Screened, not certified: 1400 images could certify it.**" in markdown(made)


def test_what_too_few_images_left_open_is_the_headline():
    row = config().cuts[0].model_copy(update={"status": "undecided", "safe": False})
    made = config(cut=None, latency_ms=None, cuts=[row])
    made.privacy.shortfall = "the run had 71 of 256 training images; 400 images would screen it"
    for text in (shown(made), verdict(made)):
        assert "71 of 256 training images" in text


def test_the_sweep_is_one_line():
    attack = c.Attack(attacker="linear", settings="", outcome="full budget", high=0.05, score=0.04)
    cuts = [c.SweptCut(name="mid", tensors=2, payload_bytes=4, attacks=[attack])]
    text = shown(
        config(sweep=c.Sweep(attackers=["Linear()"], lead=0.03, proportion=2.0, cuts=cuts))
    )
    assert "1 unsampled cuts swept, highest upper end 0.05 at mid" in text
    assert "from 0.10 on" in text


def test_sizes_and_people_are_shown_beside_the_mean():
    sides = [
        c.SideScore(side=224, raw=0.3, score=0.12, low=0.1, high=0.14),
        c.SideScore(side=112, raw=0.4, score=0.19, low=0.18, high=0.199),
    ]
    attack = c.Attack(
        attacker="stack",
        settings="Stack()",
        outcome="full budget",
        score=0.19,
        low=0.18,
        high=0.199,
        sides=sides,
        over=12,
        over_high=0.1023,
        largest=0.41,
        retrieved=180,
        retrieved_high=0.9381,
    )
    made = config()
    privacy = {"sides": [224, 112], "images": {"test": 200}, "attacks": [attack]}
    made = made.model_copy(update={"privacy": made.privacy.model_copy(update=privacy)})
    text = shown(made)
    assert "200 unseen images at 224x224 and 112x112" in text
    assert "0.12 at 224 pixels, 0.19 at 112 pixels" in text
    assert "12 of 200 test images reach 0.2 on their own (at most 10.2% of all" in text
    assert "picked out of 200 for 180 of them (at most 93.8%, chance 0.5%)" in text
    old = shown(config())
    assert "1 unseen images at 8x8" in old
    assert "on their own" not in old, "a result of before counts nobody"
