#!/usr/bin/env bash
# What cuts are worth on this machine, in every engine: the tables of docs/speed.md.
#
#     bash speed.sh                      depth 50, standard
#     bash speed.sh --depth 20           another network; flags that all stages take
#
# The networks are hardly trained: that changes nothing but their accuracy. Call it again at any time:
# finished networks are kept. ROUND_TO is the multiple of widths (16); BENCH more flags of benchmark.py.
# Torch-Pruning is compared if it is installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;; esac
source "$here/setup.sh"
setup requirements.txt requirements-deploy.txt

name=${*:---depth 50} work=speed/${name//[^[:alnum:]_]/}
python "$here/main.py" --depth 50 --dataset synthetic "$@" \
    --train-images 64 --batch-size 32 --epochs 1 --save "$work/dense" >/dev/null
networks=("$work/dense")
cut() { # cut NAME FLAG...
    python "$here/res50prune.py" --model "$work/dense" --no-eval "${@:2}" --save "$work/$1" >/dev/null
    networks+=("$work/$1")
}
for ratio in 0.3 0.6 0.9; do cut "l1-$ratio" --ratio "$ratio"; done
for share in 0.5 0.25 0.125; do
    cut "macs-$share" --target-macs "$share"
    cut "macs-$share-rounded" --target-macs "$share" --round-to "${ROUND_TO:-16}"
done
cut weight-0.9 --method weight --ratio 0.9
plugin=(--plugin "$here/docs/torch_pruning_plugin.py" --method tp-magnitude)
python -c "import torch_pruning" 2>/dev/null && cut torch-pruning-0.25 "${plugin[@]}" --target-macs 0.25
python "$here/benchmark.py" "${networks[@]}" --batch-size 64 ${BENCH:---engines eager compile onnxruntime openvino onnxruntime-int8 openvino-int8}
