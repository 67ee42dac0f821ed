#!/bin/bash
# Writes the embeddings of two folders of bdbnet.embed in every format and evaluates each: bash run.sh QUERY GALLERY DATA_ROOT DUMPS
query=$1 gallery=$2 data=$3 dumps=$4
python=${PYTHON:-python}
$python "$(dirname "$0")/write_dumps.py" "$query" "$gallery" "$dumps" || exit 1
of() {
    name=$1; shift
    begin=$(date +%s.%N)
    line=$($python -m bdbnet.evaluate "$@" output_root="$dumps/outputs" run_name="$name" overwrite=true evaluation.top_k=0 | grep -A2 'Rank-1' | tail -1)
    seconds=$(echo "$(date +%s.%N) - $begin" | bc)
    read -r _ rank1 _ _ map _ <<< "$line"
    ranking=$($python -c 'import json, sys; print(json.load(open(sys.argv[1]))["seconds"]["evaluate"])' "$dumps/outputs/evaluate/$name/result.json")
    printf '| %s | %s | %s | %.1f | %s |\n' "$name" "$rank1" "$map" "$seconds" "$ranking"
}
printf '| format | Rank-1, %% | mAP, %% | seconds | of these ranking |\n|---|---|---|---|---|\n'
of npz features="$dumps/plain.npz"
of npy features="$dumps/plain.npy" dataset=market1501 data_root="$data"
of pt features="$dumps/plain.pt"
of safetensors features="$dumps/plain.safetensors"
of parquet features="$dumps/table.parquet"
of layumi_mat features="$dumps/pytorch_result.mat"
of torchreid_pt features="$dumps/torchreid.pt"
of oml_pth features="$dumps/oml_inference_cache.pth" dataset=table dataset.manifest="$dumps/oml_df.csv" dataset.root=/
of oml_pth_market1501 features="$dumps/oml_inference_cache.pth" dataset=market1501 data_root="$data"
of stored features="$gallery" queries="$query"
of stored_market1501 features="$gallery" queries="$query" dataset=market1501 data_root="$data"
