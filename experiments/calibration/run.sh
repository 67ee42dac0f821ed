#!/bin/bash
# Thresholds of OSNet x0.25 on Market-1501: bash run.sh WEIGHTS DATA_ROOT EMBEDDINGS OUTPUT
# EMBEDDINGS: folder for what bdbnet.embed makes of the queries, the gallery and the training images; what is there already is used.
weights=$1 data=$2 embeddings=$3 output=$4
python=${PYTHON:-python}
for split in query gallery train; do
    [ -e "$embeddings/$split/meta.json" ] ||
        $python -m bdbnet.embed checkpoint="$weights" dataset=market1501 data_root="$data" split=$split output="$embeddings/$split" || exit 1
done
for fmr in 1e-3 1e-2; do
    for sides in "train test" "test half"; do
        read -r split held_out <<< "$sides"
        echo "split=$split held_out=$held_out fmr=$fmr"
        $python -m bdbnet.calibrate checkpoint="$weights" dataset=market1501 data_root="$data" split=$split held_out=$held_out fmr=$fmr \
            "embeddings=[$embeddings/query,$embeddings/gallery,$embeddings/train]" output="$output/${split}_${held_out}_$fmr" || exit 1
    done
done
