#!/usr/bin/env bash
# The whole way for one network: train, prune at several ratios, fine-tune, measure, report.
#
#     bash run.sh                                    a few minutes on generated images
#     bash run.sh --dataset cifar100 --depth 50      the real thing; flags that all stages take
#     METHODS="l1 soft" RATIOS="0.5 0.7" EPOCHS=30 TUNE_EPOCHS=10 bash run.sh --depth 20
#
# Finished stages are skipped and interrupted ones go on, so it can be called again at any time.
set -euo pipefail
case " $* " in
    *" -h "* | *" --help "*) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
source "$(dirname "$0")/setup.sh"
setup requirements.txt

[ $# -gt 0 ] || set -- --dataset synthetic --depth 20
case " $* " in
    *synthetic*) : "${EPOCHS:=8}" "${TUNE_EPOCHS:=4}" ;;
    *) : "${EPOCHS:=100}" "${TUNE_EPOCHS:=40}" ;;
esac
# A flag that a later stage would refuse should not cost a training first.
machine_flags=$(PYTHONPATH=$here python - "$@" <<'PY'
import sys
import finetune, main, res50prune
from pruning import options

for script in (main, res50prune, finetune):
    args = script.build_parser().parse_args()
if args.epochs or args.save or options.any_given(args):
    sys.exit("run.sh: set METHODS, RATIOS, EPOCHS and TUNE_EPOCHS instead; folders are fixed")
print("--device", args.device, "--precision", args.precision, end=" ")
print("--threads", args.threads) if args.threads else print()
PY
)
networks=()
stage() {
    local result
    result=$(python "$here/$1" "${@:2}")
    networks+=("$(python -c 'import json, sys; print(json.load(sys.stdin)["checkpoint"])' <<<"$result")")
}
stage main.py "$@" --epochs "$EPOCHS"
for method in ${METHODS:-l1}; do
    for ratio in ${RATIOS:-0.3 0.6 0.9}; do
        python "$here/res50prune.py" "$@" --method "$method" --ratio "$ratio" >/dev/null
        stage finetune.py "$@" --method "$method" --ratio "$ratio" --epochs "$TUNE_EPOCHS"
    done
done
python "$here/benchmark.py" $machine_flags "${networks[@]}" >/dev/null
seed=$(dirname "$(dirname "${networks[0]}")")
python "$here/report.py" "$(dirname "$seed")" --published "$here/docs/published.json"
