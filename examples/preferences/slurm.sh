#!/usr/bin/env bash
# sbatch slurm.sh [dotted.key=value ...], from the folder where data/ and runs/ are.
#SBATCH --job-name=emu3-dpo
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600      # ten minutes before the limit: save, leave, requeue
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
launcher=${EMU3:?set EMU3 to the checkout}/tools/slurm_emu3.sh
# The reference's log-probabilities, in the layout that trains; a requeued job finds them there.
bash "$launcher" reference dpo-8b-h100x64 "$@"
exec bash "$launcher" train dpo-8b-h100x64 "$@"
