#!/bin/bash
# Trains a recipe under Slurm, one task a GPU, and goes on where the time was over:
#
#     sbatch slurm.sh ddpm_cifar --data.dir "$WORK/data" --precision bfloat16
#
# The first word is the recipe, all else are its flags. RUNS is a directory that all nodes share.
#
#SBATCH --job-name=jaxgen
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

recipe=${1:?name a recipe: sbatch slurm.sh ddpm_cifar}
shift

# JAX finds the other tasks by Slurm's variables, and gives each task the GPU of its local number.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 \
    jaxgen train "$recipe" --distributed --run-dir "${RUNS:-runs}/$recipe" "$@"
code=$?

# 143: SIGTERM came (120 s before the time is over, or when the job is preempted), and the run has
# saved. Slurm does not start such a job again by itself.
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
