#!/usr/bin/env bash
# Eight workers as a Slurm array, one GPU each: sbatch slurm.sh
# The search itself runs anywhere, also without a GPU: see find.sh.
#SBATCH --job-name=partopt-worker
#SBATCH --array=1-8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
# A worker gives its attack back when it is told to stop; Slurm waits so long before it kills.
#SBATCH --signal=TERM@60
set -euo pipefail
# A file that only you can read: export PARTOPT_STORAGE=postgresql://USER:PASSWORD@HOST/DATABASE
source "${PARTOPT_SECRETS:-$HOME/.partopt}"
# Ends after ten minutes without work, so that the array does not hold its GPUs for nothing.
exec partopt worker --model network:make --weights none --input-size 64 --mean 0.5 --std 0.5 \
    --data photos --idle 600
