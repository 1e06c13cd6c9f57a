from partopt.nodes import Cut
from partopt.optimizer.choose import choose
from partopt.profilers.base import CutLatency, Figure


def cut(i: int, flops: int, payload: int = 10) -> Cut:
    return Cut(f"c{i}", i, i, (), payload, flops, 0, 0, 0, 0, 0)


def latency(ms: float, noise: float = 0.0) -> CutLatency:
    f = Figure(ms, noise, "measured", "native")
    return CutLatency(f, f, f, f)


CUTS = [cut(0, 10), cut(1, 20), cut(2, 30)]


def test_the_fastest_safe_cut():
    times = [latency(10), latency(5), latency(8)]
    assert choose(CUTS, times, [0, 1, 2]) == 1
    assert choose(CUTS, times, [0, 2]) == 2
    assert choose(CUTS, times, []) is None


def test_ties_go_to_the_least_enclave_work_then_the_fewest_bytes():
    assert choose(CUTS, [latency(5.1), latency(5), latency(5.02)], [0, 1, 2]) == 0
    cuts = [cut(0, 10, 90), cut(1, 10, 20), cut(2, 10, 20)]
    assert choose(cuts, [latency(5)] * 3, [0, 1, 2]) == 1


def test_measured_noise_widens_a_tie():
    assert choose(CUTS, [latency(6), latency(5), latency(9)], [0, 1, 2]) == 1
    assert choose(CUTS, [latency(6, 0.5), latency(5, 0.5), latency(9)], [0, 1, 2]) == 0


def test_the_answer_does_not_hang_on_noise():
    """Totals that wobble by less than the noise give one and the same cut."""
    import random

    rng = random.Random(0)
    answers = {
        choose(CUTS, [latency(20 + rng.uniform(-0.3, 0.3), 0.2) for _ in CUTS], [0, 1, 2])
        for _ in range(200)
    }
    assert answers == {0}
