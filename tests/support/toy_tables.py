"""A table of two networks, and a budget of a second per cell."""

TABLE = """
title: Two networks
source: nobody, nowhere, Table 0
columns:
  market1501: [rank1, mAP]
rows:
  - name: Baseline
    run: [model=baseline]
    paper: {market1501: [90.0, 70.0]}
  - name: BDB
    run: [model=bdb]
    paper: {market1501: [95.0, 80.0]}
  - name: Elsewhere
    paper: {market1501: [96.0, null]}
"""

BUDGET = """
title: toy size
compare: numbers
datasets:
  market1501:
    - dataset=synthetic_reid
    - dataset.image_size=[32,16]
    - dataset.options.image_size=[32,16]
    - dataset.options.train_identities=4
    - dataset.options.test_identities=3
    - dataset.options.cameras=2
    - dataset.options.images_per_camera=2
    - dataset.options.distractors=1
    - dataset.options.workers=1
  cuhk03_detect: null
overrides:
  - backbone=osnet_x0_25
  - sampler.batch_size=8
  - trainer.max_epochs=2
  - trainer.precision=32-true
  - trainer.accelerator=cpu
  - evaluation.top_k=2
  - callbacks.progress=false
  - loading.num_workers=0
keep_checkpoints: true
"""
