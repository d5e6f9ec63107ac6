#!/usr/bin/env bash
# Make the golden runs anew, below the folder OUT, with the jaxdet that `python` imports:
#     PYTHON=/path/to/python PYTHONPATH=/path/to/checkout bash make.sh OUT [SYSTEM ...]
# OUT gets data/, weights.safetensors and runs/SYSTEM.  Options have the names of commit 273e6dd.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
python=${PYTHON:-python}
systems=("$@")
if [ ${#systems[@]} = 0 ]; then systems=(digits objects detect cifar10 faces baseline_digits); fi
export NPROC=16 JAX_PLATFORMS=cpu

train() { # SYSTEM NAME OPTION...
    "$python" -m jaxdet.cli train "$1" --out "$out/runs/$2" --overwrite --quiet --devices 1 \
        --seed 0 "${@:3}"
}

digits() {
    train digits digits --source embedded --split-seed 3 --canvas 56 --rotate 20 --scale .8 1.2 \
        --stages c6s4,p2 --widths 8 --dense 16 12 --window 40 --gate truth --reduction mean \
        --class-weight 1.5 --box-weight 20 --box-start 1 --ramp .1 .7 --score merge --best joint \
        --epochs 2 --batch 16 --eval-batch 100 --optimizer adamw --lr 1e-2 --warmup 20 \
        --beta2 .98 --weight-decay .01 --clip 5 --ema .9 --comment golden
}

objects() {
    train objects objects --root "$out/data/objects" --size 64 --cut-val .2 --cut-test .2 \
        --train-frac .5 --split-seed 2 --model simple --learn-last 1 --dropout .5 \
        --box-loss giou --class-weight 1.5 --box-weight 3 --smoothing .05 --scale .9 1.1 \
        --shift .05 --light .1 --best accuracy --epochs 1 --no-eval-first --batch 3 \
        --eval-batch 6 --optimizer sgd --momentum .8 --lr 1e-2 --schedule piecewise --drops .4 .8 \
        --drop .3 --warmup 2 --weight-decay .01 --ema 0
}

detect() {
    train detect detect --root "$out/data/detect" --weights "$out/weights.safetensors" \
        --model resnet18 --freeze 5 --fixed-norm --backbone-lr .5 --width 4 \
        --neck pan --head yolox --bins 4 --size 64 96 --sizes .5 1 --slots 6 --cut-val .25 \
        --on-bad-row error --assigner tal --tal-from 1 --topk 5 --alpha 1 --beta 4 --positive .4 \
        --box-loss giou --classification-weight 1.5 --box-weight 4 --distance-weight 1 \
        --score .02 --nms .5 --nms-kind gaussian --most 20 --flip-down --scale .8 1.2 --shift .05 \
        --crop .7 1 --rotate 10 --light .1 --colour .1 --noise .02 --cutout 1 --photometric some \
        --mosaic .3 --mixup .1 --plain-last 1 --epochs 2 --no-eval-first --batch 2 --eval-batch 2 \
        --optimizer adamw --lr 2e-2 --warmup 2 --weight-decay .01 --clip 5 --ema .8 --best map50
}

cifar10() {
    train cifar10 cifar10 --root "$out/data/cifar10" --cut-val .25 --train-frac .8 --split-seed 4 \
        --model tutorial --widths 3 4 --dense 8 --norm --activation gelu --dropout .1 \
        --smoothing .05 --flip --crop 2 --cutout .2 --light .1 --colour .1 --mixup .2 --tta \
        --epochs 2 --batch 4 --eval-batch 6 --optimizer adamw --lr 2e-2 --schedule plateau \
        --drop .5 --drop-patience 1 --drop-on score --accumulate 2 --ema .5 --conv lax
}

faces() {
    train faces faces --root "$out/data/faces" --people 3 --cut-val .2 --cut-test .2 \
        --train-frac .9 --split-seed 5 --on-bad-row error --size 32 --model resnet18 --width .1 \
        --parts 3 --dim 8 --bnneck --dropout .1 --head arcface --scale 16 --margin .3 \
        --pull triplet_hard --pull-weight .5 --group 2 --zoom .8 1.2 --shift .05 --rotate 5 \
        --light .1 --cutout .2 --epochs 2 --batch 4 --eval-batch 6 --optimizer adamw --lr 1e-2 \
        --schedule restarts --cycle 1 --cycle-factor 2 --warmup 1 --weight-decay .01 --ema .5
}

baseline_digits() {
    train digits baseline_digits --epochs 2 --batch 16 --eval-batch 100
}

if [ ! -f "$out/weights.safetensors" ]; then
    rm -rf "$out/data"
    "$python" "$here/make_data.py" "$out/data" "$out/weights.safetensors"
fi
for system in "${systems[@]}"; do "$system"; done
