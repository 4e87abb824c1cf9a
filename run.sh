#!/usr/bin/env bash
# The whole way for one network: train, prune in several ways, fine-tune, measure, report.
#
#     bash run.sh                                    a few minutes on generated images
#     bash run.sh --dataset cifar100 --depth 50      the real thing; flags that all stages take
#     METHODS="l1, soft" RATIOS="0.5 0.7" EPOCHS=30 TUNE_EPOCHS=10 bash run.sh --depth 20
#     METHODS="l1, l1 --criterion random, weight --pattern 2:4" CONTROLS=1 bash run.sh --depth 56
#
# METHODS, with commas between, may carry flags of res50prune.py; those that do not say how much
# to prune are run at each of RATIOS. CONTROLS=1 also trains, for as many epochs as the pruned
# networks in all, the dense network further, and what the first way cut from scratch. TRAIN, TUNE
# and BENCH are more flags of main.py, finetune.py and benchmark.py. Finished stages are skipped,
# interrupted ones go on, and all networks are timed again when one of them or a flag is new: call
# it again at any time. All goes into runs/ below the current folder; another grid with other
# epochs wants another one.
set -euo pipefail
case " $* " in
    *" -h "* | *" --help "*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
source "$(dirname "$0")/setup.sh"
setup requirements.txt

[ $# -gt 0 ] || set -- --dataset synthetic --depth 20
case " $* " in
    *"--dataset synthetic "* | *"--dataset=synthetic "*) : "${EPOCHS:=8}" "${TUNE_EPOCHS:=4}" ;;
    *) : "${EPOCHS:=100}" "${TUNE_EPOCHS:=40}" ;;
esac
: "${METHODS:=l1}" "${RATIOS:=0.3 0.6 0.9}" "${CONTROLS:=}" "${BENCH:=}"
wants() { echo "run.sh: $*" >&2; exit 2; }
[[ $EPOCHS,$TUNE_EPOCHS =~ ^[1-9][0-9]*,[1-9][0-9]*$ ]] || wants "EPOCHS and TUNE_EPOCHS want a number"
[[ " $* $METHODS ${TRAIN:-} ${TUNE:-} " != *" --epochs"[\ =]* ]] ||
    wants "set EPOCHS and TUNE_EPOCHS instead of --epochs"
[[ $RATIOS != *,* ]] || wants "RATIOS='$RATIOS' wants blanks between, and no commas"
train="--epochs $EPOCHS ${TRAIN:-}" tune="--epochs $TUNE_EPOCHS ${TUNE:-}"
IFS=, read -ra methods <<<"${METHODS//$'\n'/ }"
ways=() controlled="" # of pruning, as flags; how many of them are the first method's
for method in "${methods[@]}"; do
    case $method in
        *--ratio* | *--target* | *--pattern*) ways+=("--method $method") ;;
        *) for ratio in $RATIOS; do ways+=("--method $method --ratio $ratio"); done ;;
    esac
    : "${controlled:=${#ways[@]}}"
done

# A flag that a later stage would refuse should not cost a training first.
machine_flags=$(CONTROLS=$CONTROLS python - "$here" "$train" "$tune" "$BENCH" "${#ways[@]}" "${ways[@]}" "$@" <<'PY'
import sys

sys.path[0] = sys.argv.pop(1)  # instead of the current folder, whose modules are somebody else's
import signal
from os import environ

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while torch is imported
import benchmark, finetune, main, res50prune
from pruning import options
from utils.exports import MissingPackage, require

sys.argv[0] = "run.sh"
train, tune, bench, count, *rest = sys.argv[1:]
ways, flags = rest[: int(count)], rest[int(count) :]
parser = main.build_parser()
if not ways or environ["CONTROLS"] not in ("", "0", "1"):
    parser.error("METHODS and RATIOS want at least one word, CONTROLS 0 or 1")
args = parser.parse_args(flags)
if options.any_given(args):
    parser.error("set METHODS and RATIOS instead of pruning flags")
calls = [parser.parse_args(flags + train.split())]
for way in ways:
    calls.append(res50prune.build_parser().parse_args(flags + way.split()))
    calls.append(finetune.build_parser().parse_args(flags + way.split() + tune.split()))
    try:
        tags = {options.tag(call) for call in calls[-2:]}
    except ValueError as error:
        parser.error(str(error))
    if len(tags) > 1:
        parser.error(f"TUNE={tune!r} prunes otherwise than METHODS and RATIOS: {way}")
if any(getattr(c, key, None) for c in calls for key in ("save", "like", "model", "refine")):
    parser.error("the folders are fixed: leave --save, --like, --model and --refine out")
for key in ("dataset", "image_size", "arch", "depth", "width", "shortcut", "seed"):
    if any(getattr(call, key) != getattr(args, key) for call in calls):
        parser.error(f"--{key.replace('_', '-')} is for all stages: give it to run.sh itself")
engines = benchmark.build_parser().parse_args(["checkpoint", *bench.split()]).engines
try:
    for engine in engines:
        require(*benchmark.ENGINES[engine].needs)
except MissingPackage as error:
    sys.exit(f"run.sh: error: {error}")
print("--device", args.device, "--precision", args.precision, end=" ")
print("--threads", args.threads) if args.threads else print()
PY
)
stage() {  # stage SCRIPT FLAG...: run it, and tell where its checkpoint is
    local result
    result=$(python "$here/$1" "${@:2}") || return
    python -I -c 'import json, sys; print(json.load(sys.stdin)["checkpoint"])' <<<"$result"
}
dense=$(stage main.py "$@" $train)
networks=("$dense")
for way in "${ways[@]}"; do
    python "$here/res50prune.py" "$@" $way >/dev/null
    tuned=$(stage finetune.py "$@" $way $tune)
    networks+=("$tuned")
done
if [ "$CONTROLS" = 1 ]; then
    further=$(stage finetune.py "$@" --refine "$dense" $tune)
    networks+=("$further")
    for tuned in "${networks[@]:1:controlled}"; do
        control=$(stage main.py "$@" --like "$tuned" $train --epochs $((EPOCHS + TUNE_EPOCHS)))
        networks+=("$control")
    done
fi
seed=$(dirname "$(dirname "$dense")")
what_is_timed() {
    echo "$machine_flags $BENCH"
    cksum "${networks[@]}" "${networks[@]/%model.pt/benchmark.json}" 2>/dev/null || true
}
timed=$seed/.timed # hidden, since benchmark.py $seed/* is for networks
if [ "$(what_is_timed)" != "$(cat "$timed" 2>/dev/null)" ]; then
    python "$here/benchmark.py" $machine_flags "${networks[@]}" $BENCH >/dev/null
    what_is_timed >"$timed"
fi
python "$here/report.py" "$(dirname "$seed")" --published "$here/docs/published.json"
