# Configuring and building presets. Source it after steps.sh.

# The cache serves every checkout of this machine: paths are stored relative to the root.
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1

# configure PRESET: when that was not done yet. Ninja runs CMake again by itself when a CMakeLists.txt
# has changed; of the presets it does not know.
configure() {
  local preset=$1 made=$root/build/$1/build.ninja
  if [[ ! -f $made || $root/CMakePresets.json -nt $made ]]; then
    logged "configure $preset" cmake -S "$root" --preset "$preset"
  fi
}

# Puts nvcc on the PATH if CUDA is installed in its usual place. False where there is none.
find_nvcc() {
  [[ ! -x /usr/local/cuda/bin/nvcc ]] || PATH=$PATH:/usr/local/cuda/bin
  command -v nvcc >/dev/null || {
    say "no nvcc here: the CUDA kernels are not compiled"
    return 1
  }
}

# build_targets PRESET TARGET...
build_targets() {
  local preset=$1 dir=$root/build/$1
  shift
  configure "$preset" || return
  # Nothing to do is the usual case, and not worth a message. Every build looks the commit up; a dry
  # run cannot know that it is the same, and lists what would follow.
  local plan
  if plan=$(ninja -C "$dir" -n "$@" 2>&1) &&
    ! grep -qvE '^ninja: |build_commit|Linking CXX executable' <<<"$plan" &&
    ninja -C "$dir" "$@" </dev/null >/dev/null 2>&1; then
    return 0
  fi
  logged "build $preset" ninja -C "$dir" "$@"
}
