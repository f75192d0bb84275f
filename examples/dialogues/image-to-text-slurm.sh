#!/usr/bin/env bash
# sbatch image-to-text-slurm.sh [dotted.key=value ...], from the folder where data/ and runs/ are.
#SBATCH --job-name=emu3-image-to-text
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600      # ten minutes before the limit: save, leave, requeue
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
exec bash "${EMU3:?set EMU3 to the checkout}/tools/slurm_emu3.sh" train image-to-text-8b-h100x64 "$@"
