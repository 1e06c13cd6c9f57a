#!/usr/bin/env bash
# From the repository's root: writes the split config that the gate guards, once or when the model changes.
set -euo pipefail
partopt find --config examples/ci_gate/partopt.toml --model examples.custom_model.network:make \
    --out examples/ci_gate/network.split.json
