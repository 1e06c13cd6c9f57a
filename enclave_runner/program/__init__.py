"""A half of a network as a list of plain operators, and its sealed weights."""
