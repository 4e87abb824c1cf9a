#!/usr/bin/env bash
# The whole chain for one network: train, prune, fine-tune, measure, report.
#
#     bash run.sh                                    a demo on generated images, a few minutes
#     bash run.sh --dataset cifar100 --depth 50      the real thing; flags that all stages take
#     METHODS="l1, soft, weight --gradual" RATIOS="0.5 0.7" EPOCHS=30 TUNE_EPOCHS=10 bash run.sh
#     METHODS="l1, soft" TARGETS="0.5 0.25" ONE_TRAINING=1 CONTROLS=1 bash run.sh
#
# METHODS are separated by commas and may carry flags of res50prune.py; those that do not say how
# much to prune run at each of RATIOS or of TARGETS (shares of the MACs to keep). ONE_TRAINING=1 prunes
# while the network trains, not afterwards. CONTROLS=1 adds the shapes that the first method left,
# trained from scratch, and (not with ONE_TRAINING) the dense network trained longer. TRAIN, TUNE and
# BENCH are more flags of main.py, finetune.py and benchmark.py. Call it again at any time: finished
# stages are skipped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;; esac
case " $* " in *" --save"[\ =]*) echo "run.sh: the folders are fixed; leave --save out" >&2; exit 2 ;; esac
fail() { echo "run.sh: $1" >&2; exit 2; }
[ -z "${RATIOS:-}" ] || [ -z "${TARGETS:-}" ] || fail "RATIOS or TARGETS, not both"
source "$here/setup.sh"
check_variables
setup requirements.txt

epochs=100 tune_epochs=40
case " $* " in
    *" --dataset synthetic "* | *" --dataset=synthetic "*) epochs=8 tune_epochs=4 ;;
    *" --dataset "* | *" --dataset="*) ;;
    *) set -- --dataset synthetic --depth 20 "$@"; epochs=8 tune_epochs=4 ;;
esac
train="--epochs ${EPOCHS:=$epochs} ${TRAIN:-}" tune="--epochs ${TUNE_EPOCHS:=$tune_epochs} ${TUNE:-}"
ways=() first= # ways to prune, as flags; how many of them are the first method's
amount=--ratio amounts=${RATIOS:-0.3 0.6 0.9}
[ -z "${TARGETS:-}" ] || amount=--target-macs amounts=${TARGETS//,/ }
: "${METHODS:=l1}"
IFS=, read -ra methods <<<"${METHODS//, /,}"
for method in "${methods[@]}"; do
    [ -n "${method// /}" ] || continue
    case $method in
        *--ratio* | *--target* | *--pattern*) ways+=("--method $method") ;;
        *) case "$amount $method" in --target-macs\ weight* | --target-macs\ unstructured*)
                fail "$method leaves the MACs of TARGETS; give it a --ratio" ;;
            esac
            for value in $amounts; do ways+=("--method $method $amount $value"); done ;;
    esac
    : "${first:=${#ways[@]}}"
done
[ ${#ways[@]} != 0 ] || fail "METHODS, RATIOS and TARGETS leave nothing to prune"
machine=() # flags that benchmark.py takes, too
for ((i = 1; i <= $#; i++)); do
    case ${!i} in --device=* | --threads=* | --precision=*) machine+=("${!i}") ;; esac
    case ${!i} in --device | --threads | --precision) machine+=("${@:i:2}") ;; esac
done
once=${ONE_TRAINING:-0}
[ "${CONTROLS:-}" = 1 ] && controls=$((1 - once + first)) || controls=0
number=0 total=$((3 + (2 - once) * ${#ways[@]} + controls))

title() { echo "[$((++number))/$total] ${1//--/}" >&2; }
stage() { # stage TITLE SCRIPT FLAG...; leaves the path of what it wrote in $checkpoint
    local result
    title "$1"
    result=$(python "$here/$2" "${@:3}")
    checkpoint=${result#*\"checkpoint\": \"} checkpoint=${checkpoint%%\"*}
}

stage "train" main.py "$@" $train
dense=$checkpoint networks=()
for way in "${ways[@]}"; do
    if [ $once = 1 ]; then
        stage "train and prune $way" main.py "$@" $way $train
    else
        stage "prune $way" res50prune.py "$@" $way
        stage "fine-tune $way" finetune.py "$@" $way $tune
    fi
    networks+=("$checkpoint")
done
if [ $controls != 0 ]; then
    [ $once = 1 ] || stage "train longer" finetune.py "$@" --refine "$dense" $tune
    epochs=$((EPOCHS + (1 - once) * TUNE_EPOCHS))
    for like in "${networks[@]:0:first}"; do
        stage "from scratch" main.py "$@" --like "$like" $train --epochs $epochs
    done
fi
seed=$(dirname "$(dirname "$dense")")
stage "measure" benchmark.py "$seed"/* ${machine[@]+"${machine[@]}"} ${BENCH:-}
title "report"
python "$here/report.py" "$(dirname "$seed")"
