#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The tests against the real mesh. The lab is started if it is not up, and
# ended again if it was this run that started it. Arguments go to `go test`.
set -eu
cd "$(dirname "$0")/.."
if ! scripts/lab.sh status >/dev/null 2>&1; then
  trap 'scripts/lab.sh down' EXIT
fi
scripts/lab.sh up >&2
(
  cd scripts/lab
  ${GO:-go} vet ./...
  ${GO:-go} test -count=1 -timeout 30m "$@" ./...
)

# Heimdall's own tests start an API server of their own, on loopback.
KUBE_APISERVER_BIN=$(ls -t "$PWD"/.cache/lab/bin/kube-apiserver-* | head -1)
ETCD_BIN=$(command -v etcd || find "$PWD/.cache/lab" -path '*/usr/bin/etcd' | head -1)
export KUBE_APISERVER_BIN ETCD_BIN
${GO:-go} test -count=1 -run Cluster ./heimdall/...
