#!/bin/sh
# Fails when an object file compiled for one instruction set defines a symbol that the linker may
# merge with another's (weak or unique): baseline code could then run instructions its machine lacks.
#   check_symbols.sh OBJECT...
offenders=$(nm -AC "$@" | grep -E ' [WVuwv] [^_]')
[ -z "$offenders" ] && exit 0
echo "Mergeable symbols in code compiled per instruction set:"
echo "$offenders"
exit 1
