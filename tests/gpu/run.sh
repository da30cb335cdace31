#!/bin/bash
# All checks that need a GPU, in one run of at most 560 s (--seconds); with `--device cpu --small`, the
# same script on a CPU, with tiny models and four times the time. Needs no network: packages that the
# machine lacks come as a `.tar.xz` of a site-packages folder.
#
#     bash tests/gpu/run.sh [--out FOLDER] [--packages FILE.tar.xz] [--device cuda|cpu] [--small]
#                           [--seconds N] [--steps REGEX] [--sections "WORD ..."]
#
# Without `--steps` and `--sections`, all steps below and all sections of the first benchmark run.
# The most important figures come first. Every step has a time limit; one that fails, or that no time is
# left for, says so in the table at the end. Lines with a figure begin with `*`: they are printed as they
# come, for the case that the script is killed, and again in the table.
set -u
out=${OUT:-gpu-results} packages= device=cuda small= seconds=560 only=. sections=
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --packages) packages=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --steps) only=$2; shift 2 ;;
    --sections) sections="--only $2"; shift 2 ;;
    --small) small=--small; shift ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
done
slower=1; [ "$device" = cpu ] && slower=4 CUDA_VISIBLE_DEVICES= && export CUDA_VISIBLE_DEVICES
end=$((seconds * slower)) # of SECONDS, which bash counts from the start
root=$(cd "$(dirname "$0")/../.." && pwd)
checks=$root/tests/gpu/checks.py prompts=$root/prompts/apple.txt
mkdir -p "$out"; out=$(cd "$out" && pwd)
work=$(mktemp -d)
log=$out/log.txt table=$work/table.txt tests_log=$work/tests.txt
: >"$log"; : >"$table"; : >"$tests_log"

tail -n +1 -f --pid=$$ "$log" | grep --line-buffered '^\*' & follower=$!
finish() { # prints the table, which is also in $out/table.txt
  trap - EXIT
  kill $follower $(jobs -p) 2>/dev/null; wait
  for name in apple fp32; do cp "runs/$name/scores.md" "$out/scores-$name.md" 2>/dev/null; done
  cp runs/apple/train.jsonl "$out/" 2>/dev/null
  { echo "--- figures"; grep -E '^(===|\*) ' "$log" | cut -c1-170
    echo "--- tests"; grep -E "FAILED|ERROR|passed|failed" "$tests_log" | sort -u | cut -c1-160 | tail -n 25
    echo "--- steps"; cat "$table"; printf '%-34s %4d s\n' "all of this" $SECONDS; } | tee "$out/table.txt"
  cat "$tests_log" >>"$log"
  rm -rf "$work"
}
trap finish EXIT; trap 'exit 143' TERM

note() { printf '%-34s %4d s  %s\n' "$@" >>"$table"; }
step() { # name, seconds at most, command ...; skipped if less than half of the time is left
  local name=$1 limit=$(($2 * slower)) left=$((end - SECONDS)) began=$SECONDS own status
  shift 2
  [[ $name =~ $only ]] || return 0
  [ $((2 * left)) -ge $limit ] || { note "$name" 0 "SKIPPED, $left s left"; return 1; }
  [ $limit -le $left ] || limit=$left
  own=$(mktemp -p "$work")
  echo "=== $name" >>"$log"
  # SIGINT, on which Python ends what it does in order; a child process that stays is killed.
  timeout -s INT -k 10 $limit "$@" 2>&1 </dev/null | tee "$own" >>"$log"
  status=${PIPESTATUS[0]}
  if [ $status = 0 ]; then note "$name" $((SECONDS - began)) ok; return; fi
  note "$name" $((SECONDS - began)) "FAILED ($status)"
  tail -n 8 "$own" | cut -c1-150 | sed 's/^/    /' >>"$table"
  return 1
}

