#!/usr/bin/env bash
# What cuts are worth on this machine, in every engine, and how fast networks train: docs/speed.md.
#
#     bash speed.sh                              depth 50, standard
#     ROUND_TO=1 bash speed.sh --depth 26        another network; flags of main.py
#     bash speed.sh train --depth 20             training: images per second
#
# The networks are hardly trained. Call it again at any time: finished ones are kept, and timed anew.
# With ROUND_TO each target is also cut to widths that are multiples of that. BENCH are flags of
# benchmark.py, OMP_NUM_THREADS is a number of threads. Torch-Pruning is compared if it is installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;; esac
fail() { echo "speed.sh: error: $1" >&2; exit 2; }
part=inference
case ${1:-} in
    train) part=train; shift ;;
    -* | "") ;;
    *) fail "$1: neither train nor a flag of main.py" ;;
esac
[[ ${ROUND_TO:-1} =~ ^[1-9][0-9]*$ ]] || fail "ROUND_TO=$ROUND_TO is no number from 1 on"
source "$here/setup.sh"
setup requirements.txt requirements-deploy.txt
bench=${BENCH:---engines eager compile onnxruntime openvino onnxruntime-int8 openvino-int8}
name=${*:---depth 50} work=speed/${name//[^[:alnum:]_]/}
images="--train-images 64"
# Wrong flags (code 2) are told now, not after minutes.
[ $part = train ] || told=$(python "$here/benchmark.py" "$work/none" --batch-size 64 $bench 2>&1) || [ $? = 1 ] ||
    { echo "$told" >&2; exit 2; }
dense=("$here/main.py" --depth 50 --dataset synthetic "$@" $images --batch-size 32 --epochs 1)
python "${dense[@]}" --save "$work/dense" >/dev/null
networks=("$work/dense")
prune() { # prune NAME FLAG...; what cannot be had (code 2) is left out
    local code=0
    python "$here/res50prune.py" --model "$work/dense" $images --no-eval "${@:2}" \
        --save "$work/$1" >/dev/null || code=$?
    case $code in
        0) networks+=("$work/$1") ;;
        2) echo "left out: $1" >&2 ;;
        *) exit $code ;;
    esac
}
if [ $part = inference ]; then
    for ratio in 0.3 0.6 0.9; do prune "l1-$ratio" --ratio "$ratio"; done
fi
for share in 0.5 0.25 0.125; do
    prune "macs-$share" --target-macs "$share"
    [ $part = train ] || [ -z "${ROUND_TO:-}" ] ||
        prune "macs-$share-by$ROUND_TO" --target-macs "$share" --round-to "$ROUND_TO"
done
if [ $part = inference ]; then
    prune weight-0.9 --method weight --ratio 0.9
    plugin=(--plugin "$here/docs/torch_pruning_plugin.py" --method tp-magnitude)
    if python -c "import torch_pruning" 2>/dev/null; then
        prune torch-pruning-0.25 "${plugin[@]}" --target-macs 0.25
    fi
    python "$here/benchmark.py" "${networks[@]}" --batch-size 64 $bench >/dev/null
    exec python "$here/report.py" "$work" --title "What a cut is worth"
fi

train() { # train NAME FLAG...: images per second of two epochs, of which the first compiles
    local folder=$work-train/$1
    python "$here/main.py" --dataset synthetic "${@:2}" --train-images 1280 --batch-size 128 --epochs 2 \
        --eval-every 2 --force --save "$folder" >/dev/null
    sed 's/.*"epoch": \([0-9]*\).*"images_per_second": \([0-9]*\.[0-9]\).*/training '"$1"', epoch \1: \2 images\/s/' \
        "$folder/metrics.jsonl"
}
python "$here/docs/plain_training.py" --depth 50 "$@"
train fp32 --depth 50 "$@" --precision fp32
train auto --depth 50 "$@"
train compile --depth 50 "$@" --compile
for network in "${networks[@]:1}"; do train "${network##*/}" --like "$network" --compile; done
