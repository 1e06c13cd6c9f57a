"""Budgets, the rule, the search and the choice: from evidence to a cut."""
