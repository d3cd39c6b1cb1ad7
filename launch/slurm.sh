#!/bin/bash
# Trains on the GPU nodes of a Slurm cluster, and has itself queued again when it is cut short.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --time=24:00:00 launch/slurm.sh \
#     --config=experiments/flamingo_3b.py --workdir=runs/3b
#   launch/slurm.sh --dry-run --config=… --workdir=…      prints the commands, runs nothing
#
# Submit it in the folder of the checkout, on a file system that all nodes see. What stands on
# sbatch's command line wins over the lines below.
#
# One process a GPU: under Slurm, JAX gives a process the one device whose number is its rank on
# the node (SLURM_LOCALID), so a single process a node would leave the others idle. For the same
# reason GPUs are asked for by the node: bound to a task (--gpus-per-task), each would be number 0.
#
# Exit codes of the job: 0 finished, 2 bad input, 3 does not fit. On any other it is queued again:
# 143 is "stopped with everything saved", and what died goes on from its last saved step.
#
#SBATCH --job-name=flamingo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
# TERM to this script (B:) 120 seconds before the time is up, which hands it on to the processes:
# enough for a step and a save. Raise it where saving takes longer.
#SBATCH --signal=B:TERM@120

set -uo pipefail

# The environment; set them for sbatch, which passes its own on.
PYTHON=${PYTHON:-.venv/bin/python}                # of the environment flamingo_jax is installed in
COMMAND=${COMMAND:-"$PYTHON -m flamingo_jax train"} # before the arguments; split at blanks
MAX_RESTARTS=${MAX_RESTARTS:-100}                 # then it is given up
SRUN_FLAGS=${SRUN_FLAGS:-}                        # more flags of srun, such as --container-image=…
DRY_RUN=${DRY_RUN:-}
job=${SLURM_JOB_ID:-JOB}
restarts=${SLURM_RESTART_COUNT:-0}
verdict=${SLURM_SUBMIT_DIR:-$PWD}/slurm-$job.verdict

if [[ ${1:-} == --dry-run ]]; then
  DRY_RUN=1
  shift
fi

read -ra command <<<"$COMMAND"
read -ra flags <<<"$SRUN_FLAGS"
# srun ends with 143 however the first process died, as it ends the others: a process that ends
# with 2 or 3 writes that down. The trap lets this shell outlive a TERM that is for its child.
# shellcheck disable=SC2016  # expanded by the shell of the task
task='trap : TERM; "$@"; code=$?; case $code in 2 | 3) echo $code >"$0" ;; esac; exit $code'
run=(srun --kill-on-bad-exit=1 --label ${flags[@]+"${flags[@]}"} bash -c "$task" "$verdict"
  "${command[@]}" "$@")
hand_on=(scancel --signal=TERM "$job")
requeue=(scontrol requeue "$job")

show() {
  printf '%q ' "$@" | sed 's/ $//'
  echo
}

if [[ -n $DRY_RUN ]]; then
  show sbatch "$0" "$@"
  show "${run[@]}"
  show "${hand_on[@]}"
  show "${requeue[@]}"
  exit 0
fi
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "$0: this is a script for Slurm; submit it: sbatch $0 --config=… --workdir=…" >&2
  exit 2
fi
if ((restarts > MAX_RESTARTS)); then
  echo "slurm.sh: given up after $MAX_RESTARTS restarts; see above what each died of" >&2
  exit 1
fi

export FLAMINGO_RESTARTS=$restarts
rm -f "$verdict"
trap '"${hand_on[@]}" 2>/dev/null' TERM # a job that was cancelled has no steps to signal
"${run[@]}" &
pid=$!
wait "$pid"
code=$?
while kill -0 "$pid" 2>/dev/null; do # a TERM ends `wait`, not the processes, which are saving
  wait "$pid"
  code=$?
done
if [[ -s $verdict ]]; then
  code=$(<"$verdict")
fi
rm -f "$verdict"

case $code in
  0 | 2 | 3) exit "$code" ;;
esac
# A job that was cancelled, or that Slurm itself queues again, is no longer running.
state=$(scontrol show job "$job" | sed -n 's/^ *JobState=\([A-Z_]*\).*/\1/p')
if [[ $state == RUNNING ]]; then
  told="exit code $code after ${SECONDS} s"
  echo "slurm.sh: $told; restart $((restarts + 1)) of $MAX_RESTARTS" >&2
  "${requeue[@]}"
fi
exit "$code"
