#!/usr/bin/env bash
# From the repository's root: what the action runs. Exit codes: 0 holds, 4 privacy regression, 5 the best
# cut has moved or latency has regressed, 1 could not be decided.
set -euo pipefail
partopt check --config examples/ci_gate/partopt.toml --no-latency --markdown summary.md
