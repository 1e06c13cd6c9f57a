#!/usr/bin/env bash
# In the folder that holds network.py (examples/custom_model) and photo.png: from a network to an answer of
# the deployed split.
set -euo pipefail
# Exit code 6, "do not split", would end the script here; --sgx-model or Gramine make times comparable.
partopt find --model network:make --weights none --input-size 64 --mean 0.5 --std 0.5 \
    --cuts stage --resolution 32 --out network.split.json
# Writes bundle/, and bundle.key beside it: keep the key from whoever runs the host.
# Without a GPU `find` takes the budget quick, which screens and certifies nothing, and `export` refuses the
# cut: the option takes it all the same, to try things out. In earnest run `find --budget standard`, and leave
# the option out.
partopt export network.split.json --out bundle --accept-screening --trust-model
# Without SGX nothing is protected, and partopt says so. On gramine-sgx leave the last option out.
partopt run bundle --input photo.png --insecure-no-attestation
