#!/usr/bin/env bash
# Train `adain` on with what the processors have left, and say how far it is. Safe to call again at any time.
#
#     STYLEAUG_DATA=../shared/data STYLEAUG_WEIGHTS=../shared/weights benchmarks/train_on.sh [start|status|stop]
#
# The run and a frozen copy of the code that it runs from are in runs/adain, which git ignores, so that work
# on the checkout neither stops nor changes it. Checkpoints are written every 100 steps; `start` goes on with
# the newest one. STYLEAUG_IDLE names a command that runs another at idle priority; without it `nice` does.
# Held out, as everywhere: the twentieth of each folder that `is_held_out` names. The unseen domains of
# `evidence.py` (PACS other than photos, TECOM, CellaVision) are not trained on.
set -euo pipefail
cd "$(dirname "$0")/.."
run=runs/adain
steps=${STEPS:-75000} batch=8
data=$(realpath "${STYLEAUG_DATA:?names the folder of images}")
weights=$(realpath "${STYLEAUG_WEIGHTS:?names the folder of loss networks}")
python=$(realpath -s "${PYTHON:-.venv/bin/python}")

alive() { [ -f "$run/pid" ] && kill -0 "$(cat "$run/pid")" 2>/dev/null; }

lists() { # CSV lists of contents and styles; a class is drawn as often as any other
  "$python" - "$data" "$run" <<'PY'
import csv, sys
from pathlib import Path

data, run = map(Path, sys.argv[1:])
CONTENTS = {
    "bsds": ["content/bsds500"], "imagenet": ["content/imagenet_eli", "content/imagenet_ajs"],
    "objects": ["content/caltech101"], "photo": ["pacs/photo"], "cells": ["wbc/pbc"],
    "tissue": ["colon/site_a"], "uav": ["crack/uav"],
}
STYLES = {
    "paintings": ["style/artwall_cc0"], "repos": ["style/style_repos"], "repos2": ["style/style_repos"],
    "textures": ["style/dtd10"], "scrolls": ["style/kaokore"], "photos": ["content/imagenet_eli"],
    "cells": ["wbc/pbc", "wbc/bccd"], "tissue": ["colon/site_a"], "nuclei": ["nuclei"],
    "roads": ["crack"], "procedural": [str(run / "textures")],
}
SUFFIXES = {".jpg", ".jpeg", ".png"}
for name, kinds in (("contents", CONTENTS), ("styles", STYLES)):
    with (run / f"{name}.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["path", "class", "key"])
        for kind, folders in kinds.items():
            for folder in folders:
                root = (data / folder).resolve() if not folder.startswith("runs") else Path(folder).resolve()
                files = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in SUFFIXES]
                files = [p for p in files if "mask" not in str(p.relative_to(root)).lower()]
                if not files:
                    sys.exit(f"no images in {root}")
                out.writerows([p, kind, f"{kind}/{p.relative_to(root)}"] for p in files)
PY
}

start() {
  alive && { echo "already running, process $(cat "$run/pid")"; return; }
  mkdir -p "$run"
  if [ ! -d "$run/code" ]; then
    mkdir "$run/code.part"
    git archive HEAD styleaug pretrained | tar -x -C "$run/code.part"
    mv "$run/code.part" "$run/code"
  fi
  export PYTHONPATH="$PWD/$run/code" OMP_NUM_THREADS=1
  [ -d "$run/textures" ] || "$python" -P -m pretrained.textures "$run/textures"
  lists
  local go=(--resume)
  [ -d "$run/run/checkpoints" ] || go=(--init adain --steps "$steps" --batch "$batch" --size 128 --schedule linear
    --learning-rate 1e-3 --edge-weight 1.0 --style-crops 3 --save-every 100 --score-every 1000
    --networks "$weights" --precision "${PRECISION:-bf16-mixed}")
  "$python" -c 'import torch' # fails here rather than in the background
  ${STYLEAUG_IDLE:-nice -n 19} "$python" -P -m styleaug train adain "$run/contents.csv" "$run/styles.csv" \
    -o "$run/run" "${go[@]}" --networks "$weights" >>"$run/train.log" 2>&1 &
  echo $! >"$run/pid"
  echo "started, process $!"
}

status() {
  alive && echo "running, process $(cat "$run/pid")" || echo "not running"
  [ -f "$run/run/log.jsonl" ] || { echo "no step yet"; return; }
  "$python" - "$run/run/log.jsonl" "$batch" <<'PY'
import json, sys

lines = [json.loads(line) for line in open(sys.argv[1])]
steps = [line for line in lines if "images_per_second" in line]
if steps:
    last, speed = steps[-1], sorted(line["images_per_second"] for line in steps[-200:])
    done = last["step"] * int(sys.argv[2])
    print(f"step {last['step']:,}, {done:,} images, {speed[len(speed) // 2]:.1f} images/s; losses:", end=" ")
    print(", ".join(f"{k} {v:.3f}" for k, v in last.items() if isinstance(v, float)))
for line in [line for line in lines if "score" in line][-3:]:
    print("scores:", line)
PY
}

case ${1:-start} in
  start) start; status ;;
  status) status ;;
  stop) alive && kill -TERM "$(cat "$run/pid")" && echo "asked to stop after its step" ;;
  *) echo "usage: $0 [start|status|stop]" >&2; exit 2 ;;
esac
