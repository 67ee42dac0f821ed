#!/bin/sh
# Trains the network that travels with bdbnet, in two stages on rendered data, packs it, and measures what was packed.
#   sh experiments/zoo/train.sh
set -e
small='dataset=synthetic_reid dataset.options.train_identities=240 dataset.image_size=[64,32] model=bdb backbone=osnet_x0_25
  sampler.batch_size=64 loss.label_smoothing=0 optimizer.weight_decay=0 schedule=cosine loading.cache=packed evaluation.every_n_epochs=10'
dims='+model.embedding_dims={global: 256, dropping: 512}'
# From random weights the triplet loss alone drives so small a network to a point; the softmax loss leads at first.
python -m bdbnet.train $small "$dims" backbone.weights=none loss.metric_weight=0.1 optimizer.lr=3e-3 schedule.warmup_epochs=3 \
  trainer.max_epochs=60 run_name=zoo_first
python -m bdbnet.train $small "$dims" backbone.weights=outputs/train/zoo_first/last.ckpt optimizer.lr=2e-3 schedule.warmup_epochs=2 \
  trainer.max_epochs=50 run_name=zoo
python experiments/zoo/pack.py outputs/train/zoo/last.ckpt bdb_osnet_x0_25_synthetic
packed=src/bdbnet/models/zoo/bdb_osnet_x0_25_synthetic
python -m bdbnet.evaluate checkpoint=$packed run_name=zoo_packed overwrite=true
python experiments/zoo/pack.py $packed bdb_osnet_x0_25_synthetic outputs/evaluate/zoo_packed/result.json
