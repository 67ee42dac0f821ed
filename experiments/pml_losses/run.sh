#!/usr/bin/env bash
# Trains every loss with every seed, one after the other on one core, and keeps result.json and history.csv beside this file.
#   bash experiments/pml_losses/run.sh FOLDER_FOR_DATA_AND_RUNS
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${1:?give a folder for data and runs}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive CUDA_VISIBLE_DEVICES=
for seed in 1 2 3; do
  for loss in BatchHardTripletLoss CircleLoss MultiSimilarityLoss ProxyAnchorLoss SupConLoss; do
    choice="loss=pml loss.metric._target_=pytorch_metric_learning.losses.$loss"
    [ "$loss" = BatchHardTripletLoss ] && choice="loss=hard_triplet"
    # shellcheck disable=SC2086 # two arguments
    "${PYTHON:-python}" -m bdbnet.train dataset=synthetic_reid dataset.image_size='[64,32]' model=baseline backbone=osnet_x0_25 $choice \
      sampler.batch_size=64 sampler.epoch=images trainer.max_epochs=10 trainer.accelerator=cpu trainer.precision=32-true \
      loading.num_workers=0 callbacks.progress=false seed=$seed data_root="$work/data" output_root="$work" \
      run_name="pml_losses/$loss/$seed" overwrite=true
    mkdir -p "$here/$loss/seed=$seed"
    cp "$work/train/pml_losses/$loss/$seed"/{result.json,history.csv} "$here/$loss/seed=$seed"
  done
done
"${PYTHON:-python}" "$here/make_table.py"
