#!/bin/bash
# All checks that need a GPU, in one run of some five minutes; with `--device cpu --small`, the same
# script on a CPU. Needs no network: packages that the machine lacks come as a `.tar.xz` of a
# site-packages folder.
#
#     bash tests/gpu/run.sh [--out FOLDER] [--packages FILE.tar.xz] [--device cuda|cpu] [--small]
#
# Every step has a time limit; one that fails is noted in the table, and the next one runs.
set -u
out=${OUT:-gpu-results} packages= device=cuda small=
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --packages) packages=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --small) small=--small; shift ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
done
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out"; out=$(cd "$out" && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
if [ -n "$packages" ]; then
  mkdir "$work/site" && tar xJf "$packages" -C "$work/site" || exit 1
fi
mkdir "$work/home" "$work/job"
export PYTHONPATH="$work/site:$root" ERASE_SD_CACHE="$work/cache" HOME="$work/home" HF_HUB_OFFLINE=1
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
[ "$device" = cpu ] && export CUDA_VISIBLE_DEVICES=
log=$out/log.txt table=$out/table.txt
: >"$log"; : >"$table"
cd "$work/job" || exit 1

step() { # name, seconds at most, command ...
  local name=$1 limit=$2 began=$SECONDS status
  shift 2
  echo "=== $name: $*" >>"$log"
  timeout -k 5 $((limit * slower)) "$@" >"$work/step" 2>&1 </dev/null
  status=$?
  cat "$work/step" >>"$log"
  printf '%-34s %4d s  %s\n' "$name" $((SECONDS - began)) "$([ $status = 0 ] && echo ok || echo "FAILED ($status)")" | tee -a "$table"
  [ $status = 0 ] || tail -n 12 "$work/step"
}
erase() { python3 -m erase_sd "$@"; }
job() { # run folder, precision; a small one has a third of the steps
  if [ -z "$small" ]; then time erase run --concept apple --run "$1" --dtype "$2"; return; fi
  erase unlearn --concept apple --steps 40 --max-residual 2 --run "$1" --dtype "$2" || return
  erase generate --prompts "$prompts/apple.txt" --steps 3 --run "$1" --dtype "$2" || return
  erase score --run "$1"
}
export -f erase job
export small prompts=$root/prompts
steps=; [ -n "$small" ] && steps="--steps 40 --max-residual 2"
slower=1; [ "$device" = cpu ] && slower=4 # limits are those of a GPU

step versions 60 python3 "$root/tests/gpu/checks.py" versions
step "main job" 150 bash -c "job runs/apple auto"
step "scores of a second detection" 60 bash -c "
  cp runs/apple/scores.md first.md; rm runs/apple/detections.jsonl
  erase score --run apple && diff first.md runs/apple/scores.md"
step "main job again, warm" 150 bash -c "job runs/warm auto"
step "bench sd15" 190 python3 -m erase_sd.bench --preset sd15 --random-weights --device "$device" $small --seconds 150 --out "$out/sd15.json"
step "bench sdxl: both encoders" 60 python3 -m erase_sd.bench --preset sdxl --random-weights --device "$device" $small --out "$out/sdxl.json"
step "kill and resume" 90 bash -c "
  python3 -m erase_sd unlearn --concept apple $steps --run runs/killed & pid=\$!
  for i in \$(seq 900); do ls runs/killed/checkpoint*.safetensors >/dev/null 2>&1 && break; sleep 0.1; done
  kill -9 \$pid; wait \$pid 2>/dev/null
  erase unlearn --concept apple $steps --run runs/killed"
step "resumed weights" 60 python3 "$root/tests/gpu/checks.py" weights runs/apple runs/killed
step "same seed, same weights" 60 python3 "$root/tests/gpu/checks.py" weights runs/apple runs/warm
step "fp32" 120 bash -c "job runs/fp32 fp32"
step "bf16 against fp32 rates" 60 python3 "$root/tests/gpu/checks.py" rates runs/apple runs/fp32
tests="test_device test_trainer test_batches test_methods test_hardened test_lipschitz test_emmn test_pipeline test_attacks test_attacks_sdxl test_metrics test_unlearning"
[ -n "$small" ] && tests="test_device test_batches test_metrics"
step "tests" 110 python3 -m pytest -p no:cacheprovider -q --tb=short --show-capture=no -o filterwarnings=default \
  -c "$root/pyproject.toml" --rootdir "$root" -n 8 --dist loadfile $(for t in $tests; do echo "$root/tests/$t.py"; done)
grep -E "^(FAILED|ERROR)|passed|failed" "$work/step" | cut -c1-160 | tail -n 25 >>"$table"
for name in apple fp32; do cp "runs/$name/scores.md" "$out/scores-$name.md" 2>/dev/null; done
cp runs/apple/train.jsonl "$out/train.jsonl" 2>/dev/null
echo "--- table"; cat "$table"; grep -hE "^(bf16 matrix|a step|an e|closed form |images |VAE|PNG|attention |largest|apple:|.*peak memory|real|.*FAILED)" "$log" | cut -c1-170
