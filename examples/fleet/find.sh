#!/usr/bin/env bash
# The search that the workers make the attacks of. It only coordinates: --workers 0. Started again after it
# was killed, it goes on. The storage is the PARTOPT_STORAGE of that file.
set -euo pipefail
source "${PARTOPT_SECRETS:-$HOME/.partopt}"
# One compute thread an attack here and at the workers, so that scores do not hang on machines.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
partopt find --model network:make --weights none --input-size 64 --mean 0.5 --std 0.5 \
    --cuts stage --data photos --workers 0 --out network.split.json