mkdir "$work/site" "$work/home" "$work/job"
if [ -n "$packages" ]; then tar xJf "$packages" -C "$work/site" || exit 1; fi
export PYTHONPATH="$work/site:$root" ERASE_SD_CACHE="$work/cache" HOME="$work/home" HF_HUB_OFFLINE=1
export PYTHONUNBUFFERED=1
python3 -m compileall -q -j 0 "$work/site" "$root/erase_sd" >/dev/null # once, not in each process
cd "$work/job" || exit 1

erase() { python3 -m erase_sd "$@"; }
job() { # run folder, precision; a small one has a third of the steps
  if [ -z "$small" ]; then erase run --concept apple --run "$1" --dtype "$2"; return; fi
  erase unlearn --concept apple $steps --run "$1" --dtype "$2" &&
    erase generate --prompts "$prompts" --steps 3 --run "$1" --dtype "$2" && erase score --run "$1"
}
kill_and_resume() { # kills an unlearning once it has a checkpoint
  python3 -m erase_sd unlearn --concept apple $steps --run runs/killed & local pid=$!
  until ls runs/killed/checkpoint* >/dev/null 2>&1 || ! kill -0 $pid 2>/dev/null; do sleep 0.05; done
  kill -9 $pid
  wait $pid
  erase unlearn --concept apple $steps --run runs/killed
}
apart() { # generates and scores the main job's encoder again, one after the other, with an empty cache
  cp -r runs/apple runs/apart && rm -r runs/apart/images* runs/apart/detections.jsonl || return
  ERASE_SD_CACHE=$work/cold erase generate --prompts "$prompts" $denoising --run runs/apart &&
    erase score --run runs/apart && python3 "$checks" costs runs/apple runs/apart
}
compiled() { # generates and scores the main job's encoder again, with a compiled denoiser
  cp -r runs/apple runs/compiled && rm -r runs/compiled/images* runs/compiled/detections.jsonl || return
  erase generate --prompts "$prompts" $denoising --compile --run runs/compiled &&
    erase score --run runs/compiled && python3 "$checks" rates runs/apple runs/compiled
}
run_tests() { # the tests of what differs on a GPU
  # New lengths of captions all the time: cuDNN's attention plans each for longer than it computes.
  TORCH_CUDNN_SDPA_DEPRIORITIZED=1 python3 -m pytest -p no:cacheprovider -v --tb=short \
    --show-capture=no -o filterwarnings=default -c "$root/pyproject.toml" --rootdir "$root" \
    -n 8 --dist worksteal $tests >"$tests_log" 2>&1
}
export -f erase job kill_and_resume apart compiled run_tests
tests="test_device test_trainer test_batches test_methods test_hardened test_lipschitz test_emmn
  test_pipeline test_attacks test_attacks_sdxl test_metrics test_unlearning"
[ -n "$small" ] && tests="test_device test_batches test_metrics"
tests=$(printf "$root/tests/%s.py " $tests)
steps= denoising=; [ -n "$small" ] && steps="--steps 40 --max-residual 2" denoising="--steps 3"
export small steps denoising prompts checks tests_log root tests work
bench="python3 -m erase_sd.bench --random-weights --device $device $small"

step versions 60 python3 "$checks" versions "$device" || exit 1
step "bench sd15" 290 $bench --preset sd15 --seconds $((275 * slower)) $sections --out "$out/sd15.json"
step "bench sdxl" 100 $bench --preset sdxl --seconds $((100 * slower)) --out "$out/sdxl.json"
step "main job" 100 bash -c "job runs/apple auto"
step "generate, then score" 60 bash -c apart
# Side by side, because none of these is timed.
{ step "kill and resume" 120 bash -c kill_and_resume
  step "resumed weights" 30 python3 "$checks" weights runs/apple runs/killed; } & others=$!
{ step "main job in fp32" 120 bash -c "job runs/fp32 fp32"
  step "bf16 against fp32 rates" 30 python3 "$checks" rates runs/apple runs/fp32; } & others+=" $!"
step "compiled denoiser" 120 bash -c compiled & others+=" $!"
step tests 200 bash -c run_tests
wait $others
[ -s "$table" ] && ! grep -qE "FAILED|SKIPPED" "$table" # an error, too, if --steps names none
