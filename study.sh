#!/usr/bin/env bash
# The study behind docs/results.md: what pruning does to ResNets on CIFAR-100, with its controls.
#
#     bash study.sh thin       depth 20: pruned in one training, and after a short one
#     bash study.sh large      depth 50: pruned in one training; wants a GPU
#     bash study.sh literal    depth 20: the recipes of the papers at 30, 60 and 90 %
#     bash study.sh small      the same for depth 26 at width 16, standard and separable
#     bash study.sh publish    figures of finished stages into docs/results; their report into report/
#
# More flags go to all stages: SEEDS="0 1" bash study.sh thin --data ~/images --threads 2. It can
# be stopped and called again at any time; the variables of run.sh, but ONE_TRAINING, change the grid.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
fail() { echo "study.sh: $1" >&2; exit 2; }
source "$here/setup.sh"
part=${1:---help}
[ $# = 0 ] || shift
networks=("--depth 20") epochs=42 tune_epochs=22 once=1 targets=
flags="--label-smoothing 0 --compile" # of every training
papers="l1, soft --schedule asymptotic, weight, l1 --criterion random"
short() { # the other order: a short dense training, then the cut; as many epochs in all
    run() { python "$here/$1" --dataset cifar100 --seed "$seed" $network "${@:2}" >/dev/null; }
    local dense=runs/cifar100/resnet20/seed$seed/short targets=${TARGETS:-}
    run main.py "$@" $TRAIN --epochs $((EPOCHS - TUNE_EPOCHS)) --save "$dense"
    for share in ${targets//,/ }; do
        run res50prune.py "$@" --model "$dense" --target-macs "$share"
        run finetune.py "$@" --target-macs "$share" $TUNE --lr 0.1 --epochs "$TUNE_EPOCHS"
    done
}
case $part in
    thin) seeds="5 6 7" methods="l1, soft" targets="0.69 0.387 0.093" ;;
    large)
        networks=("--depth 50") seeds=0 epochs=40 flags="--batch-size 256 --compile"
        methods="l1 --round-to 8" targets="0.5 0.25 0.125" ;;
    literal) seeds="0 1 2" methods=$papers once=0 epochs=32 tune_epochs=10 ;;
    small)
        networks=("--depth 26 --width 16" "--depth 26 --width 16 --arch resnet_de")
        seeds="0 1" methods=$papers once=0 epochs=20 tune_epochs=5 ;;
    publish)
        [ -d runs/cifar100 ] || fail "no runs/cifar100 here to publish; another part trains, bash study.sh thin"
        setup requirements.txt
        (cd runs/cifar100 && find . \( -name result.json -o -name metrics.jsonl -o -name benchmark.json \) \
            -exec cp --parents {} "$here/docs/results" \;)
        exec python "$here/report.py" "$here/docs/results" --save report ;;
    -h | --help) sed -n "2,/^set/s/^# \{0,1\}//p" "$0"; exit ;;
    *) fail "$part is no part of the study; see bash study.sh --help" ;;
esac
[ -n "${RATIOS:-}" ] || export TARGETS=${TARGETS:-$targets}
export METHODS=${METHODS:-$methods} CONTROLS=${CONTROLS:-1} ONE_TRAINING=$once
export EPOCHS=${EPOCHS:-$epochs} TUNE_EPOCHS=${TUNE_EPOCHS:-$tune_epochs}
check_variables
[ $part != thin ] || [ "$EPOCHS" -gt "$TUNE_EPOCHS" ] ||
    fail "EPOCHS=$EPOCHS are all epochs, and must be more than TUNE_EPOCHS=$TUNE_EPOCHS"
export TRAIN="--lr 0.2 $flags ${TRAIN:-}" TUNE="$flags ${TUNE:-}"
export BENCH=${BENCH:---engines eager fused compile --profile}
setup requirements.txt
SEEDS=${SEEDS:-$seeds}
for seed in ${SEEDS//,/ }; do
    for network in "${networks[@]}"; do
        [ $part != thin ] || short "$@"
        bash "$here/run.sh" --dataset cifar100 --seed "$seed" $network "$@"
    done
done
