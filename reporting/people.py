"""What a mean hides: sizes, other seeds, more images, and who is recognised all the same."""

from __future__ import annotations

from ..config import SplitConfig


def compared(config: SplitConfig) -> str:
    """The sizes at which pictures were compared, e.g. ``224x224 and 112x112``."""
    p = config.privacy
    return " and ".join(f"{side}x{side}" for side in p.sides or [p.resolution])


def by_side(config: SplitConfig) -> str:
    """The strongest attack's score at each size at the chosen cut, or nothing of one size alone."""
    attacks = [a for a in config.privacy.attacks if a.score is not None and len(a.sides) > 1]
    if not attacks:
        return ""
    worst = max(attacks, key=lambda a: a.score or 0.0)
    return ", ".join(f"{s.score:.2f} at {s.side} pixels" for s in worst.sides)


def people(config: SplitConfig) -> str:
    """Test images that pass the threshold on their own, and those picked out; empty if unknown."""
    p = config.privacy
    count = p.images.get("test", 0)
    over = [a for a in p.attacks if a.over is not None and a.over_high is not None]
    found = [a for a in p.attacks if a.retrieved is not None and a.retrieved_high is not None]
    if not count or not over or not found:
        return ""
    own = max(over, key=lambda a: a.over_high or 0.0)
    seen = max(found, key=lambda a: a.retrieved_high or 0.0)
    return (
        f"{own.over} of {count} test images reach {p.threshold:g} on their own (at most "
        f"{own.over_high:.1%} of all, the largest {own.largest or 0.0:.2f}); the true photo is "
        f"picked out of {count} for {seen.retrieved} of them (at most {seen.retrieved_high:.1%}, "
        f"chance {1 / count:.1%})"
    )


def more_images(config: SplitConfig) -> str:
    """What attacks at the chosen cut may reach with as many images as the adversary has, or ""."""
    row = next((r for r in config.cuts if config.cut and r.name == config.cut.name), None)
    curve = None if row is None else row.curve
    if curve is None:
        return ""
    steps = ", ".join(f"{p.value:.2f} with {p.images} images" for p in curve.points)
    return f"{curve.attacker} reaches {steps}, and at most {curve.high:.2f} with {curve.images}"


def other_seeds(config: SplitConfig) -> str:
    """Scores of several trainings at the chosen cut, or ""."""
    attack = next((a for a in config.privacy.attacks if a.trainings), None)
    if attack is None:
        return ""
    values = ", ".join(f"{v:.3f}" for v in attack.trainings)
    return f"{len(attack.trainings)} trainings of {attack.attacker} reach {values}"
