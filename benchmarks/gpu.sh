#!/usr/bin/env bash
# Run all that needs a GPU, in one call under nine minutes: the tests marked `gpu`, then the figures.
#
#     STYLEAUG_WEIGHTS=../shared/weights benchmarks/gpu.sh [FOLDER]
#     benchmarks/gpu.sh --dry-run [FOLDER]      tiny sizes on the CPU, to see that everything runs
#
# FOLDER (runs/gpu) gets a log of each part, the figures as JSON and tables, and summary.txt, which says what
# failed. A part that takes too long is ended and counts as failed; the others run all the same. Exit 1 if any
# failed, 2 if there is no GPU. Without STYLEAUG_WEIGHTS the reference AdaIN is left out.
set -uo pipefail
[ "${1:-}" = --dry-run ] && { dry=1; shift; } || dry=
mkdir -p "${1:-runs/gpu}" || exit 2
folder=$(realpath "${1:-runs/gpu}")
python=$(realpath -s "${PYTHON:-python3}")
[ -z "${STYLEAUG_WEIGHTS:-}" ] || export STYLEAUG_WEIGHTS=$(realpath "$STYLEAUG_WEIGHTS")
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} NO_ALBUMENTATIONS_UPDATE=1

if [ -z "$dry" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "torch finds no GPU; see that everything runs with benchmarks/gpu.sh --dry-run" >&2
  exit 2
fi
device=cuda small=()
[ -z "$dry" ] || device=cpu small=(--quick)
failed=0
: > "$folder/summary.txt"

part() { # part NAME SECONDS COMMAND...: run a part, keep its output, and say how it went
  local name=$1 most=$2 began=$SECONDS code
  shift 2
  [ -z "$dry" ] || most=0 # no limit: a busy CPU is no failure
  timeout --kill-after=10 "$most" "$@" > "$folder/$name.log" 2>&1
  code=$?
  case $code in
    0) told=ok ;;
    124 | 137) told="FAILED: not done after $most s" ;;
    *) told="FAILED with exit $code: $(tail -n 1 "$folder/$name.log")" ;;
  esac
  [ "$code" = 0 ] || failed=1
  echo "$name, $((SECONDS - began)) s: $told" | tee -a "$folder/summary.txt"
}

mapfile -t marked < <(grep -l 'mark\.gpu' tests/*.py)
[ -z "$dry" ] || marked=("${marked[0]}") # without a GPU all are skipped
part tests 210 "$python" -m pytest -q -m gpu -p no:cacheprovider -rs "${marked[@]}"
part throughput 150 "$python" benchmarks/gpu.py --device $device "${small[@]}" --out "$folder/gpu.json"
part cost 150 "$python" benchmarks/cost.py --parts memory step --device $device "${small[@]}" --out "$folder/cost.json"
if [ -z "$dry" ] && grep -q skipped "$folder/tests.log"; then
  echo "tests: some were skipped, see tests.log" | tee -a "$folder/summary.txt"
fi
exit $failed
