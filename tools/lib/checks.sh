# Checks that count what passed and failed and write down how long each took. Source it after
# build.sh. Times go to build/log/times.tsv, one "name<TAB>seconds" a line, for .ci/run.

passed=0
failed=0

start_report() {
  cd "$root" || exit
  mkdir -p "$log_dir"
  : >"$log_dir/times.tsv"
  # The closing line is printed whatever happens: a tool that ends early has failed.
  trap 'complain "ended early"; echo "$passed passed, $((failed + 1)) failed"' EXIT
}

# Prints the closing line and ends the tool.
end_report() {
  trap - EXIT
  echo "$passed passed, $failed failed"
  exit $((failed > 0 ? 1 : 0))
}

record_time() { printf '%s\t%s\n' "$1" "$2" >>"$log_dir/times.tsv"; }

# timed NAME COMMAND...: its status, and its time in the report.
timed() {
  local name=$1 started=$SECONDS status=0
  shift
  "$@" || status=$?
  record_time "$name" $((SECONDS - started))
  return "$status"
}

# build NAME PRESET TARGET...: counts only when it fails; what was built is judged by its tests.
build() {
  local name=$1
  shift
  timed "$name" build_targets "$@" && return
  failed=$((failed + 1))
  return 1
}

# check NAME COMMAND...: one command that passes or fails.
check() {
  local name=$1
  shift
  if timed "$name" logged "$name" "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
  fi
}

# Runs a command; where addresses have more random bits than clang 14's ThreadSanitizer can live
# with, with none.
with_tsan_addresses() {
  local random_bits
  random_bits=$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 0)
  if ((random_bits > 28)) && setarch -R true 2>/dev/null; then
    setarch -R "$@"
  else
    "$@"
  fi
}

# ctest_run NAME PRESET [COMMAND...]: the tests of a preset, each counted; COMMAND goes before ctest.
ctest_run() {
  local name=$1 preset=$2 summary
  shift 2
  timed "$name" logged "$name" "$@" ctest --test-dir "$root/build/$preset" --output-on-failure \
    --parallel "$(nproc)" --no-tests=error || true
  summary=$(grep -E '^[0-9]+% tests passed' "$log_dir/${name// /-}.log" || true)
  if [[ $summary =~ ([0-9]+)\ tests?\ failed\ out\ of\ ([0-9]+) ]]; then
    failed=$((failed + BASH_REMATCH[1]))
    passed=$((passed + BASH_REMATCH[2] - BASH_REMATCH[1]))
  else
    failed=$((failed + 1))  # no test ran
  fi
}

# Files of the tree with one of the given endings, whether git is here or not.
sources() {
  local ending names=()
  for ending in "$@"; do names+=(-o -name "*.$ending"); done
  find kernels services tools tests -type f \( "${names[@]:1}" \) | sort
}

check_format() { sources cc h cu cuh | xargs -r clang-format --dry-run --Werror; }

check_scripts() {
  local scripts
  # Those that are run; what they source is looked at with them.
  mapfile -t scripts < <(find .ci tools tests -type f -exec grep -lE '^#!.*bash' {} + | sort)
  shellcheck --external-sources --check-sourced "${scripts[@]}" &&
    sources py | xargs -r python3 -c 'import ast, sys
for path in sys.argv[1:]:
    ast.parse(open(path, encoding="utf-8").read(), path)' &&
    python3 tests/mutation/run.py --texts
}

# What tools/bundle packs starts from another folder with libraries of its own.
check_bundle() {
  local dir status=0 program
  dir=$(mktemp -d) || return
  {
    "$root/tools/bundle" --out "$dir/bundle.tar.xz" "$@" &&
      mkdir "$dir/elsewhere" && tar -C "$dir/elsewhere" -xf "$dir/bundle.tar.xz"
  } || status=1
  # The services come along with the program that starts them.
  [[ " $* " != *" sluice "* ]] || set -- "$@" sluice-{router,prefill,decode,balancer}
  for program in "${@/#/$dir/elsewhere/sluice/bin/}"; do
    env -i "$program" --help >/dev/null || status=1
    if ldd "$program" | grep -e "$root" -e 'libstdc++.* /\(usr\|lib\)'; then status=1; fi
  done
  rm -rf "$dir"
  return "$status"
}

# clang-tidy over every source that the asan-ubsan preset compiles, with the checks of .clang-tidy.
check_tidy() {
  local files
  files=$(python3 -c 'import json
for entry in json.load(open("build/asan-ubsan/compile_commands.json")):
    print(entry["file"])') || return
  sort -u <<<"$files" | xargs -P "$(nproc)" -n 1 clang-tidy --quiet -p build/asan-ubsan 2>&1 |
    sed -E '/^[0-9]+ warnings? generated/d'
}

# fuzz_all SECONDS: every fuzz target of the asan-ubsan build for so long, as many at a time as there
# are cores. New inputs go to build/fuzz/, the kept corpora stay as they are.
fuzz_all() {
  local seconds=$1 name corpus
  rm -f build/fuzz/*/result
  while read -r name corpus; do
    while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n || true; done
    fuzz_one "$name" "$corpus" "$seconds" &
  done < <(grep . build/asan-ubsan/fuzzers.txt)
  wait
  ! grep -qsx failed build/fuzz/*/result
}

fuzz_one() {
  local name=$1 corpus=$2 seconds=$3 dir=build/fuzz/$1
  mkdir -p "$dir/found"
  if "build/asan-ubsan/bin/$name" -max_total_time="$seconds" -timeout=20 -print_final_stats=1 \
    -artifact_prefix="$dir/" "$dir/found" "$corpus" >"$dir/log" 2>&1; then
    echo passed >"$dir/result"
    echo "$name: $(grep -c . < <(find "$corpus" -type f)) kept inputs," \
      "$(sed -n 's/^stat::number_of_executed_units: *//p' "$dir/log") runs, nothing found"
  else
    echo failed >"$dir/result"
    tail -n 40 "$dir/log"
    echo "$name FAILED; all of its output: $dir/log; to see it again, run" \
      "build/asan-ubsan/bin/$name with the file that the output names"
  fi
}

# check_fuzzers NAME SECONDS: each target counts as one.
check_fuzzers() {
  local name=$1 seconds=$2 target result
  timed "$name" logged "$name" fuzz_all "$seconds" || true
  while read -r target _; do
    result=$(cat "build/fuzz/$target/result" 2>/dev/null || echo failed)
    [[ $result == passed ]] && passed=$((passed + 1)) || failed=$((failed + 1))
  done < <(grep . build/asan-ubsan/fuzzers.txt)
}
