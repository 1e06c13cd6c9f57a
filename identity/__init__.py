"""What results are kept under: networks, values, code."""
