#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Every test of the product in one run. As root the tests in namespaces run
# too, and NASP_TUN_NETNS=require turns each of their skips into a failure.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh
if [ "$(id -u)" = 0 ]; then
  export NASP_TUN_NETNS=${NASP_TUN_NETNS:-require}
else
  echo "test: not root: tests that need it will skip and say so" >&2
fi
if [ -x .cache/envoy/bin/envoy ]; then
  ENVOY_BIN=$PWD/.cache/envoy/bin/envoy
  export ENVOY_BIN
fi
make -s build
# Whoever starts this may ignore signals (nohup, a job in the background), and
# what is ignored is inherited; the tests are about programs that do not.
plain=()
if env --default-signal=HUP true 2>/dev/null; then
  plain=(env --default-signal=HUP,INT,QUIT)
fi
# -p 1: packages that measure or fill the machine must not disturb each other.
exec ${plain[@]+"${plain[@]}"} "${GO:-go}" test -p 1 -timeout 20m "$@" ./...
