#!/usr/bin/env bash
# Trains the demo with five seeds on one thread, and with seed 1 on two, one run after the other, and keeps result.json and
# history.csv beside this file.
#   bash experiments/demo/run.sh FOLDER_FOR_DATA_AND_RUNS
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "${1:?give a folder for data and runs}"
run() { # threads name settings...
  OMP_NUM_THREADS=$1 OMP_WAIT_POLICY=passive CUDA_VISIBLE_DEVICES= \
    "${PYTHON:-python}" -m bdbnet.train experiment=demo trainer.channels_last=false "run_name=$2" "${@:3}" 'hydra.run.dir=outputs/${run_name}' overwrite=true
  mkdir -p "$here/$2"
  cp "outputs/$2"/{result.json,history.csv} "$here/$2"
}
for seed in 1 2 3 4 5; do
  run 1 "bdb_$seed" "seed=$seed"
done
run 2 bdb_two_threads seed=1
