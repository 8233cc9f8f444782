#!/usr/bin/env bash
# What an accelerator can tell in ten minutes: bash tests/benchmarks/gpu.sh DATA OUT [paper|tiny]
#
#   DATA   a folder that holds cifar10/, a copy of uoft-cs/cifar10 as load_dataset reads it
#   OUT    gets a file for every part the moment it is known: a run that is cut short has brought some
#   tiny   the same parts at toy size, for trying this script on a CPU
#
# In this order: the tests marked gpu; benchmarks at paper size; cifar10-podd at the paper's setting, its
# accuracy on the way and the state that it goes on from. Run in the root of the repository; the package
# need not be installed. SECONDS_IN_ALL (default 570) is when the last part saves its state and ends.
set -uo pipefail
data=$1 out=$2 size=${3:-paper}
began=$SECONDS all=${SECONDS_IN_ALL:-570}
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}

tests=(-m gpu) works=(unrolled-96 recover-224 students-convnet students-lenet distribution unrolled-32
                      recover-32 batches trajectory-10 trajectory-100) rounds=3
marks=(100 200 300 500 1000 2000 3000 5000 10000 20000) settings=()
if [ "$size" = tiny ]; then
    tests=(-m "not gpu" -k "cpu and not processes") works=(unrolled-96 students-lenet) rounds=1
    marks=(1 2) settings=(distill.objective.inner_steps=3 distill.objective.window=2
        distill.objective.real_batch=8 distill.networks.network.width=4 evaluate.network.width=4
        evaluate.students=1 evaluate.steps=2)
fi

part() {  # part NAME SECONDS COMMAND...: the command under a limit of its own; what it says is kept
    local name=$1 limit=$2; shift 2
    echo "== $name"
    timeout --signal=INT --kill-after=20 "$limit" "$@" 2>&1 | tee "$out/$name.log" | tail -n 25
    local code=${PIPESTATUS[0]}
    echo "$name $code $((SECONDS - began)) s" >>"$out/parts.txt"
    echo "== $name ended with $code, $((SECONDS - began)) s in all"
}

"$python" -c 'import torch; print(torch.__version__, torch.accelerator.current_accelerator(check_available=True))'
# without the project's own settings of pytest, which ask for plug-ins
mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
part tests 90 "$python" -m pytest -c /dev/null --rootdir "$PWD" -p no:cacheprovider -q "${tests[@]}" "${files[@]}"
for work in "${works[@]}"; do
    [ "$size" = paper ] && [ $((SECONDS - began)) -gt 250 ] && break
    part "benchmark-$work" 60 "$python" -m tests.benchmarks --size "$size" --rounds "$rounds" \
        --only "$work" --json "$out/benchmark-$work.json"
done
left=$((all - (SECONDS - began)))
part podd $((left + 20)) "$python" -m tests.benchmarks.milestones recipes/cifar10/podd.yaml \
    "source.dataset=$data/cifar10" "${settings[@]}" --marks "${marks[@]}" --seconds "$left" --output "$out/podd"
# the decoded source is large and made anew in seconds: it does not travel
find "$out/podd" -mindepth 1 -maxdepth 1 -type d -name 'source-*' -exec rm -r {} +
ls -l "$out" "$out/podd"
! grep -qv ' 0 [0-9]* s$' "$out/parts.txt"
