#!/usr/bin/env bash
# The whole study for one network: train, prune at several ratios, fine-tune, measure.
#
#     bash run.sh                                    a few minutes on generated images
#     bash run.sh --dataset cifar100 --depth 50      the real thing; flags that all stages take
#     RATIOS="0.5 0.7" EPOCHS=30 TUNE_EPOCHS=10 bash run.sh --dataset cifar100 --depth 20
#
# Finished stages are skipped and interrupted ones go on, so it can be called again at any time.
set -euo pipefail
case " $* " in
    *" -h "* | *" --help "*) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *" --epochs"* | *" --save"*) echo "run.sh: set EPOCHS and TUNE_EPOCHS; folders are fixed" >&2; exit 2 ;;
esac
source "$(dirname "$0")/setup.sh"
setup requirements.txt

[ $# -gt 0 ] || set -- --dataset synthetic --depth 20
case " $* " in
    *synthetic*) : "${EPOCHS:=8}" "${TUNE_EPOCHS:=4}" ;;
    *) : "${EPOCHS:=100}" "${TUNE_EPOCHS:=40}" ;;
esac
# A flag that only a later stage refuses should not cost a training first.
PYTHONPATH=$here python -c 'import finetune, main, res50prune
for script in (main, res50prune, finetune): script.build_parser().parse_args()' "$@"

networks=()
stage() {
    local result
    result=$(python "$here/$1" "${@:2}")
    networks+=("$(python -c 'import json, sys; print(json.load(sys.stdin)["checkpoint"])' <<<"$result")")
}
stage main.py "$@" --epochs "$EPOCHS"
for ratio in ${RATIOS:-0.3 0.6 0.9}; do
    stage res50prune.py "$@" --method l1 --ratio "$ratio"
    stage finetune.py "$@" --method l1 --ratio "$ratio" --epochs "$TUNE_EPOCHS"
done
python "$here/benchmark.py" "${networks[@]}"
