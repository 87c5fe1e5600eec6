#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The lab, a real Istio on this machine: lab.sh up|down|status|build|token …
# See scripts/README.md.
set -eu
cd "$(dirname "$0")/.."
lab=.cache/lab/bin/lab
case ${1:-} in
up | build)
  [ "$(id -u)" = 0 ] || { echo "lab: needs root, for network namespaces" >&2; exit 1; }
  scripts/setup.sh
  make -s build
  ;;
esac
mkdir -p .cache/lab/bin
(cd scripts/lab && ${GO:-go} build -o "../../$lab" .)
exec "$lab" "$@"
