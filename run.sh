#!/usr/bin/env bash
# The whole study for one network: train, prune at several ratios, fine-tune, measure.
#
#     bash run.sh                                    a few minutes on generated images
#     bash run.sh --dataset cifar100 --depth 50      the real thing; flags that all stages take
#     RATIOS="0.5 0.7" EPOCHS=30 TUNE_EPOCHS=10 bash run.sh --dataset cifar100 --depth 20
#
# Finished stages are skipped and interrupted ones go on, so it can be called again at any time.
cd "$(dirname "$0")"
source ./setup.sh
setup requirements.txt

[ $# -gt 0 ] || set -- --dataset synthetic --depth 20
case " $* " in
    *synthetic*) : "${EPOCHS:=8}" "${TUNE_EPOCHS:=4}" ;;
    *) : "${EPOCHS:=100}" "${TUNE_EPOCHS:=40}" ;;
esac
networks=()
# Prints the checkpoint of a stage; its own output stays visible above.
stage() {
    local result
    result=$(python "$@")
    networks+=("$(jq_checkpoint <<<"$result")")
}
jq_checkpoint() { python -c 'import json, sys; print(json.load(sys.stdin)["checkpoint"])'; }

stage main.py "$@" --epochs "$EPOCHS"
for ratio in ${RATIOS:-0.3 0.6 0.9}; do
    stage res50prune.py "$@" --method l1 --ratio "$ratio"
    stage finetune.py "$@" --method l1 --ratio "$ratio" --epochs "$TUNE_EPOCHS"
done
python benchmark.py "${networks[@]}"
