#!/bin/bash
# Evaluates the dumps of write_dumps.py and the stored folders themselves: bash run.sh DUMPS QUERY GALLERY DATA_ROOT > figures.txt
dumps=$1 query=$2 gallery=$3 data=$4
python=${PYTHON:-python}
of() {
    name=$1; shift
    begin=$(date +%s.%N)
    line=$($python -m bdbnet.evaluate "$@" output_root="$dumps/outputs" run_name="$name" overwrite=true 2>/dev/null | grep -A2 'Rank-1' | tail -1)
    printf '%-28s %6.1f s  %s\n' "$name" "$(echo "$(date +%s.%N) - $begin" | bc)" "$line"
}
of npz features="$dumps/plain.npz"
of safetensors features="$dumps/plain.safetensors"
of parquet features="$dumps/table.parquet"
of layumi_mat features="$dumps/pytorch_result.mat"
of torchreid_pt features="$dumps/torchreid.pt"
of oml_pth features="$dumps/oml_inference_cache.pth" dataset=table dataset.manifest="$dumps/oml_df.csv" dataset.root=/
of oml_pth_market1501 features="$dumps/oml_inference_cache.pth" dataset=market1501 data_root="$data"
of stored features="$gallery" queries="$query"
of stored_market1501 features="$gallery" queries="$query" dataset=market1501 data_root="$data"
