#!/usr/bin/env bash
# The study behind docs/results.md: what pruning does to ResNets on CIFAR-100, with its controls.
#
#     bash study.sh thin       depth 20, three seeds
#     bash study.sh small      depth 26 at width 16, standard and separable
#     bash study.sh large      depth 50, standard and separable; wants a GPU
#     bash study.sh publish    figures of finished stages into docs/results; their report into report/
#
# More flags go to all stages: SEEDS="0 1" bash study.sh thin --data ~/images --threads 2. It can
# be stopped and called again at any time; the variables of run.sh change the grid.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
part=${1:---help}
[ $# = 0 ] || shift
methods="l1, soft --schedule asymptotic, weight, l1 --criterion random"
train="--lr 0.2 --label-smoothing 0 --compile" tune="--label-smoothing 0 --compile"
case $part in
    thin) networks=("--depth 20") epochs=32 tune_epochs=10 seeds="0 1 2" ;;
    small)
        networks=("--depth 26 --width 16" "--depth 26 --width 16 --arch resnet_de")
        epochs=20 tune_epochs=5 seeds="0 1" ;;
    large)
        networks=("--depth 50" "--depth 50 --arch resnet_de") epochs=200 tune_epochs=40 seeds=0
        train="--lr 0.2 --batch-size 256 --compile" tune="--batch-size 256 --compile"
        # PruningBench's three sizes: 2, 4 and 8 times fewer MACs, the residual sum cut too.
        for share in 0.5 0.25 0.125; do methods+=", l1 --scope all --target-macs $share"; done ;;
    publish)
        source "$here/setup.sh"
        setup requirements.txt
        (cd runs/cifar100 && find . \( -name result.json -o -name metrics.jsonl -o -name benchmark.json \) \
            -exec cp --parents {} "$here/docs/results" \;)
        exec python "$here/report.py" "$here/docs/results" --save report ;;
    *) sed -n "2,/^set/s/^# \{0,1\}//p" "$0"; [[ $part == -h || $part == --help ]] || exit 2; exit ;;
esac
export METHODS=${METHODS:-$methods} CONTROLS=${CONTROLS:-1}
export EPOCHS=${EPOCHS:-$epochs} TUNE_EPOCHS=${TUNE_EPOCHS:-$tune_epochs}
export TRAIN="$train ${TRAIN:-}" TUNE="$tune ${TUNE:-}"
export BENCH=${BENCH:---engines eager fused compile --profile}
for seed in ${SEEDS:-$seeds}; do
    for network in "${networks[@]}"; do
        bash "$here/run.sh" --dataset cifar100 --seed "$seed" $network "$@"
    done
done
