#!/usr/bin/env bash
# Make the golden runs of schema 2 in the folder OUT, from the top of the repository:
#     PYTHON=/path/to/python bash tests/goldens/scripts/make_schema2.sh OUT
# OUT gets runs/SYSTEM and weights.safetensors; the data are those of tests/goldens/data.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=tests/goldens/data
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=${PYTHON:-python}
export NPROC=16 JAX_PLATFORMS=cpu

train() { # SYSTEM OPTION...
    "$python" -m jaxdet train "$1" --out "$out/runs/$1" --overwrite --quiet --devices 1 "${@:2}"
}

[ -f "$out/weights.safetensors" ] || PYTHONPATH=. "$python" "$here/make_data.py" --weights "$out/weights.safetensors"

train digits --canvas 56 --layout c6s4,p2 --channels 6 --fc-widths 8 --window 40 \
    --mask-loss-by truth --window-selection merge --best joint --epochs 3 --batch 128 \
    --eval-batch 100 --lr 1e-2 --ema .9

export XLA_FLAGS=--xla_force_host_platform_device_count=4
train objects --root $data/objects --size 64 --val-fraction .2 --test-fraction .2 --split-seed 2 \
    --model simple --dropout-scale .5 --box-loss giou --epochs 1 --batch 4 --eval-batch 8 \
    --devices 4 --optimizer sgd --lr 1e-2 --schedule piecewise --ema 0
unset XLA_FLAGS

train detect --root $data/detect --weights "$out/weights.safetensors" --model resnet18 \
    --freeze-stages 5 --freeze-bn --neck-channels 4 --neck pan --background objectness \
    --reg-max 4 --size 64 96 --max-boxes 6 --val-fraction .25 --on-invalid skip --assigner tal \
    --topk 5 --score-threshold .02 --max-detections 20 --nms-type linear --epochs 1 --batch 4 \
    --eval-batch 4 --close-mosaic-epochs 0 --lr 2e-2 --ema .8

train cifar10 --root $data/cifar10 --val-fraction .25 --model tutorial --channels 3 4 --fc-widths 8 \
    --norm --activation gelu --dropout .1 --tta --epochs 2 --batch 8 --eval-batch 6 --lr 2e-2 \
    --schedule plateau --accumulate 2 --ema .5

train faces --root $data/faces --identities 3 --val-fraction .2 --test-fraction .2 --size 32 \
    --model resnet18 --width-multiplier .1 --backbone-stages 2 --embedding-dim 8 --head arcface \
    --logit-scale 16 --margin .3 --embedding-loss triplet_hard --samples-per-class 2 --epochs 1 \
    --batch 4 --eval-batch 6 --lr 1e-2 --schedule restarts --restart-period 1 --ema .5
