# Messages and logged commands for the tools. Source it after setting `root` to the checkout.
#
# Everything here goes to stderr: stdout belongs to what the tool was asked for. On a terminal a
# running command shows as one line that keeps changing; elsewhere only its beginning and its end
# are said. The full output of every command is kept in build/log/.

log_dir=$root/build/log

if [[ -t 2 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
  on_terminal=yes bold=$'\e[1m' red=$'\e[31m' plain=$'\e[0m' clear_line=$'\r\e[K'
else
  on_terminal='' bold='' red='' plain='' clear_line=''
fi

say() { printf '%s%s%s\n' "$bold" "$*" "$plain" >&2; }

complain() { printf '%serror:%s %s\n' "$red" "$plain" "$*" >&2; }

fail() {
  complain "$@"
  exit 1
}

# Prints the lines of stdin on top of each other, cut to the width of the terminal.
show_progress() {
  local label=$1 line width
  [[ -n $on_terminal ]] || { cat >/dev/null; return; }
  width=$(tput cols 2>/dev/null || echo 80)
  while IFS= read -r line; do
    line=${line//[$'\t\r']/ }
    line="  $label: $line"
    printf '%s%s' "$clear_line" "${line:0:width-1}" >&2
  done
  printf '%s' "$clear_line" >&2
}

# logged LABEL COMMAND [ARGUMENT...]: runs COMMAND with no input and its output in
# build/log/LABEL.log, and says how long it took. When it fails, shows the end of the log and
# returns the command's status.
logged() {
  local label=$1 log=$log_dir/${1// /-}.log started=$SECONDS status=0
  shift
  mkdir -p "$log_dir"
  say "$label …"
  "$@" </dev/null 2>&1 | tee "$log" | show_progress "$label" || status=${PIPESTATUS[0]}
  if ((status != 0)); then
    tail -n 60 "$log" >&2
    complain "$label failed after $((SECONDS - started)) s (status $status); all of its output: $log"
    return "$status"
  fi
  say "$label: done in $((SECONDS - started)) s"
}
