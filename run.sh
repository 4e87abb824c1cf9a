#!/usr/bin/env bash
# The whole way for one network: train, prune in several ways, fine-tune, measure, report.
#
#     bash run.sh                                    a few minutes on generated images
#     bash run.sh --dataset cifar100 --depth 50      the real thing; flags that all stages take
#     METHODS="l1, soft" RATIOS="0.5 0.7" EPOCHS=30 TUNE_EPOCHS=10 bash run.sh --depth 20
#     METHODS="l1, l1 --criterion random, weight --pattern 2:4" SCRATCH=1 bash run.sh --depth 56
#
# METHODS, with commas between, may carry flags of res50prune.py; those that do not say how much
# to prune are run at each of RATIOS. SCRATCH=1 also trains what the first one cut from scratch.
# TRAIN, TUNE and BENCH are more flags of main.py, finetune.py and benchmark.py. Finished stages
# are skipped, interrupted ones go on, and all networks are timed again when one is new: call it
# again at any time.
set -euo pipefail
case " $* " in
    *" -h "* | *" --help "*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
source "$(dirname "$0")/setup.sh"
setup requirements.txt

[ $# -gt 0 ] || set -- --dataset synthetic --depth 20
case " $* " in
    *synthetic*) : "${EPOCHS:=8}" "${TUNE_EPOCHS:=4}" ;;
    *) : "${EPOCHS:=100}" "${TUNE_EPOCHS:=40}" ;;
esac
: "${METHODS:=l1}" "${RATIOS:=0.3 0.6 0.9}" "${SCRATCH:=}" "${BENCH:=}"
train="--epochs $EPOCHS ${TRAIN:-}" tune="--epochs $TUNE_EPOCHS ${TUNE:-}"
IFS=, read -ra methods <<<"$METHODS"
ways=() # of pruning, as flags
for method in "${methods[@]}"; do
    case $method in
        *--ratio* | *--target* | *--pattern*) ways+=("--method $method") ;;
        *) for ratio in $RATIOS; do ways+=("--method $method --ratio $ratio"); done ;;
    esac
done

# A flag that a later stage would refuse should not cost a training first.
machine_flags=$(PYTHONPATH=$here python - "$train" "$tune" "$BENCH" "${#ways[@]}" "${ways[@]}" "$@" <<'PY'
import sys
import benchmark, finetune, main, res50prune
from pruning import options

sys.argv[0] = "run.sh"
train, tune, bench, count, *rest = sys.argv[1:]
ways, flags = rest[: int(count)], rest[int(count) :]
args = main.build_parser().parse_args(flags)
if args.save or options.any_given(args):
    sys.exit("run.sh: set METHODS and RATIOS instead; folders are fixed")
main.build_parser().parse_args(flags + train.split())
for way in ways:
    options.tag(res50prune.build_parser().parse_args(flags + way.split()))
    finetune.build_parser().parse_args(flags + way.split() + tune.split())
benchmark.build_parser().parse_args(["checkpoint", *bench.split()])
print("--device", args.device, "--precision", args.precision, end=" ")
print("--threads", args.threads) if args.threads else print()
PY
)
stage() {  # stage SCRIPT FLAG...: run it, and tell where its checkpoint is
    python "$here/$1" "${@:2}" | python -c 'import json, sys; print(json.load(sys.stdin)["checkpoint"])'
}
dense=$(stage main.py "$@" $train)
networks=("$dense") cut=()
for way in "${ways[@]}"; do
    pruned=$(stage res50prune.py "$@" $way)
    tuned=$(stage finetune.py "$@" $way $tune)
    networks+=("$tuned")
    case $way in "--method ${methods[0]} --ratio "*) cut+=("$pruned") ;; esac
done
for pruned in ${SCRATCH:+"${cut[@]}"}; do
    control=$(stage main.py "$@" --like "$pruned" $train)
    networks+=("$control")
done
for network in "${networks[@]}"; do
    if [ ! "$(dirname "$network")/benchmark.json" -nt "$network" ]; then
        python "$here/benchmark.py" $machine_flags "${networks[@]}" $BENCH >/dev/null
        break
    fi
done
seed=$(dirname "$(dirname "$dense")")
python "$here/report.py" "$(dirname "$seed")" --published "$here/docs/published.json"
