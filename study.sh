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
usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }
case " $part $* " in
    *" -h "* | *" --help "*) usage; exit 0 ;;
esac

methods="l1, soft, weight, l1 --criterion random"
case $part in
    thin) networks=("--depth 20") epochs=32 tune_epochs=10 seeds="0 1 2" ;;
    small)
        networks=("--depth 26 --width 16" "--depth 26 --width 16 --arch resnet_de")
        epochs=20 tune_epochs=5 seeds="0 1" ;;
    large)
        networks=("--depth 50" "--depth 50 --arch resnet_de") epochs=200 tune_epochs=40 seeds=0
        # PruningBench's three sizes: 2, 4 and 8 times fewer MACs, the residual stream cut too.
        for share in 0.5 0.25 0.125; do methods+=", l1 --scope all --target-macs $share"; done ;;
    publish)
        [ $# -eq 0 ] || { echo "study.sh: publish takes no flags" >&2; exit 2; }
        source "$here/setup.sh"
        setup requirements.txt
        results=$here/docs/results
        python - "$here" runs/cifar100 "$results" <<'PY'
import sys

sys.path[0] = sys.argv[1]  # instead of the current folder, whose modules are somebody else's
import signal
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback
from reporting.publish import publish

try:
    for line in publish(*map(Path, sys.argv[2:])):
        print(f"study.sh: {line}", file=sys.stderr)
except FileNotFoundError as error:
    sys.exit(f"study.sh: nothing to publish: {error}")
except OSError as error:
    sys.exit(f"study.sh: cannot publish: {error}")
PY
        before=$(mktemp)
        trap 'rm "$before"' EXIT
        python "$here/report.py" "$results" --save "$results" --published "$here/docs/published.json" \
            --write "$here/README.md" "$here/docs/results.md"
        find "$results" -maxdepth 1 -name '*.png' ! -newer "$before" -delete # of earlier reports
        exit ;;
    *) usage >&2; exit 2 ;;
esac
case $part in
    large) train="--lr 0.2 --batch-size 256 --compile" tune="--batch-size 256 --compile" ;;
    *) train="--lr 0.2 --label-smoothing 0 --compile" tune="--label-smoothing 0 --compile" ;;
esac
export METHODS=${METHODS:-$methods} RATIOS=${RATIOS:-0.3 0.6 0.9} CONTROLS=${CONTROLS:-1}
export EPOCHS=${EPOCHS:-$epochs} TUNE_EPOCHS=${TUNE_EPOCHS:-$tune_epochs}
export TRAIN="$train ${TRAIN:-}" TUNE="$tune ${TUNE:-}"
export BENCH=${BENCH:---engines eager fused compile --profile}
read -ra seeds <<<"${SEEDS:-$seeds}"
[[ ${seeds[*]} =~ ^[0-9]+( [0-9]+)*$ ]] || {
    echo "study.sh: SEEDS='${SEEDS:-}' wants numbers with blanks between" >&2
    exit 2
}
for seed in "${seeds[@]}"; do
    for network in "${networks[@]}"; do
        bash "$here/run.sh" --dataset cifar100 --seed "$seed" $network "$@"
    done
done
