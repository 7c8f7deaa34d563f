# Configuring and building presets. Source it after steps.sh.

# The cache serves every checkout of this machine: paths are stored relative to the root.
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1
export CMAKE_COLOR_DIAGNOSTICS=OFF

# build_targets PRESET TARGET...: configures when that was not done yet, then builds. Ninja runs
# CMake again by itself when a CMakeLists.txt has changed; of the presets it does not know.
build_targets() {
  local preset=$1 dir=$root/build/$1
  shift
  if [[ ! -f $dir/build.ninja || $root/CMakePresets.json -nt $dir/build.ninja ]]; then
    logged "configure $preset" cmake -S "$root" --preset "$preset" || return
  fi
  # Nothing to do is the usual case, and not worth a message.
  if [[ $(ninja -C "$dir" -n "$@" 2>/dev/null) == *'no work to do'* ]]; then
    return 0
  fi
  logged "build $preset" ninja -C "$dir" "$@"
}
