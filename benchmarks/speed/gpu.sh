#!/usr/bin/env bash
# All checks that need a GPU, in under eight minutes, and one table of what came out.
#
#   bash benchmarks/speed/gpu.sh [FOLDER]            logs and figures go to FOLDER (default: gpu-checks)
#   bash benchmarks/speed/gpu.sh FOLDER STEP...      these steps alone: tests, speed, fold, encoder, predict, folds
#
# The last, which runs only when it is named, is six folds of three members of 80 epochs, in up to 6 minutes.
#
# It takes pytest and what ser_ray itself takes. Each step ends by a timeout, and none keeps the next one from running.
# Without a GPU every step says so, and nothing runs.
set -uo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-gpu-checks}
steps=" ${*:2} "
[ $# -gt 1 ] || steps=" tests speed fold encoder predict "
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} RAY_USAGE_STATS_ENABLED=0
python=${PYTHON:-python3}
rows=()

has_gpu() { "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }

# step NAME SECONDS WHAT-TO-SHOW COMMAND...: WHAT-TO-SHOW is a pattern of the log lines that say what came out.
step() {
  local name=$1 limit=$2 shown=$3 started=$SECONDS code
  shift 3
  case "$steps" in *" $name "*) ;; *) return ;; esac
  if [ "$gpu" != yes ]; then rows+=("$name|no GPU|0|"); return; fi
  echo "== $name (at most $limit s)"
  timeout --kill-after=10 "$limit" "$@" >"$folder/$name.log" 2>&1
  code=$?
  local verdict=ok
  [ $code -eq 0 ] || verdict="code $code"
  [ $code -eq 124 ] && verdict="over $limit s"
  rows+=("$name|$verdict|$((SECONDS - started))|$(grep -E "$shown" "$folder/$name.log" | tail -1 | cut -c1-90)")
}

gpu=no; has_gpu && gpu=yes
[ $gpu = yes ] && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$folder/card.txt"

step tests 90 'passed|failed|error|No module' "$python" -m pytest -o addopts= -p no:cacheprovider -m gpu -q tests/test_capture.py
step speed 170 'captured, batch 32' "$python" benchmarks/speed/train.py --device cuda --clips 1440 --epochs 4 \
  --json "$folder/train.json"
made() { "$python" -m ser_ray.speech.made --root "$work/$1" --clips "$2" >"$folder/made.log" 2>&1; }
[ $gpu = yes ] && [[ $steps == *" fold "* ]] && made few 480
step fold 95 'UAR' "$python" jobs/train.py --data "$work/few" --store "$work/few-store" --epochs 20 --device cuda \
  --output "$work/run"
step encoder 110 'Distance' "$python" benchmarks/speed/encoder_gpu.py --json "$folder/encoder.json"
step predict 120 '│ +[0-9]+ │.*%' "$python" benchmarks/speed/predict.py --device cuda --cores "$(nproc)" --minutes 100 --clips 1000 \
  --long-minutes 0 --json "$folder/predict.json"
# All names that there are, RAVDESS's 1,440 among them.
[ $gpu = yes ] && [[ $steps == *" folds "* ]] && made all 3278
step folds 360 'UAR' "$python" jobs/train.py --data "$work/all/ravdess" --store "$work/all-store" \
  --protocol emobox --fold all --members 3 --epochs 80 --device cuda --output "$work/folds"

for run in run folds; do [ -f "$work/$run/metrics.json" ] && cp "$work/$run/metrics.json" "$folder/$run.json"; done
echo
for row in 'step|outcome|s|last word' "${rows[@]}"; do
  IFS='|' read -r name verdict seconds word <<<"$row"
  printf '%-8s %-12s %6s  %s\n' "$name" "$verdict" "$seconds" "$word"
done | tee "$folder/table.txt"
[ -f "$folder/predict.log" ] && grep -E 'loop|job,|GPU' "$folder/predict.log"
[ -f "$folder/encoder.log" ] && grep -E 'bare loop|job, |GPUs waited' "$folder/encoder.log" | tail -6
[ -f "$folder/speed.log" ] && grep -E 'loop|Ray Train' "$folder/speed.log" | tail -12
[ $gpu = yes ] || exit 2
! tail -n +2 "$folder/table.txt" | grep -qvE '^[a-z]+ +ok'
