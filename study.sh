#!/usr/bin/env bash
# The study behind docs/results.md: what pruning does to ResNets on CIFAR-100, with its controls.
#
#     bash study.sh thin       depth 20, three seeds
#     bash study.sh small      depth 26 at width 16, standard and separable
#     bash study.sh large      depth 50, standard and separable; wants a GPU
#     bash study.sh publish    what is finished, into docs/results, docs/results.md and README.md
#
# More flags go to all stages: SEEDS="0 1" bash study.sh thin --data ~/images --threads 2. It can
# be stopped and called again at any time; the variables of run.sh change the grid.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
part=${1:-help}
[ $# -eq 0 ] || shift

export METHODS=${METHODS:-l1, soft, weight, l1 --criterion random} SCRATCH=${SCRATCH-1}
export RATIOS=${RATIOS:-0.3 0.6 0.9} BENCH=${BENCH:---engines eager fused compile --profile}
grid() {  # grid EPOCHS TUNE_EPOCHS SEEDS FLAGS...: networks x methods x ratios x seeds
    local seed network
    export EPOCHS=${EPOCHS:-$1} TUNE_EPOCHS=${TUNE_EPOCHS:-$2}
    for seed in ${SEEDS:-$3}; do
        for network in "${networks[@]}"; do
            bash "$here/run.sh" --dataset cifar100 --seed "$seed" $network "${@:4}"
        done
    done
}
case $part in
    thin | small)
        train="--lr 0.2 --label-smoothing 0 --compile" tune="--label-smoothing 0 --compile" ;;
    large)
        train="--lr 0.2 --batch-size 256 --compile" tune="--batch-size 256 --compile" ;;
esac
export TRAIN="${train:-} ${TRAIN:-}" TUNE="${tune:-} ${TUNE:-}"
case $part in
    thin)
        networks=("--depth 20")
        grid 32 10 "0 1 2" "$@" ;;
    small)
        networks=("--depth 26 --width 16" "--depth 26 --width 16 --arch resnet_de")
        grid 20 10 "0 1" "$@" ;;
    large)
        networks=("--depth 50" "--depth 50 --arch resnet_de")
        grid 200 40 0 "$@"
        # PruningBench's three sizes: 2, 4 and 8 times fewer MACs, the residual stream cut too.
        cut="l1 --scope all --target-macs"
        METHODS="$cut 0.5, $cut 0.25, $cut 0.125" SCRATCH="" grid 200 40 0 "$@" ;;
    publish)
        if [ ! -d runs/cifar100 ]; then
            echo "study.sh: nothing to publish: no runs/cifar100 in this folder" >&2
            exit 1
        fi
        results=$here/docs/results
        mkdir -p "$results"
        find runs/cifar100 \( -name '*.json' -o -name '*.jsonl' \) -print0 |
            tar --null -T - -c | tar -x --strip-components 2 -C "$results"
        source "$here/setup.sh"
        setup requirements.txt
        python "$here/report.py" "$results" --save "$results" --published "$here/docs/published.json" \
            --write "$here/README.md" "$here/docs/results.md" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
