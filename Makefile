# SPDX-License-Identifier: Apache-2.0
#
# make demo and make test are the newcomer's two commands; each does its own
# set-up. `make help` lists the rest.

GO          ?= go
BIN         := bin/nasp-tun
LDFLAGS     := -s -w
PKGS        := ./...

# Tools are run by pinned version, so that go.mod stays the product's own.
GOFUMPT     := $(GO) run mvdan.cc/gofumpt@v0.12.0
STATICCHECK := $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: build demo test race check fmt vet lint rules cross generate generated bench lab lab-down e2e fuzz cover clean help $(BIN)

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: $(BIN) ## build bin/nasp-tun

$(BIN):
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/nasp-tun

demo: build ## one command: a mesh on this machine, and curl through it
	$(BIN) demo

test: ## every test; as root the namespace tests run too
	scripts/test.sh

race: ## the tests that need no namespaces, with the race detector
	$(GO) test -race -short $(PKGS)

check: fmt vet lint rules generated cross ## format, vet, staticcheck, house rules, other systems

fmt:
	@out=$$(git ls-files -z '*.go' ':!*.pb.go' | xargs -0 $(GOFUMPT) -l); \
	if [ -n "$$out" ]; then echo "not formatted (gofumpt -w):"; echo "$$out"; exit 1; fi

vet:
	$(GO) vet $(PKGS)

lint:
	$(STATICCHECK) -checks 'all,-ST1003' $(PKGS)

rules:
	scripts/rules.sh
	$(GO) mod tidy -diff

cross: ## builds for the systems that tests cannot run on here
	GOOS=linux GOARCH=arm64 CGO_ENABLED=0 $(GO) build -o /dev/null $(PKGS)
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/nasp-tun
	GOOS=windows GOARCH=amd64 CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/nasp-tun

generated: generate
	@git diff --exit-code --stat -- '*.pb.go' || { echo "generated files differ from their sources"; exit 1; }

generate: ## make the generated protos again
	$(GO) generate $(PKGS)

bench: build ## compare with an Envoy sidecar (root)
	scripts/bench.sh

lab: ## a real Istio on this machine (root; scripts/README.md)
	scripts/lab.sh up

lab-down: ## end it; nothing stays
	scripts/lab.sh down

e2e: ## the tests against the real Istio (root)
	scripts/e2e.sh

fuzz: ## every fuzz target, half a minute each
	scripts/fuzz.sh

cover:
	$(GO) test -coverprofile=cover.out $(PKGS) && $(GO) tool cover -func=cover.out | tail -1

clean: ## remove what was built
	rm -rf bin .cache
