"""Attacks on single cuts, their strength, and the published tables redrawn."""
