#!/usr/bin/env bash
# Trains every loss with every seed, one after the other on one core, and keeps result.json and history.csv beside this file.
#   bash experiments/pml_losses/run.sh FOLDER_FOR_DATA_AND_RUNS squeezenet1_1_imagenet.pth
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${1:?give a folder for data and runs}
weights=${2:?give the ImageNet weights of SqueezeNet 1.1 (the file of torchvision)}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive CUDA_VISIBLE_DEVICES=
shared=(
  dataset=synthetic_reid 'dataset.image_size=[64,32]' model=baseline backbone=torchvision "backbone.weights=$weights"
  sampler.batch_size=64 sampler.epoch=images trainer.max_epochs=6 schedule=cosine schedule.warmup_epochs=1 optimizer.lr=3e-4
  trainer.accelerator=cpu trainer.precision=32-true loading.num_workers=0 callbacks.progress=false
  "data_root=$work/data" "output_root=$work" sweep_name=pml_losses 'run_name=${loss.name}_${seed}' overwrite=true
)
pml=pytorch_metric_learning.losses
losses=$pml.CircleLoss,$pml.MultiSimilarityLoss,$pml.ProxyAnchorLoss,$pml.SupConLoss
for seed in 1 2 3; do
  "${PYTHON:-python}" -m bdbnet.train -m "${shared[@]}" loss=hard_triplet "seed=$seed"
  "${PYTHON:-python}" -m bdbnet.train -m "${shared[@]}" loss=pml "loss.metric._target_=$losses" "seed=$seed"
done
for run in "$work"/sweeps/pml_losses/*_[123]; do
  mkdir -p "$here/$(basename "$run")"
  cp "$run"/{result.json,history.csv} "$here/$(basename "$run")"
done
"${PYTHON:-python}" "$here/make_table.py"
