#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Compares nasp-tun with an Envoy sidecar; see scripts/bench. Arguments are
# passed on: -rounds N -seconds N.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "bench: needs root for network namespaces" >&2; exit 1; }
scripts/setup.sh
make -s build
ENVOY_BIN=${ENVOY_BIN:-$PWD/.cache/envoy/bin/envoy}
export ENVOY_BIN
go build -o .cache/bench ./scripts/bench
exec .cache/bench "$@"
