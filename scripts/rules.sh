#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# House rules that no linter knows. Each is one search with its reason; a hit
# is an error. A line that must stand carries `//rule:allow` and says why.
set -u
cd "$(git rev-parse --show-toplevel)" || exit 1
fail=0

# rule REASON PATTERN [PATHSPEC...]: no line of the Go code may match.
rule() {
  local reason=$1 pattern=$2
  shift 2
  local hits
  hits=$(git grep -nE "$pattern" -- "${@:-*.go}" ':!*.pb.go' | grep -v 'rule:allow')
  if [ -n "$hits" ]; then
    printf 'rule: %s\n%s\n\n' "$reason" "$hits"
    fail=1
  fi
}
code=(':(glob)**/*.go' ':(exclude,glob)**/*_test.go')

rule 'time.After leaks its timer in a loop and time.Sleep cannot be cancelled: use a timer and a context' \
  '\btime\.(After|Sleep)\(' "${code[@]}"
rule 'tests wait for events, never for time to pass' '\btime\.Sleep\(' ':(glob)**/*_test.go'
rule 'addresses are netip' '\bnet\.(ParseIP|ParseCIDR|IPNet|IPMask)\b' "${code[@]}"
rule 'any, not interface{}' 'interface\{\}'
rule 'logging is slog, injected; printing is the command line'\''s' '\b(log\.(Print|Fatal|Panic)|fmt\.Print|slog\.Default)' "${code[@]}" ':!cmd' ':!scripts'
rule 'contexts are passed; only the program begins one' 'context\.(Background|TODO)\(' "${code[@]}" ':!cmd' ':!scripts'
rule 'the environment is read in one place' 'os\.(Getenv|LookupEnv|Environ)\(' "${code[@]}" ':!cmd/nasp-tun/config*.go' ':!scripts'
rule 'sockets leave by host.Dialer alone' '\bnet\.(Dial|DialTimeout|DialTCP|DialUDP)\(|\bnet\.Dialer\{' "${code[@]}" ':!netstack/host'
rule 'no init: start-up order is written in run.go' '^func init\(' "${code[@]}"
rule 'a goroutine has an owner that waits for it: WaitGroup.Go or errgroup' '^\s*go (func|[a-zA-Z_.]+\()' "${code[@]}"
rule 'certificates are verified in mesh/identity, and nowhere is that skipped' 'InsecureSkipVerify' "${code[@]}" ':!mesh/identity'
rule 'left-over marks' '\b(TODO|FIXME|XXX)\b'
rule 'machine paths do not belong into the project' '/(work|root|home/[a-z]+)/' '*' ':!scripts/rules.sh' ':!go.sum'

# Every Go file begins with its licence line.
for f in $(git ls-files '*.go' ':!*.pb.go'); do
  head -1 "$f" | grep -q '^// SPDX-License-Identifier: Apache-2.0$' || { echo "rule: no SPDX line: $f"; fail=1; }
done
exit $fail
