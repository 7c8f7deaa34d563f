# The Debian 12 packages that Sluice needs, and how they are installed. Source it after steps.sh.

# To configure and build every program, test and benchmark, and to run the tests.
build_packages=(
  ccache
  cmake
  g++
  libabsl-dev
  libbenchmark-dev
  libboost1.81-dev
  libcli11-dev
  libgmock-dev
  libgrpc++-dev
  libgtest-dev
  libpcre2-dev
  libprotobuf-dev
  libsimdjson-dev
  libspdlog-dev
  libssl-dev
  libxxhash-dev
  libyaml-cpp-dev
  mold
  ninja-build
  nlohmann-json3-dev
  openssl
  pkg-config
  prometheus-cpp-dev
  protobuf-compiler
  protobuf-compiler-grpc
  python3
)

# What the checks need beyond that: sanitizers, fuzzers, formatting, static analysis.
check_packages=(
  clang
  clang-format
  clang-tidy
  libclang-rt-14-dev
  llvm
  shellcheck
)

# Prints those of the given packages that are not installed.
missing_packages() {
  local package state
  declare -A installed=()
  while read -r state package; do
    [[ $state == ii || $state == hi ]] && installed[$package]=yes
  done < <(dpkg-query -W -f='${db:Status-Abbrev} ${Package}\n' "$@" 2>/dev/null)
  for package in "$@"; do
    [[ -n ${installed[$package]:-} ]] || echo "$package"
  done
}

# What building takes; and what building and all checks take.
ensure_build_packages() { install_missing "${build_packages[@]}"; }
ensure_all_packages() { install_missing "${build_packages[@]}" "${check_packages[@]}"; }

# install_missing PACKAGE...: a fraction of a second when none is missing.
install_missing() {
  local missing as_root=()
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    command -v cmake >/dev/null || fail "this is not a Debian system (no apt-get), so please install" \
      "by your own means what Debian 12 calls: $*"
    return 0  # not Debian, but somebody has prepared it; CMake names what is still absent
  fi
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]} > 0)) || return 0
  if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "there is no sudo here. As root, please run:" \
      "apt-get install --no-install-recommends ${missing[*]}"
    as_root=(sudo)
    sudo -v || fail "sudo was refused. As root, please run:" \
      "apt-get install --no-install-recommends ${missing[*]}"
  fi
  say "To be installed from Debian's packages: ${missing[*]}"
  # A list that cannot be fetched (somebody else's repository, perhaps) need not matter.
  logged 'package lists' "${as_root[@]}" apt-get update || true
  logged 'packages' "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y \
    --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}" ||
    fail "packages could not be installed"
}
