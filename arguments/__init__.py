"""What may be asked for: numbers, closed sets of names, output paths."""
